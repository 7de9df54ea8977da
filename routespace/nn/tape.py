"""Tapes: what was called on a device once, called again with other numbers in the same tensors.

A GPU runs the kernels of a small network in a tenth of the time in which Python calls them, one by one. A CUDA
graph calls all of them at once. Who records sees to it that only what tensors hold changes from call to call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

SAME = 3  # calls after which what is called counts as settled; the first ones also compile what has to be
T = TypeVar("T")


class Tape(Protocol):
    """Records what is called, to call it again with other numbers in the same tensors."""

    def live(self, call: Callable[[], T]) -> T:
        """Call it, where what is recorded runs."""
        ...

    def record(self, call: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """What a call gives, and how to call it again: the same tensors then hold what it gives.

        Nothing has been computed before the first replay.
        """
        ...


class CudaTape:
    """CUDA graphs that share their memory.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def live(self, call: Callable[[], T]) -> T:
        """See Tape. On a stream of its own: gradients are added up on the stream that they were first made on."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            found = call()
        current.wait_stream(self._stream)
        return found

    def record(self, call: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """See Tape; a thread that makes batches beside the training may go on meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            found = call()
        return found, graph.replay
