"""Watching a training: a bar in a terminal; elsewhere a line an epoch, and one every half minute between them.

A line that does not fit its terminal loses what matters least: the epoch, the bar and the time left stay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from routespace.train.progress import Progress

MINUTE_S, HOUR_S = 60, 3600
TIMED_STEPS = 8  # after which the time of an epoch is told
TOLD_EPOCH_S = 10  # and more: shorter ones tell by themselves
QUIET_S = 30  # without a line in a pipe; then people wonder whether it hangs
BAR_WIDTH = 20
GAP = "  "
SHOWN_RATIO = 0.005  # what is nearer than this looks the same


class Piece(NamedTuple):
    """A piece of a line; the lowest `rank` is the last to go where there is no room."""

    text: str
    rank: int


def fitting(parts: Sequence[Piece], width: int | None) -> str:
    """The parts in their order, with two spaces between, without those of the highest ranks that do not fit."""
    kept = [part for part in parts if part.text]
    while width is not None and len(kept) > 1 and len(GAP.join(part.text for part in kept)) > width:
        kept.remove(max(kept, key=lambda part: part.rank))
    return GAP.join(part.text for part in kept)


def clock(seconds: float | None) -> str:
    """Seconds as 1:05 or 2:01:05, or a dash."""
    if seconds is None:
        return "–"
    hours, rest = divmod(int(seconds), HOUR_S)
    minutes, seconds = divmod(rest, MINUTE_S)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def cost_text(ratio: float | None, target: float | None, expected: float | None = None) -> str:
    """What is paid, what the loss expects and what it aims at, as shares of the base; a percent shows."""
    if ratio is None:
        return ""
    notes = [("expected", expected), ("target", target)]
    inside = ", ".join(f"{word} {share:.3f}×" for word, share in notes if share is not None)
    return f"MACs {ratio:.3f}×" + (f" ({inside})" if inside else "")


def loss_text(loss: float | None, budget: float | None = None) -> str:
    """What is minimised, the budget's part of it by its name."""
    if loss is None:
        return ""
    return f"loss {loss - budget:.3f} + budget {budget:.3f}" if budget else f"loss {loss:.3f}"


def epoch_line(news: Progress, *, label: str = "", width: int | None = None) -> str:
    """The last line of metrics.jsonl for people; counted and expected MACs are those of the validation images."""
    record, metric = news.metrics, news.metric
    trained = record.get(f"train_{metric.name}")
    ratio, target = record.get("counted_ratio"), record.get("target_ratio")
    learned = f" (training {metric.text(trained)})" if trained is not None else ""
    soft = record.get("soft_loss")
    taught = f" (labels {record['task_loss']:.3f}, teacher {soft:.3f})" if soft is not None else ""
    line = [
        Piece(f"{label}epoch {_of(record['epoch'], news.epochs)}", 0),
        Piece(f"phase {record['phase']}" if news.phases > 1 else "", 6),
        Piece(loss_text(record["loss"], record.get("budget_loss")) + taught, 3),
        Piece(f"{metric.name} {metric.text(record[metric.name])}{learned}", 2),
        Piece(cost_text(ratio, target, record.get("expected_ratio")), 4),
        Piece(f"{record['images_per_s']:.0f} images/s", 5),
        Piece(f"{clock(news.eta_s)} left", 1),
    ]
    return fitting(line, width)


def step_line(news: Progress, *, label: str = "", width: int | None = None, head: bool = True) -> str:
    """Where a training stands within an epoch."""
    line = [
        Piece(f"{label}{news.stage} {_of(news.epoch, news.epochs)}" if head else "", 0),
        Piece(f"step {news.step}/{news.steps}" if head and news.steps else "", 2),
        Piece(f"{clock(news.eta_s)} left" if news.eta_s is not None else "", 1),
        Piece(loss_text(news.loss, news.budget_loss), 3),
        Piece(f"{news.metric.name} {news.metric.text(news.score, 0)}" if news.score is not None else "", 4),
        Piece(cost_text(news.macs_ratio, news.target_ratio), 5),
        Piece(f"{news.images_per_s:.0f} images/s" if news.images_per_s else "", 6),
    ]
    return fitting(line, width)


def _of(epoch: int, epochs: int | None) -> str:
    """Epoch 3/8, or 3 where the clock decides how many there are."""
    return str(epoch) if epochs is None else f"{epoch}/{epochs}"


def correction_note(target: float | None, budget: float | None) -> str:
    """Why the target is another one than the budget; empty when it is not, or not yet."""
    if target is None or budget is None or target >= budget - SHOWN_RATIO:
        return ""
    return (
        f"the target is now {target:.3f}×, below the budget of {budget:.3f}×: validation images cost more than "
        f"those trained on, and the budget is about them (budget.correct)"
    )


@contextmanager
def watching(label: str = "", budget: float | None = None) -> Iterator[Watcher]:
    """What to give to a training as its `progress`.

    Args:
        label: put before each line, such as the name of a step.
        budget: share of the base that the trained network may cost; it explains targets below it.
    """
    from routespace.cli.render import console

    screen = console()
    if not screen.is_terminal:
        yield Watcher(lambda line: print(line, flush=True), label=label, budget=budget)
        return
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=BAR_WIDTH),
        TextColumn("{task.fields[news]}", markup=False),
    )
    with Bars(*columns, console=screen, transient=True) as bars:

        def say(line: str) -> None:
            bars.console.print(line, markup=False, soft_wrap=True)

        yield Watcher(say, label=label, budget=budget, width=screen.width, quiet_s=None, bars=bars)


class Watcher:
    """Prints each epoch's record when it appears, and where the training stands when it was quiet for long.

    Args:
        say: prints a line.
        label: put before each line.
        budget: share of the base that the trained network may cost.
        width: of a line; None for as long as it is.
        quiet_s: seconds without a line after which one tells the step; None for epochs only.
        now: seconds, for tests.
        bars: rich's, to move a bar in, too.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        label: str = "",
        budget: float | None = None,
        width: int | None = None,
        quiet_s: float | None = QUIET_S,
        now: Callable[[], float] = time.monotonic,
        bars: Bars | None = None,
    ) -> None:
        self._say, self._width, self._quiet_s, self._now, self._bars = say, width, quiet_s, now, bars
        self._task = None if bars is None else bars.add_task(f"{label}starting", total=1, news="")
        self._last = now()
        self.begin(label, budget)

    def begin(self, label: str, budget: float | None) -> None:
        """Watch another training from here on."""
        self._label, self._budget = label, budget
        self._seen = 0
        self._remarks: list[str] = []
        self._target: float | None = None
        self._explained = False
        self._steps = 0  # of training, until the time of an epoch is told
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, description=f"{label}starting", completed=0, news="")

    def say(self, line: str) -> None:
        """Print a line of one's own."""
        self._last = self._now()
        self._say(line)

    def __call__(self, news: Progress) -> None:
        """Print what is new, and move the bar."""
        epoch = int(news.metrics.get("epoch", 0))
        if epoch > self._seen:
            self._seen = epoch
            self.say(epoch_line(news, label=self._label, width=self._width))
            self._explain(news.metrics)
            self._remark(news.metrics)
        elif not self._tell_time(news) and self._quiet_s is not None and self._now() - self._last >= self._quiet_s:
            self.say(step_line(news, label=self._label, width=self._width))
        if self._bars is not None and self._task is not None:
            head, steps = f"{self._label}{news.stage} {_of(news.epoch, news.epochs)}", f"{news.step}/{news.steps}"
            room = self._bars.console.width - len(head) - BAR_WIDTH - len(steps) - 2 * len(GAP)
            line = f"{steps}{GAP}{step_line(news, width=room, head=False)}"
            total = max(news.steps, 1)
            self._bars.update(self._task, description=head, completed=news.step, total=total, news=line)

    def _tell_time(self, news: Progress) -> bool:
        """Say once how long an epoch takes, when some steps have shown it; True where it is said."""
        if news.stage != "train" or self._steps >= TIMED_STEPS or news.epochs is None:
            return False
        self._steps += 1
        left = (news.epochs - news.epoch + 1) * news.steps - news.step
        if self._steps < TIMED_STEPS or news.eta_s is None or left <= 0:
            return False
        epoch_s = news.eta_s / left * news.steps
        if epoch_s >= TOLD_EPOCH_S:
            self.say(
                f"{self._label}an epoch takes about {clock(epoch_s)}, the whole training {clock(news.eta_s)} more"
            )
        return epoch_s >= TOLD_EPOCH_S

    def _explain(self, record: Mapping[str, Any]) -> None:
        """Say once why the target fell below the budget."""
        target = record.get("target_ratio")
        before = self._target
        falls = target is not None and before is not None and target < before  # a schedule may come from below
        self._target, note = target, correction_note(target, self._budget)
        if note and falls and not self._explained:
            self._explained = True
            self.say(self._label + note)

    def _remark(self, record: Mapping[str, Any]) -> None:
        """Say what looks wrong, when it is not what was said of the epoch before."""
        remarks = record.get("remarks") or []
        for remark in remarks if remarks != self._remarks else ():
            self.say(self._label + remark)
        self._remarks = remarks
