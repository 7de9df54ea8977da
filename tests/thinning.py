"""Many combinations of settings: a part of them is quick, and holds each pair of values."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import pytest


def thinned(n: int, **axes: Sequence[Any]) -> tuple[str, list[Any]]:
    """All combinations as arguments of `parametrize`; but for one in `n`, they are marked `slow`.

        @pytest.mark.parametrize(*thinned(3, kind=KINDS, rows=ROWS, training=[True, False]))

    The quick ones are those whose places on the axes add up to a multiple of `n`. Of three axes or more they hold
    every pair of values, which is checked; of two they hold every value.
    """
    all_of_them = list(product(*(range(len(values)) for values in axes.values())))
    quick = [places for places in all_of_them if sum(places) % n == 0]
    for some in combinations(range(len(axes)), 2 if len(axes) > 2 else 1):
        held = {tuple(places[axis] for axis in some) for places in quick}
        wanted = product(*(range(len(list(axes.values())[axis])) for axis in some))
        assert held == set(wanted), f"one in {n} is too few"
    found = []
    for places in all_of_them:
        values = [axis[place] for axis, place in zip(axes.values(), places, strict=True)]
        found.append(pytest.param(*values, marks=[] if sum(places) % n == 0 else pytest.mark.slow))
    return ",".join(axes), found
