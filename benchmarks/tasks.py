"""The routed backbone under the heads of dense tasks, next to plain backbones of the same MACs and schedule.

    python benchmarks/tasks.py [--tasks detect semantic] [--seeds 0 1 2] [--lines routed smaller] [--out DIR]
    python benchmarks/tasks.py --scenes crowded                 fuller scenes, wider networks, heavier heads
    python benchmarks/tasks.py --data runs/stamps_data          cut-outs on photographs in place of digits
    python benchmarks/tasks.py --device cuda --jobs 6 --seconds 240      on a GPU, six lines side by side
    python benchmarks/tasks.py --show [--device cuda] [--tasks …]        the table of what there is
    python benchmarks/tasks.py --rehearse                       every line, tiny, in a minute or two
    python benchmarks/tasks.py --large [--px 640]               real speed at the size of photographs, untrained
    python benchmarks/tasks.py --speed                          that of the recipes' networks, untrained

Each task is that of its recipe: digits_detect, digits_instance, digits_semantic. There networks are narrow and
objects cover a few percent, so that width is worth something; on `--scenes crowded` it is not. What the lines are
says `task_lines/lines.py`. The stamps come from `data_stamps.py`.

Everybody starts on the recipe's small canvas and takes the same number of steps; lines with a plus take the routed
one's seconds (the processor's, on a CPU), and so can only be trained after it. MACs are those of the backbone, and
of the whole network in brackets. `time` is that of a batch of validation images over the dense network's, medians
of both in turns, one thread; the head is in it. The metric is on validation scenes, mean and standard deviation
over seeds; the test split is never read.

Then, for the routed network, the paper's claim is put to the test: the share of tokens that each rate computes of
the largest, middle and smallest third of the objects, and of what is no object; and how well the map finds them.
A line that is finished is not trained again, one that was interrupted goes on. After `--seconds` no new line
begins with one job; with several, those that still train are stopped, and count as far as they came. Several
calls may write into one folder side by side, if no two have a line in common; `--show` then prints them all. On a
GPU a step has more scenes, and no time is measured: networks of this size take as long as their kernels' calls.

`--large` times RetinaNet over B1 with half of the tokens of each row computed, chosen by a coin, against all
of them: one image, one thread, in turns; the backbone alone, and with the head, which gates cannot make cheaper.
`--speed` times the recipes' own networks in the same way, as many tokens computed as the budget allows.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from crew import Crew, Task
from record import record
from stopping import until_stopped
from task_lines.large import large, light
from task_lines.lines import LINES, SCENES, TASKS, Setting, one, so_far

from routespace.errors import RoutespaceError
from routespace.memory import keep_freed_memory
from routespace.recipes import load_recipe
from routespace.train.stopping import TrainingStoppedError

Row = dict[str, Any]
Job = tuple[Setting, str]


def show(rows: Sequence[Row]) -> None:
    """The tables: a line of means over seeds for each network, then where the routed ones look."""
    print(f"\n{'task':<9} {'line':<10} px   MMACs (whole)   time            metric  seeds")
    for task, line in dict.fromkeys((row["task"], row["line"]) for row in rows):
        some = [row for row in rows if (row["task"], row["line"]) == (task, line)]
        own, whole = (mean(row[name] for row in some) for name in ("macs", "whole_macs"))
        times = [row["time"] for row in some if row["time"] is not None]
        short = [f"seed {row['seed']}: {row['epochs']} of {row['of_epochs']} epochs" for row in some if cut(row)]
        print(
            f"{task:<9} {line:<9} {some[0]['image_px']:4} {own / 1e6:7.2f} ({whole / 1e6:6.1f})  "
            f"{f'{mean(times):5.2f}' if times else '    –'}   "
            f"{some[0]['metric']} {spread([row['score'] for row in some])}  {len(some)}  {', '.join(short)}"
        )
    for task in dict.fromkeys(row["task"] for row in rows):
        looks = [row for row in rows if row["task"] == task and "auc" in row]
        if looks:
            print(f"\n{task}, routed: AUC of each row against the objects' boxes, then shares of tokens computed")
            print(
                "  "
                + ", ".join(f"{name} {mean(row['auc'][name] for row in looks):.3f}" for name in looks[0]["auc"])
            )
            for rate, shares in looks[0]["usage_by_size"].items():
                means = {what: mean(row["usage_by_size"][rate][what] for row in looks) for what in shares}
                print(f"  rate {rate:>2}: " + ", ".join(f"{what} {share:.2f}" for what, share in means.items()))


def cut(row: Row) -> bool:
    """Whether a row is of a training that did not come to its end."""
    return bool(row.get("epochs") != row.get("of_epochs"))


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, in percent."""
    deviation = f" ± {100 * stdev(values):3.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):5.1f}{deviation} %"


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["semantic", "detect"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    usual = [line for line in LINES if line != "unlabelled"]  # that is of stamps alone
    parser.add_argument("--lines", nargs="+", choices=LINES, default=usual, metavar="LINE")
    parser.add_argument("--scenes", choices=SCENES, default="recipe", help="those of the recipes, or fuller ones")
    parser.add_argument("--data", type=Path, help="what benchmarks/data_stamps.py wrote")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no new line begins")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where networks train")
    parser.add_argument("--jobs", type=int, default=1, help="lines that train at the same time, a process each")
    parser.add_argument("--show", action="store_true", help="train nothing; print what there is")
    parser.add_argument("--rehearse", action="store_true", help="every task and line, tiny")
    parser.add_argument("--large", action="store_true", help="real speed at the size of photographs")
    parser.add_argument("--speed", action="store_true", help="real speed of the recipes' networks")
    parser.add_argument("--px", type=int, default=640, help="of --large")
    parser.add_argument("--out", type=Path, default=Path("runs/tasks"))
    arguments = parser.parse_args()
    if arguments.large or arguments.speed:
        real_speed(arguments)
        return
    name = "stamps" if arguments.data else "digits"
    out = arguments.out / f"{name}_{arguments.scenes}"
    if arguments.rehearse:
        out, arguments.seeds = out / "rehearsal", [0]
    if arguments.device == "cuda" and not (torch.cuda.is_available() or arguments.show):
        sys.exit("tasks.py: no GPU that torch can use; leave out --device, or give --show")
    where = {"scenes": arguments.scenes, "stamps": arguments.data, "device": arguments.device}
    jobs = [
        (Setting(task, seed, out, **where, tiny=arguments.rehearse), line)
        for seed in arguments.seeds
        for task in arguments.tasks
        for line in arguments.lines
    ]
    train(jobs, arguments)
    rows = [row for job in jobs if (row := so_far(*job)) is not None]
    show(rows)
    told = {"what": "tasks", "objects": name, "scenes": arguments.scenes, "rows": rows}
    record(out / f"tasks_{arguments.device}.json", "cpu" if arguments.show else arguments.device, told)


def real_speed(arguments: argparse.Namespace) -> None:
    """`--large` and `--speed`."""
    if arguments.large:
        found = large(arguments.px)
        print("\n".join(f"{name:<18} {value:.3f}" for name, value in found.items()))
        record(arguments.out / "tasks_large_cpu.json", "cpu", {"what": "tasks_large", **found})
    if arguments.speed:
        speeds = {task: light(load_recipe(f"digits_{task}")) for task in arguments.tasks}
        for task, times in speeds.items():
            print(f"{task:<9} " + ", ".join(f"{name} {value:.3f}" for name, value in times.items()))
        record(arguments.out / "tasks_speed_cpu.json", "cpu", {"what": "tasks_speed", **speeds})


def train(jobs: Sequence[Job], arguments: argparse.Namespace) -> None:
    """Train the lines that are asked for, in this process or side by side."""
    if arguments.show:
        return
    if arguments.jobs > 1:
        side_by_side(jobs, arguments.jobs, arguments.seconds, logs=arguments.out / "logs")
        return
    start = time.monotonic()
    rows: list[Row] = []
    for setting, line in jobs:
        if time.monotonic() - start > arguments.seconds:
            print(f"{setting.task} {line} {setting.seed}: skipped, the time is up")
            continue
        try:
            rows.append(one(setting, line))
        except TrainingStoppedError:
            raise
        except RoutespaceError as error:
            print(f"{setting.task} {line} {setting.seed}: {error}")
            continue
        show(rows)


def side_by_side(jobs: Sequence[Job], processes: int, seconds: float, *, logs: Path) -> None:
    """Train the lines that are not finished, the first ones first, and tell how each ended.

    Args:
        jobs: settings with their lines; one with a plus waits for the routed one, where that is among them.
        processes: that train at the same time.
        seconds: of all of it; what still trains then is stopped, and what it has so far is in its folder.
        logs: a folder for what the lines print.
    """
    names = [setting.folder(line).name for setting, line in jobs]
    tasks = []
    for name, (setting, line) in zip(names, jobs, strict=True):
        first = setting.folder("routed").name
        after = (first,) if line.endswith("+") and first in names else ()
        tasks.append(Task(name, partial(one, setting, line), after))
    with Crew(min(processes, len(tasks)), logs) as crew:
        for ended in crew.run(tasks, time.monotonic() + seconds):
            told = ended.error or f"{100 * ended.result['score']:.1f} %"
            print(f"{ended.task.name}: {told}", flush=True)


if __name__ == "__main__":
    until_stopped(main)
