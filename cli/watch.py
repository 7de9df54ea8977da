"""Watching a training: a bar in a terminal, one plain line an epoch elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from routespace.train.loop import Progress

MINUTE_S = 60


def clock(seconds: float | None) -> str:
    """Seconds as 1:05, or a dash."""
    return "–" if seconds is None else f"{int(seconds) // MINUTE_S}:{int(seconds) % MINUTE_S:02d}"


def cost_text(ratio: float | None, target: float | None, expected: float | None = None) -> str:
    """What is paid against the budget, and what the loss expects, as shares of the base; a percent shows."""
    if ratio is None:
        return ""
    notes = [("expected", expected), ("target", target)]
    inside = ", ".join(f"{word} {share:.3f}×" for word, share in notes if share is not None)
    return f"MACs {ratio:.3f}×" + (f" ({inside})" if inside else "")


def epoch_line(record: dict[str, Any], epochs: int, eta_s: float | None) -> str:
    """One line of metrics.jsonl for people; counted and expected MACs are those of the validation images."""
    cost = cost_text(record.get("counted_ratio"), record.get("target_ratio"), record.get("expected_ratio"))
    return (
        f"epoch {record['epoch']}/{epochs}  loss {record['loss']:.3f}  "
        f"accuracy {100 * record['accuracy']:.1f} % (training {100 * record['train_accuracy']:.1f} %)  "
        f"{cost}  {record['images_per_s']:.0f} images/s  {clock(eta_s)} left"
    )


@contextmanager
def watching(label: str = "") -> Iterator[Callable[[Progress], None]]:
    """A function to give to `train` as its `progress`.

    Args:
        label: put before each line, such as the name of a step.
    """
    from routespace.cli.render import console

    screen = console()
    if screen.is_terminal:
        with _bar(label, screen) as report:
            yield report
        return
    yield _Lines(label, print)


class _Lines:
    """Prints each epoch's record when it appears."""

    def __init__(self, label: str, write: Callable[[str], None]) -> None:
        self.label, self.write = label, write
        self.seen = 0

    def __call__(self, news: Progress) -> None:
        epoch = int(news.metrics.get("epoch", 0))
        if epoch <= self.seen:
            return
        self.seen = epoch
        self.write(self.label + epoch_line(news.metrics, news.epochs, news.eta_s))


@contextmanager
def _bar(label: str, screen: Any) -> Iterator[Callable[[Progress], None]]:
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[news]}"),
    )
    with Bars(*columns, console=screen, transient=True) as bars:
        task = bars.add_task(f"{label}starting", total=1, news="")
        lines = _Lines(label, lambda line: bars.console.print(line, markup=False))

        def report(news: Progress) -> None:
            lines(news)
            parts = [
                f"loss {news.loss:.3f}" if news.loss is not None else "",
                f"accuracy {100 * news.accuracy:.0f} %" if news.accuracy is not None else "",
                cost_text(news.macs_ratio, news.target_ratio),
                f"{news.images_per_s:.0f} images/s" if news.images_per_s else "",
                f"{clock(news.eta_s)} left" if news.eta_s is not None else "",
            ]
            bars.update(
                task,
                description=f"{label}{news.stage} {news.epoch}/{news.epochs}",
                completed=news.step,
                total=max(news.steps, 1),
                news="  ".join(part for part in parts if part),
            )

        yield report
