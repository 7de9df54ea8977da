"""One table of what a GPU does: inference, routing, graphs, training, a supernet, latency tables and memory.

    python benchmarks/gpu.py [--seconds 420] [--out benchmarks/results] [--lines dense routing …]
    python benchmarks/gpu.py --rehearse [--no-compile]     on the CPU and tiny: every line runs, no number counts

Half precision (bf16) throughout; training in autocast with AdamW. All runs of a line take turns; times are medians
of CUDA events. A routed run replays random decisions with a known share of tokens kept, new ones in each call;
`capacity` decides for itself, inside its CUDA graph.

Beside each time stand two floors: the least time by bytes and by operations that the same work could take at the
card's own ceilings, which are measured first (a copy, and a large bf16 product). A routed run's work is the dense
one's by its share of the counted MACs; the bytes are those of products, convolutions and attentions alone.

Each line's rows are printed and written when they are there. A line that fails is told of with its traceback, and
the others go on, in a new process where the GPU is in no state to. After `--seconds` what is left is skipped.
`--cache FILE` keeps what torch has compiled in a file, for a later run on such a card.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gpu_lines.clock import ceilings, is_fatal, release, short
from gpu_lines.line import Ceilings, Row, Setting
from gpu_lines.lines import LINES
from record import record

from routespace.deploy.latency.device import this_device
from routespace.memory import keep_freed_memory

SECONDS = 420
GRACE_S = 20  # that a line may go on for after the time is up
RESULTS = Path(__file__).parent / "results"


class OutOfTimeError(BaseException):
    """The time is up; no `except Exception` of a compiler takes it for an error of its own."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"in all (default {SECONDS})")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--lines", nargs="+", choices=LINES, default=list(LINES), metavar="LINE")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--cache", type=Path, help="file of compiled kernels, read and written")
    parser.add_argument("--kernels", type=Path, help="also write which kernels take the time of each run")
    parser.add_argument("--no-compile", action="store_true", help="eager alone: starts in seconds")
    parser.add_argument("--rehearse", action="store_true", help="every line, tiny, on the CPU")
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)  # of the process that this one goes on for
    return parser.parse_args()


def main() -> None:
    """Measure everything that was asked for."""
    args = arguments()
    began = args.began or time.time()
    if not args.rehearse and not torch.cuda.is_available():
        sys.exit("gpu.py: no GPU that torch can use; --rehearse runs every line on the CPU")
    keep_freed_memory()
    torch.manual_seed(0)
    setting = Setting(
        torch.device("cpu" if args.rehearse else "cuda"),
        rehearse=args.rehearse,
        compiled=not args.no_compile,
        rounds=1 if args.rehearse else args.rounds,
        kernels=args.kernels,
    )
    card = "rehearsal" if args.rehearse else this_device(torch.device("cuda"), 1).name
    path = args.out / f"gpu_{re.sub('[^a-z0-9]+', '_', card.lower())}.json"
    if args.cache and args.cache.exists():
        torch.compiler.load_cache_artifacts(args.cache.read_bytes())
    found = json.loads(path.read_text()) if args.began else {"what": "gpu", "dtype": "bf16", "lines": {}}
    best = ceilings(setting)
    found["ceilings"] = asdict(best)
    copied, multiplied = best.bytes_per_s / 1e12, best.flops_per_s / 1e12
    print(f"{card}, torch {torch.__version__}: copy {copied:.2f} TB/s, bf16 product {multiplied:.0f} TFLOP/s")
    print(HEADER, flush=True)
    for number, name in enumerate(args.lines):
        left = args.seconds - (time.time() - began)
        found["lines"][name], fatal = run_line(name, setting, best, left)
        record(path, setting.device.type, found)
        if args.cache and (kept := torch.compiler.save_cache_artifacts()):
            args.cache.write_bytes(kept[0])
        release()
        if fatal:
            go_on(args, args.lines[number + 1 :], began)
    print(f"\n{time.time() - began:.0f} s; {path}")


def run_line(name: str, setting: Setting, best: Ceilings, left: float) -> tuple[dict[str, Any], bool]:
    """A line's record, and whether the device is lost."""
    if left <= 0:
        print(f"{name}: skipped, the time is up", flush=True)
        return {"skipped": True}, False
    print(f"{name}:", flush=True)
    start = time.perf_counter()
    try:
        with limited(left + GRACE_S):
            rows = LINES[name](setting)
    except (Exception, OutOfTimeError) as error:
        traceback.print_exc()
        print(f"  failed after {time.perf_counter() - start:.0f} s: {short(error)}", flush=True)
        return {"error": short(error), "seconds": time.perf_counter() - start}, is_fatal(error)
    for row in rows:
        print(told(row, best), flush=True)
    seconds = time.perf_counter() - start
    print(f"  ({seconds:.0f} s)", flush=True)
    return {"seconds": seconds, "rows": [as_json(row, best) for row in rows]}, False


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """A block that ends with OutOfTimeError when it has taken so long."""

    def end(*_: object) -> None:
        raise OutOfTimeError(f"it did not end within the {seconds:.0f} s that were left")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def go_on(args: argparse.Namespace, lines: list[str], began: float) -> None:
    """Run the lines that are left in a new process in place of this one."""
    if not lines:
        return
    print("the GPU is in no state to go on with; a new process takes over", flush=True)
    options = ["--seconds", str(args.seconds), "--rounds", str(args.rounds), "--out", str(args.out)]
    options += ["--cache", str(args.cache)] if args.cache else []
    options += ["--kernels", str(args.kernels)] if args.kernels else []
    options += ["--no-compile"] * args.no_compile + ["--began", str(began)]
    os.execv(sys.executable, [sys.executable, str(Path(__file__)), *options, "--lines", *lines])


HEADER = f"  {'':40s} {'ms':>9s} {'images/s':>9s} {'bytes ms':>9s} {'flops ms':>9s} {'MB':>8s}  speed-up and goal"


def told(row: Row, best: Ceilings) -> str:
    """A row of the table."""
    if row.ms is None:
        return f"  {row.name:40s} failed: {row.error}"
    floors = "        –         –"
    if row.work is not None:
        floors = " ".join(f"{ms:9.3f}" for ms in best.floors_ms(row.work))
    memory = "       –" if row.memory_mb is None else f"{row.memory_mb:8.0f}"
    notes = []
    if row.speedup is not None:
        notes.append(f"{row.speedup:.3f} × {row.against}")
    notes += [f"{name} {value:.3g}" for name, value in row.numbers.items()]
    notes += [f"(goal {name} {value:g})" for name, value in row.goal.items()]
    return f"  {row.name:40s} {row.ms:9.3f} {row.images_per_s:9.0f} {floors} {memory}  {' '.join(notes)}"


def as_json(row: Row, best: Ceilings) -> dict[str, Any]:
    """A row as it is written."""
    found = {key: value for key, value in asdict(row).items() if value not in (None, {})}
    if row.work is not None:
        found["floors_ms"] = dict(zip(("bytes", "flops"), best.floors_ms(row.work), strict=True))
    if row.ms:
        found["images_per_s"] = row.images_per_s
    return found


if __name__ == "__main__":
    main()
