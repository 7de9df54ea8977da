"""What `routespace predict` prints and writes of networks that tell the class of an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from routespace.cli.printing import csv_text, printable

if TYPE_CHECKING:
    from routespace.deploy.predict.answers import Prediction

NAMED = 20  # classes of the summary that are named


def show_classes(found: Sequence[Prediction], *, single: bool) -> None:
    """Print predictions: an image's classes below each other, those of several in a row each."""
    from routespace.cli.render import percent, table

    if single:
        table(("class", "score"), [(printable(name), percent(score)) for name, score in _ranked(found[0])])
        return
    rows = []
    for prediction in found:
        others = ", ".join(f"{name} {percent(score)}" for name, score in _ranked(prediction)[1:])
        row = (prediction.path or "", prediction.label, percent(prediction.score), others)
        rows.append([printable(cell) for cell in row])
    columns = ("image", "class", "score", "then")
    table(columns, rows, left=("class", "then"))
    if len(found) > 1:
        print(printable(summary_of_classes(found)))


def summary_of_classes(found: Iterable[Prediction]) -> str:
    """How many images there were, and of which classes: `14 images: ant 9, cat 5`."""
    counts = Counter(prediction.label for prediction in found).most_common()
    named = ", ".join(f"{name} {count}" for name, count in counts[:NAMED])
    total = sum(count for _, count in counts)
    return f"{total} {'image' if total == 1 else 'images'}: {named}{', …' if len(counts) > NAMED else ''}"


def as_data(prediction: Prediction) -> dict[str, object]:
    """A prediction as JSON data."""
    top = [{"label": name, "score": score} for name, score in _ranked(prediction)]
    return {"path": prediction.path, "label": prediction.label, "score": prediction.score, "top": top}


def classes_csv(found: Sequence[Prediction]) -> str:
    """A table with a header: path, label, score, and label_2, score_2 and so on."""
    more = range(2, len(found[0].labels) + 1)
    rows = [["path", "label", "score", *(f"{name}_{i}" for i in more for name in ("label", "score"))]]
    for prediction in found:
        ranked = [cell for name, score in _ranked(prediction) for cell in (name, f"{score:.6f}")]
        rows.append([prediction.path or "", *ranked])
    return csv_text(rows)


def _ranked(prediction: Prediction) -> list[tuple[str, float]]:
    return list(zip(prediction.labels, prediction.scores, strict=True))
