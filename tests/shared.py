"""What all tests share: fixtures for all, how many examples are drawn, and what is remembered between tests."""

import gc
import os
import re
import sqlite3
import sys
from functools import cache
from types import ModuleType

import pytest
import sqlalchemy
import torch
import typer.testing
from alembic.script import ScriptDirectory
from devices import DEVICES
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, and nothing about the code.
# Each run draws other examples: what twenty do not find today, those of the next days do.
for name, count in (("quick", 20), ("all", 50)):
    settings.register_profile(
        name, max_examples=count, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )


def pytest_configure(config: pytest.Config) -> None:
    """As many examples as there is time for: fewer where slow tests are left out."""
    settings.load_profile("quick" if "not slow" in config.option.markexpr else "all")


def pytest_collection_finish() -> None:
    """Nobody looks for garbage in what was imported and collected, and rarely in what was made since then."""
    gc.freeze()
    gc.set_threshold(2000, 20, 20)
    gc.enable()
    if "routespace.train.batch" in sys.modules:
        remember_what_trainings_take(sys.modules["routespace.train.batch"])


def remember_what_trainings_take(batch: ModuleType) -> None:
    """Each training tells its memory, by two passes on tensors without content: for each kind of network once.

    Those of one kind differ in numbers alone. That the numbers are right is what tests of memory are for.
    """
    tell, told = batch.recipe_need, {}

    def remembered(recipe, architecture, **more):
        spec, grid = recipe.train, architecture.spec
        passes = spec.precision, spec.grad_checkpointing, spec.ema_decay, spec.drop_path
        kind = repr((recipe.task, recipe.gates, recipe.routing, grid, architecture.is_static, passes, more))
        key = re.sub(r"\d[\d.]*(e-?\d+)?", lambda number: "n" if float(number[0]) else "0", kind)
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
            connection.execute("PRAGMA journal_mode=MEMORY")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", relax)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", relax)


@pytest.fixture(autouse=True, scope="session")
def one_history():
    """Whoever opens a study reads thirty files first, on how optuna's tables came to be: once is enough."""
    read, kept = ScriptDirectory.from_config, {}

    def remembered(config):
        place = config.get_main_option("script_location")
        if place not in kept:
            kept[place] = read(config)
        return kept[place]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", remembered)
        yield


@pytest.fixture(autouse=True, scope="session")
def one_parser():
    """A runner makes the parser of all commands anew at each call, which takes as long as many a command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", cache(typer.main.get_command))
        yield


LIBRARIES_SET = "KMP_", "TORCHINDUCTOR_", "_TORCHINDUCTOR_", "TRITON_"  # once, when the compiler is first used


def settings_of_the_process() -> dict[str, object]:
    """What a test could change for all that run after it in the same process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LIBRARIES_SET)}
    environment.pop("PYTEST_CURRENT_TEST", None)
    return {
        "folder": os.getcwd(),
        "default type": torch.get_default_dtype(),
        "modes, a default device among them": torch._C._len_torch_function_stack(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        **{f"${name}": value for name, value in environment.items()},
    }


@pytest.fixture(autouse=True)
def everything_as_found():
    """Which tests share a process changes with each run: who leaves something behind fails, not its neighbour."""
    before = settings_of_the_process()
    yield
    after = settings_of_the_process()
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert {name: (before.get(name), after.get(name)) for name in changed} == {}


@pytest.fixture(autouse=True)
def exact_products():
    """On CUDA fp32 is fp32: what results are compared with must not be rounded to TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def weights_drawn_at_once(monkeypatch):
    """To draw millions of a truncated normal distribution takes longer than what is computed with them."""

    def uniform(weight, mean=0.0, std=1.0, a=-2.0, b=2.0):
        with torch.no_grad():
            return weight.uniform_(mean - 1.7 * std, mean + 1.7 * std)

    for module in ("torch.nn.init", "timm.models.pvt_v2", "timm.models.swin_transformer_v2"):
        monkeypatch.setattr(f"{module}.trunc_normal_", uniform)


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    """Each device that there is."""
    return torch.device(request.param)
