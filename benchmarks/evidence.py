"""Where routing wins and where it does not: networks of equal MACs, equal steps and equal time, on small objects.

    python benchmarks/evidence.py digits [--seeds 0 1 2] [--ratios .3 .5 .7] [--lines dense routed …] [--out DIR]
    python benchmarks/evidence.py stamps --data runs/stamps_data          about half an hour each on one core
    python benchmarks/evidence.py b0 --data runs/stamps_data --seeds 0 --ratios .5     on a GPU; b1 likewise
    python benchmarks/evidence.py --rehearse                              every line, tiny, in a minute or two
    python benchmarks/evidence.py digits --test                           once, at the end: the test split

`evidence_lines/lines.py` says what the lines are. Everybody starts on a small canvas with large objects and takes
the same number of steps; `longer` gives the best plain network the routed one's time. On a CPU seconds are those
of the processor, so that other work on the machine does not lengthen them. Accuracies are of validation
scenes until `--test`, which evaluates every finished line on the test split; it chose nothing. `speed` is the time
of the dense network over that of the line, both in turns, one thread, a batch of validation images (of the line's
own size); `counted` is the same by MACs. The stamps come from `data_stamps.py`; without --data, handwritten digits
are composed in their place. A line that is finished is not trained again, one that was interrupted goes on; after
`--seconds` no new line begins.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from evidence_lines.arenas import Arena, digits, rehearsal, stamps, stamps_gpu
from evidence_lines.lines import LINES, ONCE, Setting, accuracy_on, network, recipe_of
from evidence_lines.oracle import held_out
from record import record

from routespace.errors import RoutespaceError
from routespace.files import read_json, write_json
from routespace.memory import keep_freed_memory
from routespace.nn.running import now
from routespace.nn.task_net import TaskNet
from routespace.train.controls import oracle_routes
from routespace.train.data.loaders import make_loaders

ARENAS = ("digits", "stamps", "b0", "b1")
TIMED_ROUNDS, WARM_UP, TIMED_IMAGES = 9, 2, 32
HEADER = "line        ratio    MMACs  steps  first s   own s  speed counted        val %       test %  seeds"


def arena_of(name: str | None, data: Path | None) -> Arena:
    """The arena of a name."""
    if name in ("b0", "b1"):
        return stamps_gpu(data, name)
    if name == "stamps":
        return stamps(data)
    return digits() if name == "digits" else rehearsal()


def settings_of(arena: Arena, arguments: argparse.Namespace) -> Iterator[tuple[Setting, str]]:
    """Every line of every seed and share of the MACs, in the order in which they are trained."""
    out = arguments.out / arena.name
    for seed in arguments.seeds:
        for number, ratio in enumerate(arguments.ratios):
            for line in arguments.lines:
                if line not in ONCE or number == 0:
                    yield Setting(arena, seed, 1.0 if line in ONCE else ratio, out), line


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def speed_of(setting: Setting, row: dict[str, Any]) -> float:
    """Time of the dense network over that of a line's, medians of both in turns."""
    device = torch.device(setting.arena.device)
    net, whole = network(setting, row).to(device), dense_net(setting).to(device)
    images = next(iter(make_loaders(setting.plain, kind=setting.loaders).val))[0][:TIMED_IMAGES].to(device)
    own, given = images, {}
    if row["line"] == "oracle":
        own, _, objects = next(held_out(setting.recipe, "val", device))
        own, objects = own[:TIMED_IMAGES], objects[:TIMED_IMAGES]
        given = {"routes": oracle_routes(net, own, objects, around_px=row["around_px"])}
    elif recipe_of(setting, row).grid.image_size != setting.plain.grid.image_size:
        own = next(iter(make_loaders(recipe_of(setting, row), kind=setting.loaders).val))[0][:TIMED_IMAGES].to(
            device
        )
    taken: dict[str, list[float]] = {"dense": [], "line": []}
    with one_thread():
        for turn in range(-WARM_UP, TIMED_ROUNDS):
            for name, model, fed, options in (("dense", whole, images, {}), ("line", net, own, given)):
                start = now(device)
                model.decide(execution="auto")(fed, **options)
                if turn >= 0:
                    taken[name].append(now(device) - start)
    return statistics.median(taken["dense"]) / statistics.median(taken["line"])


def dense_net(setting: Setting) -> TaskNet:
    """The dense network of a seed; fresh where it was not trained: the time is the same."""
    first = Setting(setting.arena, setting.seed, 1.0, setting.out)
    if (first.folder("dense") / "net").exists():
        return network(first, {"line": "dense"})
    return TaskNet.classifier(setting.plain.architecture()).eval()


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds, in percent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):5.1f} ± {100 * deviation:3.1f}"


def show(rows: list[dict[str, Any]]) -> None:
    """Means over seeds, a line for each network and share of the MACs."""
    print(f"\n{HEADER}")
    for line, ratio in dict.fromkeys((row["line"], row["ratio"]) for row in rows):
        some = [row for row in rows if (row["line"], row["ratio"]) == (line, ratio)]
        mean = {name: statistics.mean(row.get(name) or 0 for row in some) for name in NUMBERS}
        val, test = spread([row["accuracy"] for row in some]), [row["test"] for row in some if "test" in row]
        print(
            f"{line:<11} {ratio:5.2f} {mean['macs'] / 1e6:8.3f} {mean['steps']:6.0f} {mean['first_s']:8.1f} "
            f"{mean['own_s']:7.1f} {mean['speed']:6.2f} {mean['counted']:7.2f} "
            f"{val:>12} {spread(test) if test else '–':>12}  {len(some)}",
            flush=True,
        )


NUMBERS = ("macs", "steps", "first_s", "own_s", "speed", "counted")


def one(setting: Setting, line: str) -> dict[str, Any]:
    """Train a line unless that is done, and measure how fast it is."""
    row = LINES[line](setting)
    if "speed" not in row:
        row["speed"] = speed_of(setting, row)
        row["counted"] = setting.recipe.base_macs() / row["macs"]
        write_json(setting.out / f"{setting.folder(line).name}.json", row)
    return row


def tested(rows: list[tuple[Setting, dict[str, Any]]], told: Path) -> None:
    """Evaluate every line on the test split, once: what is in the file is not looked at again."""
    found: dict[str, float] = read_json(told, wanted="what this script wrote") if told.exists() else {}
    for setting, row in rows:
        name = setting.folder(row["line"]).name
        if name not in found:
            found[name] = accuracy_on(setting, row, "test")
            write_json(told, found)
        row["test"] = found[name]


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arena", nargs="?", choices=ARENAS)
    parser.add_argument("--data", type=Path, help="what benchmarks/data_stamps.py wrote")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--lines", nargs="+", choices=list(LINES), default=list(LINES), metavar="LINE")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no new line begins")
    parser.add_argument("--test", action="store_true", help="the test split, of every line; once, at the end")
    parser.add_argument("--rehearse", action="store_true", help="every line, tiny, on the CPU")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    arguments = parser.parse_args()
    if not arguments.rehearse and arguments.arena is None:
        parser.error("give an arena, or --rehearse")
    if arguments.rehearse:
        arguments.arena, arguments.seeds, arguments.ratios, arguments.test = None, [0], [0.6], True
    arena, start = arena_of(arguments.arena, arguments.data), time.monotonic()
    if arena.device == "cuda" and not torch.cuda.is_available():
        sys.exit("evidence.py: no GPU that torch can use; --rehearse runs every line on the CPU")
    done: list[tuple[Setting, dict[str, Any]]] = []
    for setting, line in settings_of(arena, arguments):
        if time.monotonic() - start > arguments.seconds:
            print(f"{line} {setting.ratio:g} {setting.seed}: skipped, the time is up", flush=True)
            continue
        try:
            done.append((setting, one(setting, line)))
        except RoutespaceError as error:  # a share that a line cannot reach; the others go on
            print(f"{line} {setting.ratio:g} {setting.seed}: {error}", flush=True)
            continue
        row = done[-1][1]
        print(f"seed {row['seed']}, {line} at {row['ratio']:g}: {100 * row['accuracy']:.1f} %", flush=True)
    if arguments.test:
        tested(done, arguments.out / arena.name / "tested.json")
    show([row for _, row in done])
    record(
        arguments.out / f"evidence_{arena.name}.json",
        arena.device,
        {"what": "evidence", "arena": arena.name, "rows": [row for _, row in done]},
    )


if __name__ == "__main__":
    main()
