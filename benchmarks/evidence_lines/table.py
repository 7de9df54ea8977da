"""The table of the evidence, and what is told of lines that have not ended."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from evidence_lines.lines import Setting, trained_recipe
from routespace import file_names
from routespace.train.run_folder import RunFolder

HEADER = (
    "line        ratio    MMACs  steps  first s   own s step ms  speed counted        val %       test %  seeds"
)
NUMBERS = ("macs", "steps", "first_s", "own_s", "step_ms", "speed", "counted")


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, in percent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):5.1f} ± {100 * deviation:3.1f}"


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Means over seeds, a line for each network and share of the MACs; then what is unfinished."""
    done = [row for row in rows if "unfinished" not in row]
    print(f"\n{HEADER}")
    for line, ratio in dict.fromkeys((row["line"], row["ratio"]) for row in done):
        some = [row for row in done if (row["line"], row["ratio"]) == (line, ratio)]
        mean = {name: _mean(some, name) for name in NUMBERS}
        val, test = spread([row["accuracy"] for row in some]), [row["test"] for row in some if "test" in row]
        print(
            f"{line:<11} {ratio:5.2f} {(mean['macs'] or 0) / 1e6:8.3f} {mean['steps'] or 0:6.0f} "
            f"{mean['first_s'] or 0:8.1f} {mean['own_s'] or 0:7.1f} {_shown(mean['step_ms'], 7, 1)} "
            f"{_shown(mean['speed'], 6, 2)} {_shown(mean['counted'], 7, 2)} "
            f"{val:>12} {spread(test) if test else '–':>12}  {len(some)}"
        )
    for row in rows:
        if "unfinished" in row:
            step, steps = row["unfinished"]
            print(
                f"{row['line']} {row['ratio']:g}, seed {row['seed']}: unfinished, step {step} of {steps}, "
                f"{100 * row['accuracy']:.1f} % then"
            )
    if any(row.get("side_by_side") for row in rows):
        print("seconds are of trainings side by side and not to be compared; step ms is of each alone")
    print(end="", flush=True)


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    found = [row[name] for row in rows if row.get(name) is not None]
    return statistics.mean(found) if found else None


def _shown(value: float | None, width: int, digits: int) -> str:
    return f"{'–':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def unfinished(setting: Setting, line: str) -> dict[str, Any] | None:
    """What a training that was stopped had reached at its last checkpoint; None where there is none."""
    recipe, run = trained_recipe(setting, line), RunFolder(setting.folder(line))
    if recipe is None or not (run.path / file_names.RECIPE).exists() or not run.metrics_path.exists():
        return None
    lines = run.read_metrics()
    if not lines:
        return None
    numbers = [recipe.phase(number) for number in range(len(recipe.train.phases) + 1)]
    steps = [phase.data.model_dump()["train_size"] // phase.train.batch for phase in numbers]
    return {
        "line": line,
        "seed": setting.seed,
        "ratio": setting.ratio,
        "unfinished": [
            sum(steps[told["phase"] - 1] for told in lines),
            sum(phase.train.epochs * count for phase, count in zip(numbers, steps, strict=True)),
        ],
        "accuracy": lines[-1]["accuracy"],
        "macs": lines[-1]["counted_ratio"] * recipe.base_macs(),
        "side_by_side": setting.beside,
    }
