"""Many combinations of settings: a part of them is quick, and holds each pair of values."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import pytest


def thinned(**axes: Sequence[Any]) -> tuple[str, list[Any]]:
    """All combinations as arguments of `parametrize`; all but a few that hold each pair are marked `slow`.

        @pytest.mark.parametrize(*thinned(kind=KINDS, rows=ROWS, training=[True, False]))

    The quick ones hold every pair of values of three axes or more, and of two axes every value: each is the one
    that holds most of the pairs that those before it left out.
    """
    everything = list(product(*(range(len(values)) for values in axes.values())))
    together = list(combinations(range(len(axes)), 2 if len(axes) > 2 else 1))
    held = {places: {(some, *(places[axis] for axis in some)) for some in together} for places in everything}
    missing, quick = set().union(*held.values()), set()
    while missing:
        best = max(everything, key=lambda places: len(held[places] & missing))
        quick.add(best)
        missing -= held[best]
    found = []
    for places in everything:
        values = [axis[place] for axis, place in zip(axes.values(), places, strict=True)]
        found.append(pytest.param(*values, marks=[] if places in quick else pytest.mark.slow))
    return ",".join(axes), found
