"""Where routing wins and where it does not: networks of equal MACs, equal steps and equal time, on small objects.

    python benchmarks/evidence.py digits [--seeds 0 1 2] [--ratios .3 .5 .7] [--lines dense routed …] [--out DIR]
    python benchmarks/evidence.py crops          small digits on large images, everybody by the same clock
    python benchmarks/evidence.py stamps --data runs/stamps_data          about half an hour each on one core
    python benchmarks/evidence.py stamp_crops --data runs/stamps_data     cut-outs in place of digits, by the clock
    python benchmarks/evidence.py b0 --data runs/stamps_data --seeds 0 --ratios .5     on a GPU; b1 likewise
    python benchmarks/evidence.py sparse --ratios .4 --jobs 11 --fit 150    on a GPU; sparse_b0 and digits_gpu too
    python benchmarks/evidence.py --rehearse [--jobs 2]                   every line, tiny, in a minute or two
    python benchmarks/evidence.py digits --test                           once, at the end: the test split

`evidence_lines/lines.py` says what the lines are. Everybody starts on a small canvas with large objects and takes
the same number of steps; `longer` gives the best plain network the routed one's time. On a CPU seconds are those
of the processor, so that other work on the machine does not lengthen them. Accuracies are of validation
scenes until `--test`, which evaluates every finished line on the test split; it chose nothing. `speed` is the time
of the dense network over that of the line, both in turns, one thread, a batch of validation images (of the line's
own size); `counted` is the same by MACs; `step ms` is a training step of the last phase, alone on the machine. The
stamps come from `data_stamps.py`; without --data, handwritten digits are composed in their place. A line that is
finished is not trained again, one that was interrupted goes on; after `--seconds` no new line begins.

With `--jobs` so many lines train side by side, each in a process, those that are worth most first; what a line
prints is in DIR/ARENA/logs. Small networks keep no GPU busy, so many share one. Seconds are no comparison then:
what is equal is the number of steps, and `step ms`, measured afterwards, tells what a step takes. After
`--seconds` running lines are stopped, and shown by their last checkpoint. `--fit` first trains side by side for a
moment, and then makes all trainings so long that each takes about so many seconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from crew import Crew, Task
from evidence_lines.arenas import (
    Arena,
    crops,
    digits,
    digits_gpu,
    rehearsal,
    sparse,
    sparse_b0,
    stamp_crops,
    stamps,
    stamps_gpu,
)
from evidence_lines.lines import LINES, NEEDS, ONCE, WORTH, Setting, accuracy_on
from evidence_lines.measure import paces, speed_of, step_ms
from evidence_lines.table import show, unfinished
from record import record
from stopping import until_stopped

from routespace.errors import RoutespaceError
from routespace.files import read_json, write_json
from routespace.memory import keep_freed_memory
from routespace.train.stopping import TrainingStoppedError

ARENAS: Mapping[str, Callable[[Path | None], Arena]] = {
    "digits": lambda data: digits(),
    "crops": lambda data: crops(),
    "stamps": stamps,
    "stamp_crops": stamp_crops,
    "digits_gpu": lambda data: digits_gpu(),
    "sparse": lambda data: sparse(),
    "sparse_b0": lambda data: sparse_b0(),
    "b0": lambda data: stamps_gpu(data, "b0"),
    "b1": lambda data: stamps_gpu(data, "b1"),
}
PACE_S, REHEARSED_PACE_S = 10.0, 1.0  # seconds of trial steps
LENGTHS = 0.1, 10.0  # times the arena's own steps, at least and at most
Asked = list[tuple[Setting, str]]
Rows = list[tuple[Setting, dict[str, Any]]]


def settings_of(arena: Arena, arguments: argparse.Namespace) -> Iterator[tuple[Setting, str]]:
    """Every line of every seed and share of the MACs, in the order in which they are trained."""
    out = arguments.out / arena.name
    for seed in arguments.seeds:
        for number, ratio in enumerate(arguments.ratios):
            for line in arguments.lines:
                if (line in ONCE and number) or (line in arguments.first_seed and seed != arguments.seeds[0]):
                    continue
                yield Setting(arena, seed, 1.0 if line in ONCE else ratio, out, arguments.jobs > 1), line


def name_of(setting: Setting, line: str) -> str:
    """Of a line's task, row and run."""
    return setting.folder(line).name


def trained(setting: Setting, line: str) -> dict[str, Any]:
    """A line's row; where it is not there, the line is trained."""
    return LINES[line](setting)


def one_by_one(asked: Asked, until: float) -> Rows:
    """Train line after line, and measure how fast each is."""
    done: Rows = []
    for setting, line in asked:
        if time.monotonic() > until:
            print(f"{line} {setting.ratio:g} {setting.seed}: skipped, the time is up", flush=True)
            continue
        try:
            done.append((setting, measured(setting, trained(setting, line))))
        except TrainingStoppedError:
            raise
        except RoutespaceError as error:  # a share that a line cannot reach; the others go on
            print(f"{line} {setting.ratio:g} {setting.seed}: {error}", flush=True)
            continue
        row = done[-1][1]
        print(f"seed {row['seed']}, {line} at {row['ratio']:g}: {100 * row['accuracy']:.1f} %", flush=True)
    return done


def side_by_side(asked: Asked, until: float, jobs: int, fit: float | None) -> Rows:
    """Train lines in processes of their own; those that are worth most first."""
    arena, out = asked[0][0].arena, asked[0][0].out
    with Crew(min(jobs, len(asked)), out / "logs") as crew:
        if fit is not None:
            length = fitted(crew, asked[0][0], min(jobs, len(asked)), fit, until)
            arena = replace(arena, length=length)
        asked = [(replace(setting, arena=arena), line) for setting, line in asked]
        asked.sort(key=lambda one: WORTH.index(one[1]))  # stable: seeds stay in their order
        names = {name_of(*one) for one in asked}
        tasks = []
        for setting, line in asked:
            needed = (name_of(setting, other) for other in NEEDS.get(line, ()))
            call = partial(trained, setting, line)
            tasks.append(Task(name_of(setting, line), call, tuple(name for name in needed if name in names)))
        rows = {}
        for ended in crew.run(tasks, until):
            rows[ended.task.name] = ended.result
            told = ended.error or f"{100 * ended.result['accuracy']:.1f} %"
            print(f"{ended.task.name}: {told}", flush=True)
    found = ((setting, rows.get(name_of(setting, line)) or unfinished(setting, line)) for setting, line in asked)
    return [(setting, row) for setting, row in found if row is not None]


def fitted(crew: Crew, setting: Setting, jobs: int, seconds: float, until: float) -> float:
    """How many times the arena's steps a training may have, to take so many seconds beside the others.

    Found once for all lines of an arena, by as many trials at a time, and kept beside them.
    """
    told = setting.out / "pace.json"
    if told.exists():
        return float(read_json(told, wanted="what this script wrote")["length"])
    trial = PACE_S if setting.arena.device == "cuda" else REHEARSED_PACE_S
    tasks = [Task(f"pace_{number}", partial(paces, setting, trial)) for number in range(jobs)]
    ended = list(crew.run(tasks, until))
    found = [one.result for one in ended if one.error is None]
    if not found:
        sys.exit(f"evidence.py: no trial step could be made: {ended[0].error}")
    recipe = setting.recipe
    phases = [recipe.phase(number).train.epochs for number in range(len(recipe.train.phases) + 1)]
    sizes = [recipe.phase(number).data.model_dump()["train_size"] for number in range(len(phases))]
    steps = sum(epochs * size // recipe.train.batch for epochs, size in zip(phases, sizes, strict=True))
    ms = statistics.median(found)
    length = min(max(LENGTHS[0], 1e3 * seconds / (ms * steps)), LENGTHS[1])
    setting.out.mkdir(parents=True, exist_ok=True)
    write_json(told, {"step_ms": ms, "of_each": found, "steps": steps, "length": length})
    print(f"{ms:.1f} ms a step of {jobs} side by side: {length:.2f} times {steps} steps", flush=True)
    return length


def finished(asked: Asked) -> Rows:
    """What is there already."""
    found = ((setting, setting.out / f"{name_of(setting, line)}.json", line) for setting, line in asked)
    rows = (
        (setting, read_json(told, wanted="what this script wrote") if told.exists() else unfinished(setting, line))
        for setting, told, line in found
    )
    return [(setting, row) for setting, row in rows if row is not None]


def measured(setting: Setting, row: dict[str, Any]) -> dict[str, Any]:
    """A row with its speed and the time of a step, measured unless that is done."""
    if "unfinished" in row or "speed" in row:
        return row
    row["counted"] = setting.recipe.base_macs() / row["macs"]
    row["speed"] = speed_of(setting, row)
    if row["line"] != "longer":
        row["step_ms"] = step_ms(setting, row["line"])
    write_json(setting.out / f"{name_of(setting, row['line'])}.json", row)
    return row


def measured_in_turns(rows: Rows, until: float) -> None:
    """Measure what was trained side by side: a line of each kind first, and what else there is time for."""
    seen = set[tuple[str, float]]()
    again = []
    for setting, row in rows:
        kind = (row["line"], row["ratio"])
        if kind in seen:
            again.append((setting, row))
            continue
        seen.add(kind)
        again.insert(len(seen) - 1, (setting, row))
    for setting, row in again:
        if time.monotonic() < until:
            row |= measured(setting, row)


def tested(rows: list[tuple[Setting, dict[str, Any]]], told: Path) -> None:
    """Evaluate every line on the test split, once: what is in the file is not looked at again."""
    found: dict[str, float] = read_json(told, wanted="what this script wrote") if told.exists() else {}
    for setting, row in rows:
        if "unfinished" in row:
            continue
        name = name_of(setting, row["line"])
        if name not in found:
            found[name] = accuracy_on(setting, row, "test")
            write_json(told, found)
        row["test"] = found[name]


def arguments_of() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arena", nargs="?", choices=ARENAS)
    parser.add_argument("--data", type=Path, help="what benchmarks/data_stamps.py wrote")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--lines", nargs="+", choices=list(LINES), default=list(LINES), metavar="LINE")
    parser.add_argument(
        "--first-seed", nargs="*", choices=list(LINES), default=[], metavar="LINE", help="of these"
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no new line begins")
    parser.add_argument("--jobs", type=int, default=1, help="lines that train side by side")
    parser.add_argument("--fit", type=float, help="with --jobs: seconds that a training shall take")
    parser.add_argument("--train-only", action="store_true", help="measure no times")
    parser.add_argument("--measure-only", action="store_true", help="train nothing more")
    parser.add_argument("--test", action="store_true", help="the test split, of every line; once, at the end")
    parser.add_argument("--rehearse", action="store_true", help="every line, tiny, on the CPU")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    arguments = parser.parse_args()
    if not arguments.rehearse and arguments.arena is None:
        parser.error("give an arena, or --rehearse")
    if arguments.jobs < 1 or (arguments.fit is not None and arguments.jobs == 1):
        parser.error("--jobs: give a number from 1 on; --fit is for more than one")
    if arguments.rehearse:
        arguments.arena, arguments.seeds, arguments.ratios, arguments.test = None, [0], [0.6], True
    return arguments


def kept_length(arena: Arena, out: Path) -> Arena:
    """The arena with the steps that its lines were trained for."""
    told = out / arena.name / "pace.json"
    length = float(read_json(told, wanted="what this script wrote")["length"]) if told.exists() else 1.0
    return replace(arena, length=length)


def main() -> None:
    keep_freed_memory()
    arguments, start = arguments_of(), time.monotonic()
    arena = rehearsal() if arguments.arena is None else ARENAS[arguments.arena](arguments.data)
    if arena.device == "cuda" and not torch.cuda.is_available():
        sys.exit("evidence.py: no GPU that torch can use; --rehearse runs every line on the CPU")
    until, arena = start + arguments.seconds, kept_length(arena, arguments.out)
    asked = list(settings_of(arena, arguments))
    if arguments.measure_only:
        done = finished(asked)
    elif arguments.jobs > 1:
        done = side_by_side(asked, until, arguments.jobs, arguments.fit)
    else:
        done = one_by_one(asked, until)

    def tell() -> None:
        rows = [row for _, row in done]
        record(
            arguments.out / f"evidence_{arena.name}.json",
            arena.device,
            {"what": "evidence", "arena": arena.name, "rows": rows},
        )

    tell()  # whatever happens to what follows
    if arguments.test:
        tested(done, arguments.out / arena.name / "tested.json")
        tell()
    if not arguments.train_only:
        measured_in_turns(done, until)
        tell()
    show([row for _, row in done])


if __name__ == "__main__":
    until_stopped(main)
