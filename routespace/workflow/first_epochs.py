"""Image sizes compared after the first epochs of a fine-tuning: the best goes on, the others end there.

    with first_epochs(choice, FineTuning(5), ExtractionWatch()) as begun:
        begun.choice, begun.folder              # the size that is ahead; for fine_tune, to go on with

What a part can do with the weights as they are says little of what it can after a training: one that has more
MACs left may have lost more, and learn it again. So each of the rivals is trained for a share of the epochs, as
it would be if it were the only one (successive halving in one round, arXiv 1502.07943). The epochs of the best are
not lost: it becomes what it would have become by itself, to the last bit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from routespace.deploy.extract import extract
from routespace.workflow.fine_tuning import AT_ONCE, FineTuning, begin_tuning
from routespace.workflow.sizing import SizeChoice, SizedPart, sign_of
from routespace.workflow.wishes import ExtractionWatch

COMPARED_FRAC = 0.2  # of the epochs: after one of five the order of sizes was that of the end (measured)


@dataclass(frozen=True)
class Begun:
    """The size that is ahead after the first epochs.

    Attributes:
        choice: of it, with what was measured of each rival.
        folder: of the fine-tuning that was begun; None where nothing had to be compared.
    """

    choice: SizeChoice
    folder: Path | None = None


def compared_epochs(choice: SizeChoice, tuning: FineTuning | None) -> int:
    """Epochs after which sizes are compared; 0 where they are not.

    There is nothing to compare without rivals, and no share to spend of few epochs. Cuts in steps choose their
    parts at one size, between trainings.
    """
    if tuning is None or tuning.most_cut != AT_ONCE or len(choice.rivals) < 2:
        return 0
    return int(COMPARED_FRAC * tuning.epochs)


@contextmanager
def first_epochs(choice: SizeChoice, tuning: FineTuning | None, watch: ExtractionWatch) -> Iterator[Begun]:
    """Train the best part of each rival size for the first epochs, and go on with the one that is ahead then.

    Of equals it is the one of the most MACs, which has more to learn with. The folder is there inside the block.

    Args:
        choice: by `choose_size`.
        tuning: of the part that is taken; None for none.
        watch: hears of the trainings.

    Raises:
        TrainingStoppedError: a signal came; nothing is kept.
        RoutespaceError: as `train_recipe`.
    """
    epochs = compared_epochs(choice, tuning)
    if tuning is None or epochs == 0:
        yield Begun(choice)
        return
    sign, tried = sign_of(choice.artifact), {each.image_size: each for each in choice.tried}
    with tempfile.TemporaryDirectory(prefix="routespace-") as place:
        ranked = list[tuple[tuple[float, float], SizedPart, Path]]()
        for number, rival in enumerate(choice.rivals):
            size, folder = rival.artifact.net.spec.image_size, Path(place) / str(number)
            small = extract(rival.artifact.net, rival.part)
            with watch.training(tried[size].text) as heard:
                if heard.tell is not None:
                    heard.tell(f"{tried[size].text}: to compare sizes, epochs 1 to {epochs} of {tuning.epochs}")
                score = begin_tuning(rival.artifact, small, tuning, folder, epochs=epochs, progress=heard.progress)
            tried[size] = replace(tried[size], epochs=epochs, tuned=score)
            ranked.append(((sign * score, rival.macs), rival, folder))
        _, best, folder = max(ranked, key=lambda each: each[0])
        yield Begun(replace(choice, artifact=best.artifact, part=best.part, tried=tuple(tried.values())), folder)
