"""The malloc setting: taken where glibc is there, and nothing else changes."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import resource, sys
from routespace.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    block = bytearray(32 << 20)  # written to: bytearray fills it with zeros
    block[::4096] = b"x" * len(block[::4096])
    del block
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> tuple[str, int]:
    done = subprocess.run([sys.executable, "-c", CODE, mode], capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept, int(count)


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(), reason="counts small pages")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_used_again_without_new_pages():
    kept, few = faults("keep")
    if kept == "False":
        pytest.skip("another C library")
    assert few < faults("leave")[1] / 4
