"""Work in several processes at a time: each piece in one of them, those that need others after them.

    with Crew(4, logs=out / "logs") as crew:
        for ended in crew.run(tasks, until=time.monotonic() + 600):
            ...

What fails is told, and the others go on. When the time is up, what runs is asked to stop (a training writes its
checkpoint), and what has not begun is told as skipped.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from routespace.memory import keep_freed_memory

GRACE_S = 8.0  # from being asked to stop until a process is ended
POLL_S = 3600.0  # a wait has to have an end


@dataclass(frozen=True)
class Task:
    """A piece of work.

    Attributes:
        name: told, and the name of its log.
        call: of a function of a module, with arguments that can be sent to another process.
        after: names of the tasks that it needs.
    """

    name: str
    call: Callable[[], Any]
    after: tuple[str, ...] = ()


class Ended(NamedTuple):
    """How a task ended: with a result, or with what went wrong, in a line."""

    task: Task
    result: Any = None
    error: str | None = None


class _Worker:
    """A process that does one task after another."""

    def __init__(self, logs: Path) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, logs), daemon=True)
        self.process.start()
        theirs.close()  # so that its end shows here
        self.task: Task | None = None

    def begin(self, task: Task) -> None:
        self.task = task
        self.pipe.send(task)

    def end(self) -> Ended:
        """What it says of its task, or that it ended without a word."""
        task, self.task = self.task, None
        assert task is not None
        try:
            result, error = self.pipe.recv()
        except (EOFError, OSError):  # it ended, with or without having read all that it was sent
            self.process.join()
            return Ended(task, error=f"its process ended with code {self.process.exitcode}")
        return Ended(task, result, error)

    def stop(self) -> None:
        """Ask it to end: what it does is stopped, and nothing comes after that."""
        if self.task is not None:
            self.process.terminate()
        with contextlib.suppress(BrokenPipeError):
            self.pipe.send(None)


class Crew:
    """Processes that share tasks.

    Args:
        jobs: how many.
        logs: a folder; what a task prints is in a file of its name.
    """

    def __init__(self, jobs: int, logs: Path) -> None:
        self._jobs, self._logs = jobs, logs
        self._workers: list[_Worker] = []

    def __enter__(self) -> Crew:
        self._logs.mkdir(parents=True, exist_ok=True)
        self._workers = [_Worker(self._logs) for _ in range(self._jobs)]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()
        end = time.monotonic() + GRACE_S
        for worker in self._workers:
            worker.process.join(max(0.0, end - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def run(self, tasks: Sequence[Task], until: float = float("inf")) -> Iterator[Ended]:
        """Do tasks in their order, as far as those that they need have ended; tell each when it ends.

        Args:
            tasks: all of them, with names of their own.
            until: by `time.monotonic`; what runs then is stopped.
        """
        waiting, good, bad = list(tasks), set[str](), set[str]()
        while waiting or any(worker.task for worker in self._workers):
            for task in [task for task in waiting if bad.intersection(task.after)]:
                waiting.remove(task)
                bad.add(task.name)
                yield Ended(task, error=f"needs {', '.join(sorted(bad.intersection(task.after)))}, which failed")
            if time.monotonic() >= until:
                yield from self._out_of_time(waiting)
                return
            self._hand_out(waiting, good)
            for ended in self._some(until - time.monotonic()):
                (good if ended.error is None else bad).add(ended.task.name)
                yield ended

    def _hand_out(self, waiting: list[Task], good: set[str]) -> None:
        for worker in self._workers:
            ready = next((task for task in waiting if good.issuperset(task.after)), None)
            if worker.task is None and ready is not None:
                waiting.remove(ready)
                worker.begin(ready)

    def _some(self, seconds: float) -> list[Ended]:
        """Those that end next, within so many seconds; a process that died has a new one in its place."""
        busy = {worker.pipe: place for place, worker in enumerate(self._workers) if worker.task is not None}
        found = []
        for pipe in wait(list(busy), timeout=max(0.0, min(seconds, POLL_S))):
            assert isinstance(pipe, Connection)
            place = busy[pipe]
            found.append(self._workers[place].end())
            if not self._workers[place].process.is_alive():
                self._workers[place] = _Worker(self._logs)
        return found

    def _out_of_time(self, waiting: list[Task]) -> Iterator[Ended]:
        running = [worker for worker in self._workers if worker.task is not None]
        for worker in running:
            worker.stop()
        end = time.monotonic() + GRACE_S
        for worker in running:
            task = worker.task
            assert task is not None
            if worker.pipe.poll(max(0.0, end - time.monotonic())):
                ended = worker.end()
                yield ended if ended.error is None else Ended(task, error="stopped, the time is up")
            else:
                worker.process.kill()
                worker.task = None
                yield Ended(task, error="stopped, the time is up")
        for task in waiting:
            yield Ended(task, error="skipped, the time is up")
        waiting.clear()


def _serve(pipe: Connection, logs: Path) -> None:
    """A worker's life."""
    keep_freed_memory()
    torch.set_num_threads(1)  # the others have the other cores
    while True:
        try:
            task = pipe.recv()
            if task is None:
                return
            with (
                (logs / f"{task.name}.log").open("a", buffering=1) as log,
                contextlib.redirect_stdout(log),
                contextlib.redirect_stderr(log),
            ):
                answer = _answer(task)
            pipe.send(answer)
        except (EOFError, BrokenPipeError, KeyboardInterrupt):  # the script has ended, or is told to, as this is
            return


def _answer(task: Task) -> tuple[Any, str | None]:
    """A task's result, or what went wrong; whatever it is, the others go on."""
    try:
        return task.call(), None
    except Exception as error:
        traceback.print_exc()
        return None, " ".join(str(error).split()) or type(error).__name__
