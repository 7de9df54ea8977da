"""What all tests share."""

import gc
import os
import sqlite3
import sys
from types import ModuleType

import pytest
import sqlalchemy
import torch
from devices import DEVICES
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, and nothing about the code.
# Each run draws other examples: what fifty do not find today, those of the next days do.
settings.register_profile(
    "routespace", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("routespace")


def pytest_collection() -> None:
    """What is imported and collected is no garbage, and millions of objects: nobody looks through them."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Nor while tests run: a full look goes through what was made since then, and is rarer."""
    gc.freeze()
    gc.set_threshold(2000, 20, 20)
    gc.enable()
    if "routespace.train.batch" in sys.modules:
        remember_what_trainings_take(sys.modules["routespace.train.batch"])


def remember_what_trainings_take(batch: ModuleType) -> None:
    """Each training tells its memory, by two passes on tensors without content: of each network once is enough."""
    tell, told = batch.recipe_need, {}

    def remembered(recipe, architecture, **more):
        spec = recipe.train
        passes = spec.precision, spec.grad_checkpointing, spec.ema_decay, spec.drop_path
        key = repr((recipe.task, recipe.gates, architecture.hash, passes, more))
        if key not in told:
            told[key] = tell(recipe, architecture, **more)
        return told[key]

    batch.recipe_need = remembered


@pytest.fixture(autouse=True, scope="session")
def no_wait_for_the_disk():
    """What tests write need not outlive a power cut: no file, and none of the many commits of a study."""

    def relax(connection, _):
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", relax)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", relax)


@pytest.fixture(autouse=True)
def exact_products():
    """On CUDA fp32 is fp32: what results are compared with must not be rounded to TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    """Each device that there is."""
    return torch.device(request.param)
