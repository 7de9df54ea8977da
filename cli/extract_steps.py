"""What `routespace extract` shows while it works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from routespace.cli.render import amount, draw, legend
from routespace.cli.status import busy
from routespace.cli.watch import watching
from routespace.workflow.wishes import ExtractionWatch, Listener

if TYPE_CHECKING:
    from routespace.grid.architecture import Architecture
    from routespace.train.tasks.base import Metric
    from routespace.workflow.choosing import Choice
    from routespace.workflow.sizing import SizeChoice


class ShownExtraction(ExtractionWatch):
    """Prints the steps of an extraction.

    Args:
        metric: of the network's task.
    """

    def __init__(self, metric: Metric) -> None:
        self._text = metric.text

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Say what is done while it is."""
        with busy(what):
            yield

    @contextmanager
    def training(self, what: str = "") -> Iterator[Listener]:
        """Show the fine-tuning's progress."""
        with watching(f"{what} " if what else "fine-tuning ") as news:
            yield Listener(news, news.say)

    def sized(self, choice: SizeChoice) -> None:
        """A line on each of several sizes."""
        for each in choice.tried:
            if each.score is None or each.macs is None:
                print(f"{each.text}: nothing fits ({each.why_not})")
            else:
                chosen = ", chosen" if each.image_size == choice.artifact.net.spec.image_size else ""
                spent = f"{each.epochs} epoch{'' if each.epochs == 1 else 's'}"
                tuned = "" if each.tuned is None else f", {self._text(each.tuned)} after {spent}"
                cut = f"{self._text(each.score)} on validation at {amount('macs', each.macs)}"
                print(f"{each.text}: {cut}{tuned}{chosen}")
        if choice.tried:
            print(flush=True)

    def picked(self, choice: Choice) -> None:
        """A line on how the best was found."""
        each = ", ".join(f"{origin} {self._text(score)}" for origin, score in choice.scores.items())
        best = self._text(choice.score)
        print(f"best of {choice.candidates} candidates on validation: {best} (best by origin: {each})\n")

    def chosen(self, part: Architecture) -> None:
        """Draw the part."""
        print(draw(part.grid, part))
        print(f"\n{legend(part)}\n", flush=True)
