"""Lines side by side, each in a process of its own, until all are done or the time is up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from multiprocessing import get_context
from typing import Any

from routespace.errors import RoutespaceError
from routespace.memory import keep_freed_memory
from routespace.train.stopping import TrainingStoppedError
from task_lines.lines import Setting, one

Job = tuple[Setting, str]
LAST_WORDS = 12.0  # seconds of a training that is told to stop: it writes a checkpoint


def side_by_side(jobs: Sequence[Job], processes: int, seconds: float) -> None:
    """Train the lines that are not finished, the first ones first.

    When the time is up, trainings that still run are stopped: what they have so far is in their folders.

    Args:
        jobs: settings with their lines.
        processes: that train at the same time.
        seconds: of all of it, a start and a stop included.
    """
    context, end = get_context("spawn"), time.monotonic() + seconds
    waiting = context.Queue()
    for job in jobs:
        waiting.put(job)
    for _ in range(processes):
        waiting.put(None)
    workers = [context.Process(target=work, args=(waiting,)) for _ in range(min(processes, len(jobs)))]
    for worker in workers:
        worker.start()
    waiting.cancel_join_thread()  # jobs that nobody took any more must not hold this process
    for worker in workers:
        worker.join(max(0.0, min(end - time.monotonic(), 1e6)))
    for worker in workers:
        worker.terminate()
    last = time.monotonic() + LAST_WORDS
    for worker in workers:
        worker.join(max(0.0, last - time.monotonic()))
        worker.kill()
        worker.join()


def work(waiting: Any) -> None:
    """Train one line after the other; a line that cannot be trained is told of, and the next one begins."""
    keep_freed_memory()
    while (job := waiting.get()) is not None:
        setting, line = job
        name, start = setting.folder(line).name, time.monotonic()
        try:
            row = one(setting, line)
        except TrainingStoppedError as error:
            print(f"{name}: {error}", flush=True)
            return
        except RoutespaceError as error:
            print(f"{name}: {error}", flush=True)
            continue
        print(f"{name}: {100 * row['score']:.1f} % after {time.monotonic() - start:.0f} s", flush=True)
