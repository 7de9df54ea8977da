"""Commands in processes of their own, beside another."""

import contextlib
import json
import signal
import time

import pytest

from routespace.cli.beside import Beside
from routespace.errors import RoutespaceError


def test_a_command_runs_beside_and_what_it_says_is_in_a_file(tmp_path):
    log = tmp_path / "said.log"
    with Beside(["recipes", "show", "digits_tiny"], log=log) as other:
        assert other.text == "routespace recipes show digits_tiny"
        other.wait()
        other.wait()  # as often as one likes
    assert "name: digits_tiny" in log.read_text()


def test_a_command_that_fails_is_told_with_its_last_words(tmp_path):
    log = tmp_path / "said.log"
    failed = pytest.raises(RoutespaceError, match=r"routespace recipes show digits_tin: .*digits_tiny.*said\.log")
    with failed, Beside(["recipes", "show", "digits_tin"], log=log) as other:
        other.wait()
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_a_block_that_ends_early_stops_the_training_which_can_go_on(tmp_path):
    run, log = tmp_path / "run", tmp_path / "run.log"
    few = ["data.train_size=64", "data.val_size=32", "train.batch_size=32", "train.epochs=10000"]
    words = ["train", "digits_tiny", *(word for change in few for word in ("--set", change)), "--out", run]
    with contextlib.suppress(KeyboardInterrupt), Beside(words, log=log) as other:
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
            assert other.running
            time.sleep(0.05)
        raise KeyboardInterrupt
    assert not other.running
    assert other.code in (130, 128 + signal.SIGTERM)
    assert "it goes on with: routespace train" in log.read_text()
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["epoch"] == 1
    assert (run / "checkpoint" / "state.pt").exists()
