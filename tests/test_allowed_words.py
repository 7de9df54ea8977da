"""Words that are allowed in two places, as the command line and recipes load no torch, are the same in both."""

from typing import get_args

import pytest

from routespace.cli import extract, options
from routespace.deploy.derive import Method
from routespace.deploy.latency.table import Clock, DType
from routespace.grid.gate_spec import GateSpec
from routespace.nn.heads.classify import Pool
from routespace.nn.routing.deciding import Execution
from routespace.nn.routing.execution import Keys
from routespace.train.course import CLOCKS
from routespace.train.recipe.parts import PhaseSpec, TrainSpec
from routespace.train.recipe.phases import ORDER
from routespace.train.tasks.kinds import ClassifySpec
from routespace.workflow.choosing import WAYS


def test_options_take_what_the_library_takes():
    assert get_args(Method) == extract.METHODS
    assert WAYS == extract.CHOICES
    assert get_args(DType) == options.DTYPES
    assert get_args(Clock) == options.CLOCKS


@pytest.mark.parametrize(
    ("spec", "field", "allowed"),
    [
        (TrainSpec, "execution", get_args(Execution)),
        (TrainSpec, "clock", tuple(CLOCKS)),
        (PhaseSpec, "gates", ORDER),
        (GateSpec, "keys", get_args(Keys)),
        (ClassifySpec, "pool", get_args(Pool)),
    ],
)
def test_recipes_take_what_the_library_takes(spec, field, allowed):
    assert get_args(spec.model_fields[field].annotation) == allowed
