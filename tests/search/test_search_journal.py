"""search/journal.py: what a killed writer leaves in a journal file costs no trial."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_evaluator import FakeEvaluator, recipe

from routespace.errors import BundleError
from routespace.search import load_study, run_study
from routespace.search.journal import mend_journal
from routespace.search.storage import open_storage

TORN = b'{"op_code":4,"worker_id":"12345","study_id":0,"datet'


@pytest.mark.parametrize("behind", [b"", b'{"op_code":9,"trial_id":0,"user_attr":{"note":1},"worker_id":"7"}\n'])
def test_a_study_goes_on_after_a_torn_record(tmp_path: Path, behind: bytes) -> None:
    """Alone at the end, or with what another worker has written behind it."""
    journal = tmp_path / "journal.log"
    whole = run_study(recipe(), tmp_path / "study", storage=str(journal), evaluator=FakeEvaluator(), trials=2)
    journal.write_bytes(journal.read_bytes() + TORN + behind)
    study = run_study(recipe(), tmp_path / "study", storage=str(journal), evaluator=FakeEvaluator(), trials=3)
    assert study.trials[:2] == whole.trials
    assert study.count("finished") == 3
    assert load_study(tmp_path / "study") == study
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_what_is_whole_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    path.write_bytes(b'{"op_code":1}\n{"op_code":2}\n')
    before = path.stat().st_ino
    assert mend_journal(path) == 0
    assert path.stat().st_ino == before
    path.write_bytes(b'{"op_code":1}\n{"op_c{"op_code":2}\n{"op')
    assert mend_journal(path) == 2
    assert path.read_bytes() == b'{"op_code":1}\n{"op_code":2}\n'
    path.write_bytes(b"")
    assert mend_journal(path) == 0


@pytest.mark.parametrize("create", [True, False])
def test_another_file_is_left_alone_and_named(tmp_path: Path, create: bool) -> None:
    path = tmp_path / "journal.log"
    content = b"no journal at all\n\nof any kind\n"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"journal\.log is no journal, or damaged"):
        open_storage(str(path), create=create)
    assert path.read_bytes() == content
