"""The process's memory: keeping what was freed, and how much more there is.

keep_freed_memory()    glibc would give it back and fetch it again page by page
free_bytes()           of the machine, within a container's limit
bytes_text(count)      for people
told_shortage(error)   what to do about an error by which some library tells that there was too little

A forward pass on a CPU frees and allocates the same large maps again and again. By default glibc unmaps them at
every free, which can double the time of a fine map. This is a setting of the whole process, so a program chooses
it: the command line and the benchmarks do, the library never does by itself.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

# mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
MOST = 2**31 - 1  # bytes at the top of the heap that are kept; mallopt takes an int

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
KIB = 1024
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
UNLIMITED = 1 << 60  # version 1 writes a huge number where there is no limit
# How torch tells that memory ran out: on a CPU, on a GPU, in a GPU's library of products.
SHORTAGES = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
LOST_WORKER = "DataLoader worker (pid"  # how it tells that a process that loads images is no more


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed; False where the C library is another one, and nothing changes.

    Large allocations that were made before stay as they are, so call it first.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, MOST))


def free_bytes(proc: Path = PROC, groups: Path = GROUPS) -> int | None:
    """Bytes that this process may still take: what the machine has free, and what a container's limit leaves.

    Memory that only caches files counts as free. None where the system tells nothing.

    Args:
        proc: where Linux tells of processes.
        groups: where it tells of control groups, versions 1 and 2.
    """
    found = [amount for amount in (_machine_free(proc), _group_free(proc, groups)) if amount is not None]
    return min(found) if found else None


def told_shortage(error: BaseException) -> str | None:
    """A line for people on an error that tells of too little memory; None for any other error.

    torch has no one exception for that: what its allocators raise is a RuntimeError, told apart by its text.
    """
    text = str(error) if isinstance(error, RuntimeError) else ""
    if text.startswith(LOST_WORKER):
        return (
            "a process that loads images was killed or ended, as happens where (shared) memory is short; set "
            "data.workers to fewer, or 0 (also with --resume)"
        )
    if isinstance(error, MemoryError) or any(shortage in text for shortage in SHORTAGES):
        return (
            "not enough memory; use a smaller batch, image or grid, or set train.grad_checkpointing=true (also "
            "with --resume)"
        )
    return None


def _machine_free(proc: Path) -> int | None:
    for line in _lines(proc / "meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * KIB
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows; a system that does not know
        return None


def _group_free(proc: Path, groups: Path) -> int | None:
    """The least that the limits of this process's control group, and of those above it, leave."""
    left: list[int] = []
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = groups / "memory" if controllers else groups
        names = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        )
        # Inside a container the path is often the host's; the container's own group is then at the root.
        inner = Path(path.lstrip("/"))
        for group in (root / part for part in (inner, *inner.parents)):
            most, used = (_number(group / name) for name in names)
            if most is not None and most < UNLIMITED and used is not None:
                left.append(max(0, most - used + _cached(group)))
    return min(left) if left else None


def _cached(group: Path) -> int:
    """Bytes of a group that only cache files, and are given back when they are needed."""
    rows = dict(line.split(maxsplit=1) for line in _lines(group / "memory.stat") if " " in line)
    return int(rows.get("total_inactive_file", rows.get("inactive_file", 0)))


def _number(path: Path) -> int | None:
    text = next(iter(_lines(path)), "")
    return int(text) if text.isdecimal() else None  # `max`: no limit


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def bytes_text(count: float) -> str:
    """Bytes for people, such as 1.28 GB."""
    for size, unit in UNITS:
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"
