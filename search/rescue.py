"""What goes wrong around a trial: interruptions, killed workers, failing databases.

recover, queue_again      a lost trial is queued again, with the same values and in the same folder
retry_failed              so are failed ones, which start anew
sigterm_interrupts        SIGTERM arrives as KeyboardInterrupt
quiet, usable             Optuna's messages as records and as one line
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from types import FrameType
from typing import NoReturn

import optuna
from optuna.exceptions import ExperimentalWarning, OptunaError, StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from routespace.errors import BundleError
from routespace.search.sampler import retried
from routespace.search.storage import GRACE_S, Worker, retry, without_password
from routespace.search.trial import Attr


def recover(study: optuna.Study, worker: Worker) -> None:
    """Queue again what killed workers left running: those of this machine at once, others by heartbeat."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner = trial.user_attrs.get(Attr.WORKER)
        # Without an owner: killed between taking and signing it, or about to sign it elsewhere.
        if age_s(trial.datetime_start) > GRACE_S if owner is None else worker.is_dead(owner):
            _fail(study, trial.number)
            retry()(study, study.get_trials(deepcopy=False)[trial.number])


def age_s(start: datetime | None, now: datetime | None = None) -> float:
    """Seconds since `start`; 0 where there is none.

    Optuna gives a trial's start as local time without a zone. Two such times may not be subtracted: when the
    clocks are put forward, a trial of a moment ago would be an hour old, and given to another worker.
    """
    return 0.0 if start is None else ((now or datetime.now(UTC)) - start.astimezone(UTC)).total_seconds()


def queue_again(study: optuna.Study, number: int | None) -> None:
    """After an interruption: the trial in hand shall be taken up again, however often it is interrupted."""
    if number is None:
        return
    with contextlib.suppress(OptunaError, SQLAlchemyError):  # the interruption itself must get through
        trial = study.get_trials(deepcopy=False)[number]
        if trial.state == TrialState.RUNNING:
            _fail(study, number)
        if trial.state in (TrialState.RUNNING, TrialState.FAIL):
            retry(None)(study, study.get_trials(deepcopy=False)[number])


def retry_failed(study: optuna.Study) -> None:
    """Queue again what failed in earlier calls: the user has seen why, and may have mended it.

    A trial that killed its worker raised nothing: it is not taken up here, or it would kill every next worker.
    """
    trials = study.get_trials(deepcopy=False)
    lost = retried(trials)
    for trial in trials:
        failed = trial.state == TrialState.FAIL and trial.number not in lost
        if failed and trial.user_attrs.get(Attr.REASON) is not None:
            retry(None)(study, trial)


def _fail(study: optuna.Study, number: int) -> None:
    study.tell(number, state=TrialState.FAIL, skip_if_finished=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Optuna logs every failed trial with its traceback; here failures are records, and progress tells them."""

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    handlers = list(
        logging.getLogger("optuna").handlers
    )  # not its level: workers in threads would restore it wrongly
    for handler in handlers:
        handler.addFilter(is_error)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_error)


@contextlib.contextmanager
def usable(url: str) -> Iterator[None]:
    """Errors of a database or of the study's folder (full disk, lost connection) as one line."""
    try:
        yield
    except (OptunaError, SQLAlchemyError, OSError, AssertionError) as error:
        # A trial that cannot be told of ends in an assertion of Optuna's, which hides what the storage said.
        said = error.__context__ if isinstance(error, AssertionError) else error
        if said is None or (said is not error and not isinstance(said, StorageInternalError)):
            raise
        cause = said.__cause__ or said
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise BundleError(
            f"storage: {without_password(url)} failed ({reason:.200}); the study can be resumed"
        ) from error


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Batch systems stop a job with SIGTERM: treat it as Ctrl-C. Only a main thread may say so.

    A program that handles it, as the command line does, goes on to.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    ):
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt("SIGTERM")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
