"""In which mode a network is fastest here: everything computed and routed, eager and compiled, timed in turns.

times = mode_times(net, images, keeps=(0.5, 0.25))
times.best(0.5), times.ratio(0.5)                        # ("packed, compiled", 0.047), 0.61

What counts is the fastest way to run the routed network over the fastest way to run it with everything computed:
a mode that is compared with the same mode may look better than what somebody would otherwise run.

Shapes: B images · C channels · H, W pixels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from routespace.deploy.latency.device import check_threads, using_threads
from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.nn.families.base import Block
from routespace.nn.routing.deciding import Execution
from routespace.nn.routing.routes import Routes
from routespace.nn.running import as_input, evaluating, now
from routespace.nn.task_net import TaskNet

ROUNDS = 9
WARM_UP = 2  # calls of each mode that are not timed: they compile, and find their memory
Mode = tuple[float | None, str]  # share of tokens, None where everything is computed, and how
ROUTED: dict[str, Execution] = {"masked": "dense", "packed": "packed", "auto": "auto"}  # masked blocks stay eager


@dataclass(frozen=True)
class ModeTimes:
    """Median seconds of one forward pass of a batch.

    Attributes:
        whole: mode → seconds with everything computed.
        routed: share of tokens → mode → seconds; empty for a static network.
    """

    whole: Mapping[str, float]
    routed: Mapping[float, Mapping[str, float]]

    def best(self, keep: float | None = None) -> tuple[str, float]:
        """The fastest mode and its seconds, with everything computed or routed."""
        times = self.whole if keep is None else self.routed[keep]
        return min(times.items(), key=lambda item: item[1])

    def ratio(self, keep: float) -> float:
        """The fastest routed mode over the fastest one with everything computed."""
        return self.best(keep)[1] / self.best()[1]

    def as_data(self) -> dict[str, Any]:
        """As JSON data, in milliseconds, with the fastest modes by name."""
        routed = [
            {"keep": keep, "ms": _milliseconds(times), "best": self.best(keep)[0], "ratio": self.ratio(keep)}
            for keep, times in self.routed.items()
        ]
        return {"dense_ms": _milliseconds(self.whole), "best": self.best()[0], "routed": routed}


def _milliseconds(times: Mapping[str, float]) -> dict[str, float]:
    return {mode: 1e3 * seconds for mode, seconds in times.items()}


def mode_times(
    net: TaskNet,
    images: Tensor,
    *,
    keeps: Sequence[float] = (1.0, 0.5, 0.25),
    compiled: bool = True,
    rounds: int = ROUNDS,
    threads: int = 1,
    processor_time: bool = False,
) -> ModeTimes:
    """Time a network in each mode, in turns, so that what else the machine does hits all alike.

    Routed modes replay random decisions of a known share of tokens, other ones in each call, so that all modes
    compute the same. The gates themselves, which are less than a hundredth of most networks, are not asked.

    Args:
        net: the network; it is left as it was. A static one has no routed modes.
        images: (B, C, H, W); they are moved to the network's device and type.
        keeps: shares of tokens, windows or images that rows compute.
        compiled: time compiled blocks too, where the family has them: some minutes for a large network.
        rounds: timed turns of each mode, an odd number best.
        threads: torch's on a CPU; the number is restored afterwards.
        processor_time: the thread's own time, which a busy machine does not stretch, instead of the clock's.

    Raises:
        SpecError: an argument that is not allowed.
    """
    images, keeps = as_input(net, images), () if net.architecture.is_static else keeps
    if rounds < 1 or threads < 1:
        raise SpecError(f"rounds {rounds}, threads {threads}: give at least 1 of each")
    if images.device.type == "cpu":
        check_threads(threads)
    if processor_time and (images.device.type != "cpu" or threads > 1):
        raise SpecError("clock: cpu is for one thread on the CPU; use wall")
    if not all(0 < keep <= 1 for keep in keeps):
        raise SpecError(f"keep: {list(keeps)} is not allowed; give shares above 0, at most 1")

    def read() -> float:
        return time.thread_time() if processor_time else now(images.device)

    taken: dict[Mode, list[float]] = {}
    with evaluating(net), using_threads(threads), torch.inference_mode():
        calls = _calls(net, images, keeps, compiled=compiled, decisions=WARM_UP + rounds)
        for turn in range(-WARM_UP, rounds):
            for mode, call in calls.items():
                start = read()
                call()
                if turn >= 0:
                    taken.setdefault(mode, []).append(read() - start)
    medians = {mode: statistics.median(seconds) for mode, seconds in taken.items()}
    return ModeTimes(
        {name: seconds for (keep, name), seconds in medians.items() if keep is None},
        {share: {name: seconds for (keep, name), seconds in medians.items() if keep == share} for share in keeps},
    )


def _calls(
    net: TaskNet, images: Tensor, keeps: Sequence[float], *, compiled: bool, decisions: int
) -> dict[Mode, Callable[[], object]]:
    """(keep, mode) → one forward pass; views of the network with settings of their own."""
    can_compile = compiled and any(isinstance(part, Block) and part.has_compiled_steps for part in net.modules())
    calls: dict[Mode, Callable[[], object]] = {}

    def add(
        keep: float | None, name: str, architecture: Architecture, execution: Execution, *, on: bool = False
    ) -> None:
        model = net.restrict(architecture)  # its mode is the network's
        model.compile_blocks(on).decide(held=None, execution=execution)
        drawn = (
            [None] if keep is None else [Routes.random(model, images, keep=keep, seed=i) for i in range(decisions)]
        )
        routes = cycle(drawn)
        calls[keep, name] = lambda: model(images, routes=next(routes))

    whole = net.architecture.opened()
    add(None, "eager", whole, "dense")
    if can_compile:
        add(None, "compiled", whole, "dense", on=True)
    for keep in keeps:
        for name, execution in ROUTED.items():
            add(keep, name, net.architecture, execution)
            if can_compile and execution != "dense":
                add(keep, f"{name}, compiled", net.architecture, execution, on=True)
    return calls
