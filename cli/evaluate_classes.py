"""What `routespace evaluate` prints and writes of each class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from routespace.cli.printing import csv_text, printable

SHOWN = 3  # classes that are found worst, in the summary
COUNTS = ("images", "objects", "pixels")
OF_CLASS = {"miou": "iou"}  # a task's metric → its name for one class, where that is another


def worst_classes(report: Mapping[str, Any]) -> str | None:
    """The classes that are found worst, in one line; None where there is but one."""
    from routespace.cli.render import percent

    name = OF_CLASS.get(report["metric"], report["metric"])
    known = [(row[name], label, row) for label, row in report.get("classes", {}).items() if name in row]
    if len(known) < 2:
        return None
    told = []
    for value, label, row in sorted(known, key=lambda one: one[0])[:SHOWN]:
        other = f", often taken for {row['taken_for']}" if "taken_for" in row else ""
        told.append(f"{label} {percent(value)}{other}")
    return printable(f"worst {'; '.join(told)}") + (" (--by-class for all)" if len(known) > SHOWN else "")


def show_classes(report: Mapping[str, Any]) -> None:
    """Print a row for each class, in the order of the network's outputs."""
    from routespace.cli.render import percent, table

    classes: Mapping[str, Mapping[str, Any]] = report.get("classes", {})
    names = list(dict.fromkeys(name for row in classes.values() for name in row if name != "taken_for"))
    names.sort(key=lambda name: name not in COUNTS)
    mixed = any("taken_for" in row for row in classes.values())
    rows = []
    for label, row in classes.items():
        cells = [row.get(name) if name in COUNTS else percent(row.get(name)) for name in names]
        rows.append([printable(label), *cells, *([printable(row.get("taken_for", "–"))] if mixed else [])])
    last = ("taken for",) if mixed else ()
    table(("class", *(name.replace("_", " ") for name in names), *last), rows, left=last)


def confusion_csv(report: Mapping[str, Any]) -> str:
    """A table with a row for each class and a column for each answer: numbers of images."""
    names, counts = list(report["classes"]), report["confusion"]
    rows = [[name, *(str(counts.get(name, {}).get(answer, 0)) for answer in names)] for name in names]
    return csv_text([["class", *names], *rows])
