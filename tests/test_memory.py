"""The malloc setting, taken where glibc is there; and how much memory is free."""

import subprocess
import sys
from pathlib import Path

import pytest

from routespace.memory import bytes_text, free_bytes

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


def files(root: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"meminfo": "MemTotal: 9000 kB\nMemAvailable:    4000 kB\n"}
V2 = {"self/cgroup": "0::/pod/box\n"}
V1 = {"self/cgroup": "9:cpu:/\n4:memory:/pod/box\n0::/\n"}


@pytest.mark.parametrize(
    ("proc", "groups", "wanted"),
    [
        ({}, {}, 4_096_000),  # no groups at all
        (V2, {"pod/box/memory.max": "max\n", "pod/box/memory.current": "5"}, 4_096_000),
        (V2, {"pod/box/memory.max": "1000\n", "pod/box/memory.current": "300\n"}, 700),
        (V2, {"pod/memory.max": "500", "pod/memory.current": "100", "pod/box/memory.max": "max"}, 400),
        (V2, {"memory.max": "1000", "memory.current": "900", "memory.stat": "anon 5\ninactive_file 250\n"}, 350),
        (V1, {"memory/memory.limit_in_bytes": "800", "memory/memory.usage_in_bytes": "300"}, 500),
        (
            V1,
            {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "1"},
            4_096_000,
        ),
        (V2, {"pod/box/memory.max": "100", "pod/box/memory.current": "300"}, 0),
    ],
)
def test_free_memory_keeps_to_the_limits_of_containers(tmp_path, proc, groups, wanted):
    proc, groups = files(tmp_path / "proc", MEMINFO | proc), files(tmp_path / "groups", groups)
    assert free_bytes(proc, groups) == wanted


def test_bytes_for_people():
    assert [bytes_text(count) for count in (12, 2050, 3.1e6, 1.284e9)] == ["12 B", "2.05 kB", "3.1 MB", "1.28 GB"]


def test_free_memory_of_this_machine():
    assert 0 < free_bytes() < 1 << 50
