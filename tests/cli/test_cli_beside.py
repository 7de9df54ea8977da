"""Commands in processes of their own, beside another."""

import json
import os
import signal
import subprocess
import sys
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


BLOCK = """
import sys
from pathlib import Path
from routespace.cli.beside import Beside

with Beside(sys.argv[2:], log=Path(sys.argv[1])) as other:
    other.wait()
"""


@pytest.mark.slow
def test_ctrl_c_stops_the_training_once_which_saves_its_checkpoint(tmp_path):
    run, log = tmp_path / "run", tmp_path / "run.log"
    few = ["data.train_size=64", "data.val_size=32", "train.batch_size=32", "train.epochs=10000"]
    words = ["train", "digits_tiny", *(word for change in few for word in ("--set", change)), "--out", run]
    command = [sys.executable, "-c", BLOCK, *map(str, (log, *words))]
    block = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert block.poll() is None
        time.sleep(0.05)
    os.killpg(block.pid, signal.SIGINT)  # as a terminal does
    assert block.wait() != 0
    said = log.read_text().splitlines()
    assert said[-1].startswith("error: interrupted; it goes on with: routespace train")
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["epoch"] == 1
    assert (run / "checkpoint" / "state.pt").exists()
