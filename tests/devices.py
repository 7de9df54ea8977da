"""Devices that a test runs on: the CPU always, a CUDA device where there is one (marked `gpu`).

A test that takes the fixture `device` runs on each, by the same code.
"""

from collections.abc import Callable

import pytest
import torch

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
)
DEVICES = ["cpu", CUDA]
SLOW_ON_A_CPU = [pytest.param("cpu", marks=pytest.mark.slow), CUDA]  # compilers take their time there


def recorded(run: Callable[[], torch.Tensor], device: torch.device) -> Callable[[], torch.Tensor]:
    """The call as a CUDA graph, to be replayed; on a CPU, which has none, the call itself."""
    if device.type != "cuda":
        return run
    run()  # compiles, which is no work for another stream
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay() -> torch.Tensor:
        graph.replay()
        return kept

    return replay
