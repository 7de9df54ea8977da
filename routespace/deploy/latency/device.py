"""Which processor or card a measurement is of, with how many threads, and whether this is another one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from routespace.errors import SpecError
from routespace.values import Value


class MeasuredDevice(Value):
    """What was measured on.

    Args:
        kind: `cpu` or `cuda`.
        name: the processor's or the card's.
        threads: of torch on a CPU while it was measured, else 0.
        versions: package → version.
    """

    kind: Literal["cpu", "cuda"]
    name: str
    threads: Annotated[int, Field(ge=0)] = 0
    versions: Mapping[str, str]


def this_device(device: torch.device, threads: int) -> MeasuredDevice:
    """The device that would be measured now; `threads` are of torch on a CPU."""
    found = {"torch": str(torch.__version__)}
    if device.type == "cuda":
        name, versions = torch.cuda.get_device_name(device), found | {"cuda": torch.version.cuda or ""}
        return MeasuredDevice(kind="cuda", name=name, versions=versions)
    return MeasuredDevice(kind="cpu", name=_cpu_name(), threads=threads, versions=found)


def check_threads(count: int) -> None:
    """Raise SpecError for more threads than this machine has cores: they would wait for each other."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    if count > cores:
        raise SpecError(f"threads: {count} are more than the {cores} cores of this machine; give at most {cores}")


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """So many threads for torch; as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"


def device_differences(device: MeasuredDevice) -> list[str]:
    """What differs between a measured device and this machine, one line each; empty when nothing does.

    Name and versions are compared. Threads are not: they are a setting of the measurement, like the batch, chosen
    for where the network will run. The process that reads a table to plan by it mostly has others (torch takes
    every core, `profile` one thread), so comparing them would warn nearly always.
    """
    if device.kind == "cuda" and not torch.cuda.is_available():
        return [f"device: the table is of {device.name}; this machine has no CUDA device"]
    here = this_device(torch.device(device.kind), device.threads)
    found = []
    if here.name != device.name:
        found.append(f"device: the table is of {device.name}, this is {here.name}")
    for package, version in sorted(here.versions.items()):
        if device.versions.get(package) != version:
            found.append(f"{package}: the table is of {device.versions.get(package)}, this is {version}")
    return found
