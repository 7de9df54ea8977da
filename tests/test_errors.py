"""Warnings name the line of the user's own."""

import pytest

from routespace.checked import checked
from routespace.errors import warn


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_warning_is_at_the_callers_line_however_deep_it_is_within(depth):
    inside = {"__name__": "routespace.train.somewhere", "warn": warn}
    exec("def within(left):\n    return within(left - 1) if left > 1 else warn('few images')", inside)
    with pytest.warns(UserWarning, match="few images") as told:
        inside["within"](depth)
    with pytest.warns(UserWarning, match="few images") as through:
        checked(inside["within"])(depth)
    assert [each.filename for each in (*told, *through)] == [__file__, __file__]


def test_a_warning_of_a_user_is_at_the_users_line():
    with pytest.warns(UserWarning, match="mine") as told:
        warn("mine")
    assert told[0].filename == __file__
