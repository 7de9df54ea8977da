"""Keeping freed memory in the process, where glibc would give it back and fetch it again page by page.

A forward pass on a CPU frees and allocates the same large maps again and again. By default glibc unmaps them at
every free, which can double the time of a fine map. This is a setting of the whole process, so a program chooses
it: the command line and the benchmarks do, the library never does by itself.
"""

from __future__ import annotations

import ctypes
import sys

# mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
MOST = 2**31 - 1  # bytes at the top of the heap that are kept; mallopt takes an int


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed; False where the C library is another one, and nothing changes.

    Large allocations that were made before stay as they are, so call it first.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, MOST))
