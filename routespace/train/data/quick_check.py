"""A look at the headers of pictures before the first epoch; `check.py` reads them as a whole. No torch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from routespace.errors import DataError, command_line
from routespace.pictures import quiet_pillow
from routespace.train.data.catalogue import Entry

QUICK = 20_000  # headers read before a training, two seconds of a local disk: of more, as many by chance
THREADS = 8


class Examiner(Protocol):
    """What looks at pictures before they are trained on."""

    def trouble(self, place: Any, /) -> str | None:
        """One line on why the picture at a place cannot be read, or None."""
        ...


def quick_check(
    reader: Examiner, entries: Sequence[Entry], *, where: str, skip_bad: int, most: int | None = None
) -> tuple[str, ...]:
    """Read the headers of all pictures, or of some of very many.

    Args:
        reader: looks at them.
        entries: the pictures of a training.
        where: what to call the data, for the message.
        skip_bad: how many unreadable ones may be left out.
        most: of more, as many are looked at by chance; None for `QUICK`.

    Returns:
        A line for each unreadable picture.

    Raises:
        DataError: more are unreadable than may be left out, or all of them.
    """
    most = QUICK if most is None else most
    some = entries if len(entries) <= most else random.Random(0).sample(list(entries), most)
    with quiet_pillow(), ThreadPoolExecutor(THREADS) as pool:
        bad = [word for word in pool.map(lambda entry: reader.trouble(entry.place), some) if word is not None]
    everything = bool(bad) and len(bad) == len(some)
    if len(bad) > skip_bad or everything:
        others = f" ({len(bad)} of {len(some)} images)" if len(bad) > 1 else ""
        or_less = "" if everything else f", or leave it out with data.skip_bad={len(bad)}"
        raise DataError(
            f"{bad[0]}{others}; replace or remove what cannot be read (`{command_line('data', 'check', where)}` "
            f"lists it){or_less}"
        )
    return tuple(f"{word}; it will be left out" for word in bad)
