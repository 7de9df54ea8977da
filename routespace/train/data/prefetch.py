"""A thread that makes the next batches while the current one trains."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any

AHEAD = 2  # batches made in advance: enough to hide one slow batch


class Prefetch(Iterable[Any]):
    """Iterate `loader` in a thread, two batches ahead; an exception in it is raised where batches are read."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        ready: queue.Queue[tuple[str, Any]] = queue.Queue(AHEAD)
        stop = threading.Event()
        thread = threading.Thread(target=_fill, args=(self.loader, ready, stop), daemon=True)
        thread.start()
        try:
            while True:
                kind, item = ready.get()
                if kind == "batch":
                    yield item
                elif kind == "error":
                    raise item
                else:
                    return
        finally:
            stop.set()
            while thread.is_alive():  # it may be waiting to hand a batch over
                try:
                    ready.get(timeout=0.01)
                except queue.Empty:
                    thread.join(0.01)


def _fill(loader: Iterable[Any], ready: queue.Queue[tuple[str, Any]], stop: threading.Event) -> None:
    try:
        for batch in loader:
            ready.put(("batch", batch))
            if stop.is_set():
                return
        ready.put(("end", None))
    except Exception as error:
        ready.put(("error", error))
