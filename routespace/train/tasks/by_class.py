"""What a pass over held-out images found of each class. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ByClass:
    """What was found of each class.

    Attributes:
        rows: for each class, in the order of a network's outputs, what there is to tell, by its name; nothing of a
            class that no image and no answer had.
        confusion: (class, answer) → number of images; None where an image has no one class.
        taken_for: class → the other one that most of its images or pixels were taken for; without those of which
            none was.
    """

    rows: tuple[Mapping[str, float], ...]
    confusion: Mapping[tuple[int, int], int] | None = None
    taken_for: Mapping[int, int] = field(default_factory=dict)

    def named(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Name of a class → what was found of it, `taken_for` too where another was answered; JSON data."""
        found: dict[str, dict[str, Any]] = {}
        for label, (name, row) in enumerate(zip(names, self.rows, strict=True)):
            other = self.taken_for.get(label)
            found[name] = {**row, **({} if other is None else {"taken_for": names[other]})}
        return found

    def named_confusion(self, names: Sequence[str]) -> dict[str, dict[str, int]] | None:
        """Class → answer → number of images, those above 0; JSON data, or None where there is none."""
        if self.confusion is None:
            return None
        found: dict[str, dict[str, int]] = {}
        for (label, answer), count in self.confusion.items():
            found.setdefault(names[label], {})[names[answer]] = count
        return found


def most_taken_for(confusion: Mapping[tuple[int, int], int]) -> dict[int, int]:
    """Class → the wrong answer that it was given most often; the first of several in output order."""
    most: dict[int, tuple[int, int]] = {}
    for (label, answer), count in sorted(confusion.items()):
        if label != answer and count > most.get(label, (0, 0))[0]:
            most[label] = (count, answer)
    return {label: answer for label, (_, answer) in most.items()}
