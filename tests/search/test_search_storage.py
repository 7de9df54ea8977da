"""search/storage.py: URLs and paths, what cannot be opened, and the signs of life."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage, RDBStorage

from routespace.deploy.study_place import absolute_storage
from routespace.errors import BundleError, MissingDependencyError, RoutespaceError, SpecError
from routespace.search.records import close, load_study
from routespace.search.rescue import usable
from routespace.search.storage import Worker, open_storage, without_password


def test_databases_have_heartbeats_and_journals_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (f"sqlite:///{tmp_path / 'a.db'}", "sqlite:///b.db", "sub/c.db"):
        database = open_storage(name)
        assert isinstance(database, RDBStorage)
        assert database.get_heartbeat_interval() is not None
        close(database)
    assert all((tmp_path / name).exists() for name in ("a.db", "b.db", "sub/c.db"))
    assert isinstance(open_storage("sub/journal.log"), JournalStorage)
    assert absolute_storage("journal.log") == str(tmp_path / "journal.log")
    assert absolute_storage("sqlite:///b.db") == f"sqlite:///{tmp_path / 'b.db'}"
    assert absolute_storage("postgresql://host/db") == "postgresql://host/db"


@pytest.mark.parametrize(
    ("storage", "error", "message"),
    [
        ("http://host/db", SpecError, "http://… is not allowed; give sqlite:///FILE"),
        ("sqlite://", SpecError, "a study in memory cannot be resumed"),
        ("sqlite:///:memory:", SpecError, "a study in memory cannot be resumed"),
        (".", SpecError, "is a folder; give a file in it"),
        ("redis://host:port/0", RoutespaceError, "redis"),
    ],
)
def test_what_is_no_storage(storage: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_storage(storage)


def test_a_missing_driver_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(MissingDependencyError, match=r"user:\*\*\*@host.* pip install psycopg2-binary") as found:
        open_storage("postgresql://user:secret@host/db")
    assert "secret" not in str(found.value)
    assert without_password("postgresql://user:secret@host/db") == "postgresql://user:***@host/db"


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    broken = tmp_path / "broken.db"
    broken.write_text("this is no database, whatever its name says" * 100)
    with pytest.raises(BundleError, match=r"broken\.db cannot be used \(.*file is not a database"):
        open_storage(str(broken))
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("create table things (name text)")
    for missing in ("none", "none.db", f"sqlite:///{tmp_path}/none.db", "none.log"):
        with pytest.raises(BundleError, match="does not exist; give a study's folder or storage URL"):
            load_study(missing)
    with pytest.raises(BundleError, match=r"has no study\.json"):
        load_study(tmp_path)
    with pytest.raises(BundleError, match="holds no study"):
        load_study(other)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(BundleError, match=r"study\.json: is not JSON"):
        load_study(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot be made"):
        open_storage(str(tmp_path / "file" / "study.db"))


def test_workers_know_who_is_dead(tmp_path: Path) -> None:
    with Worker(tmp_path) as one:
        with Worker(tmp_path) as two:
            assert not one.is_dead(two.name)
        assert not one.is_dead(two.name)  # it left in good order, with no trial
        assert not one.is_dead("another-host/0123456789ab")
        assert not one.is_dead("no name at all")
        dying = (
            "import os, sys; from pathlib import Path; from routespace.search.storage import Worker; "
            "worker = Worker(Path(sys.argv[1])); print(worker.name, flush=True); os._exit(1)"
        )
        crashed = subprocess.run([sys.executable, "-c", dying, str(tmp_path)], capture_output=True, text=True)
        assert one.is_dead(crashed.stdout.strip())
    assert list((tmp_path / ".workers").iterdir()) == []


def untold():
    """What Optuna does with a trial that it cannot tell of: an assertion hides what the storage said."""
    try:
        raise StorageInternalError("commit") from OSError("database or disk is full")
    finally:
        raise AssertionError("Should not reach.")


def test_a_storage_that_fails_in_the_midst_of_a_trial_is_told_in_one_line():
    said = r"storage: sqlite:///a\.db failed \(database or disk is full\)"
    with pytest.raises(BundleError, match=said), usable("sqlite:///a.db"):
        untold()
    with pytest.raises(AssertionError, match="of ours"), usable("sqlite:///a.db"):
        raise AssertionError("of ours")
