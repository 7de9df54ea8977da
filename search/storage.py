"""Where a study is kept, and how its workers keep out of each other's way.

    open_storage(url, out)    a URL or path → Optuna storage
    Turn                      one worker at a time looks at the study and takes its next trial
    Worker                    a sign of life: a file that stays locked while the process lives

Databases (`sqlite:///…`, `postgresql://…`) carry heartbeats: a trial whose worker fell silent is queued again.
Journals (a file, `redis://…`) have none, and SQLite's take two minutes: on one machine `Worker` tells at once.
"""

from __future__ import annotations

import importlib
import os
import socket
import uuid
import warnings
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalRedisBackend
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from routespace.deploy.study_place import (
    ALLOWED,
    DATABASE,
    REDIS,
    TURN_FILE,
    WORKERS,
    absolute_storage,
    check_storage,
)
from routespace.errors import BundleError, MissingDependencyError, SpecError
from routespace.search.journal import mend_journal

HEARTBEAT_S = 30
GRACE_S = 120  # a worker that is silent for so long is taken for dead; its trial is queued again
MAX_RETRIES = 3  # a trial that kills its worker (out of memory) must not do so for ever
LOCK_WAIT_S = 60  # for another worker's SQLite transaction; a transaction takes milliseconds

_DRIVERS = {"postgresql": "psycopg2-binary", "mysql": "PyMySQL"}


def retry(limit: int | None = MAX_RETRIES) -> RetryHeartbeatStaleTrialCallback:
    """Optuna's own way to queue a lost trial again, with the same parameters and attributes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return RetryHeartbeatStaleTrialCallback(max_retry=limit)


def open_storage(storage: str, *, create: bool = True) -> BaseStorage:
    """An Optuna storage.

    Args:
        storage: `sqlite:///FILE` or another database's URL; `redis://…`; or the path of a journal file.
        create: make the SQLite or journal file when there is none.

    Raises:
        SpecError: not a storage.
        BundleError: it cannot be opened, is damaged, or is missing though `create` is False.
        MissingDependencyError: the database's driver is not installed.
    """
    storage = absolute_storage(storage)
    check_storage(storage)
    scheme, sign, rest = storage.partition("://")
    if not sign:
        return _journal(Path(storage), create)
    if scheme in REDIS:
        return JournalStorage(_redis(storage))
    if scheme == "sqlite":
        _check_file(Path(rest.removeprefix("/")), create)
    return _database(storage)


def without_password(storage: str) -> str:
    """The storage without its password, for messages and files."""
    try:
        return make_url(storage).render_as_string(hide_password=True) if "://" in storage else storage
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        return storage.partition("://")[0] + "://…"


def _database(url: str) -> RDBStorage:
    sqlite = url.startswith("sqlite")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return RDBStorage(
                url,
                engine_kwargs={"connect_args": {"timeout": LOCK_WAIT_S}} if sqlite else {"pool_pre_ping": True},
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=retry(),
            )
    except (ImportError, NoSuchModuleError) as error:
        package = _DRIVERS.get(make_url(url).get_backend_name(), "the database's driver")
        raise MissingDependencyError(
            f"storage: {without_password(url)} needs its driver; pip install {package}"
        ) from error
    except ArgumentError as error:
        raise SpecError(f"storage: {without_password(url)} is no database URL; give {ALLOWED}") from error
    except (SQLAlchemyError, RuntimeError, ValueError) as error:  # RuntimeError: written by another Optuna
        reason = str(error).splitlines()[0]
        raise BundleError(f"storage: {without_password(url)} cannot be used ({reason:.150})") from error


def _journal(path: Path, create: bool) -> JournalStorage:
    """A journal file; whoever may write to it mends it first."""
    _check_file(path, create)
    if create and path.exists():
        mend_journal(path)
    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except (ValueError, KeyError) as error:
        raise BundleError(
            f"storage: {path} is no journal, or damaged ({error!s:.100}); `routespace search` mends what a killed "
            f"worker left in it"
        ) from error


def _redis(url: str) -> JournalRedisBackend:
    try:
        redis: Any = importlib.import_module("redis")
    except ImportError as error:
        raise MissingDependencyError(f"storage: {without_password(url)} needs redis; pip install redis") from error
    try:
        redis.Redis.from_url(url).ping()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return JournalRedisBackend(url)
    except (redis.RedisError, ValueError) as error:  # ValueError: no such URL
        raise BundleError(f"storage: {without_password(url)} cannot be used ({error!s:.150})") from error


def _check_file(path: Path, create: bool) -> None:
    if path.is_dir():
        raise SpecError(f"storage: {path} is a folder; give a file in it, such as {path / DATABASE}")
    if not path.exists():
        if not create:
            raise BundleError(f"storage: {path} does not exist; give a study's folder or storage URL")
        make_folder(path.parent)
    if create and not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BundleError(f"storage: {path} cannot be written; choose another place")


def make_folder(folder: Path) -> None:
    """Make a folder and its parents; raises BundleError when that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"{folder}: cannot be made ({error.strerror}); choose another folder") from error


class Turn:
    """One worker at a time looks at the study and takes a trial: workers with one folder never take the same.

    Taken when made; `release` may be called more than once, and before the `with` block ends.
    """

    def __init__(self, out: Path) -> None:
        self._lock = FileLock(out / TURN_FILE)
        self._lock.acquire(poll_interval=0.02)

    def release(self) -> None:
        """Let the next worker look."""
        self._lock.release(force=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Worker:
    """This process as a worker of a study.

    Attributes:
        name: host and a unique word; a trial keeps it while it runs.
    """

    def __init__(self, out: Path) -> None:
        self._folder = out / WORKERS
        make_folder(self._folder)
        word = uuid.uuid4().hex[:12]
        self.name = f"{socket.gethostname()}/{word}"
        self._lock = FileLock(self._folder / f"{word}.lock")
        self._lock.acquire()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release(force=True)
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def is_dead(self, name: Any) -> bool:
        """Whether the worker of that name certainly lives no more; of other machines nothing is certain."""
        host, _, word = str(name).partition("/")
        path = self._folder / f"{word}.lock"
        if host != socket.gethostname() or not word.isalnum() or not path.exists():
            return False
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        lock.release(force=True)
        path.unlink(missing_ok=True)
        return True
