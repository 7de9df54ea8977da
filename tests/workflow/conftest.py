"""A trained supernet for the tests of a module."""

from pathlib import Path

import pytest
from workflow_tiny import TINY

from routespace import load_recipe, train_recipe


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """The folder of a finished run of a supernet on images of 64 px."""
    out = tmp_path_factory.mktemp("workflow") / "run"
    train_recipe(load_recipe("digits_tiny", TINY), out)
    return out
