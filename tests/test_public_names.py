"""The public names: pinned here, lazily imported, and the same for type checkers as at run time."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_grid import TINY_GRID

import routespace
from routespace import Architecture, Card, GridSpec, RoutingGrid, TaskNet, save_bundle
from routespace.preprocess import Preprocess, save_preprocess

PUBLIC = [
    "Architecture",
    "BudgetError",
    "BundleError",
    "Card",
    "DataError",
    "Edge",
    "EdgeUsage",
    "FineTuning",
    "GateSpec",
    "GridError",
    "GridSpec",
    "MissingDependencyError",
    "Predictor",
    "Recipe",
    "Replayed",
    "RouteNet",
    "RouteOutput",
    "Routes",
    "RoutespaceError",
    "RoutingGrid",
    "SpecError",
    "TaskNet",
    "TaskOutput",
    "architecture_cost",
    "as_timm",
    "batch_cost",
    "budget_loss",
    "calibrate_threshold",
    "count_static",
    "derive",
    "draw_grid",
    "evaluate",
    "evaluate_candidates",
    "evaluate_network",
    "export",
    "extract",
    "extract_bundle",
    "extract_routed",
    "extract_series",
    "load_bundle",
    "load_exported",
    "load_recipe",
    "load_run",
    "load_study",
    "load_timm_weights",
    "measure_usage",
    "object_auc",
    "oracle_routes",
    "profile",
    "removal_scores",
    "run_study",
    "sample_static",
    "save_bundle",
    "select",
    "train_recipe",
    "usage_from_json",
    "verify",
]


def test_names_are_pinned():
    assert sorted(routespace.__all__) == PUBLIC
    assert len(set(routespace.__all__)) == len(routespace.__all__)


def test_each_name_is_there_and_documented():
    for name in PUBLIC:
        assert getattr(routespace, name).__doc__, name
        assert dir(routespace).count(name) == 1


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(routespace.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    renamed = {"_train": "train_recipe"}
    seen = {renamed.get(alias.asname, alias.asname): node.module for node in imports for alias in node.names}
    assert seen == routespace._HOMES


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="Grid"):
        _ = routespace.Grid


def in_fresh_python(code: str) -> str:
    code = f"import gc; gc.disable()  # imports leave no garbage\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_grids_costs_and_recipes_import_no_torch():
    code = """
import sys, routespace
assert "numpy" not in sys.modules
grid = routespace.RoutingGrid(routespace.GridSpec(layers=4))
routespace.architecture_cost(routespace.Architecture.full(grid))
routespace.load_recipe("digits_tiny")
print([name for name in ("torch", "timm", "optuna", "typer", "rich", "matplotlib") if name in sys.modules])
"""
    assert in_fresh_python(code) == "[]"


def test_what_nobody_asked_for_is_not_loaded(tmp_path):
    """Not torchvision, with torch's compiler, for a classifier; nor optuna, typer, rich and decoders to train."""
    net = TaskNet.classifier(Architecture.staircase(RoutingGrid(GridSpec.parse(TINY_GRID))))
    save_bundle(net, tmp_path / "small", Card.of(net))
    save_preprocess(tmp_path / "small", Preprocess(size=(32, 32)), [str(number) for number in range(10)])
    code = f"""
import sys, routespace, numpy
routespace.load_bundle, routespace.extract, routespace.verify
routespace.Predictor({str(tmp_path / "small")!r})(numpy.zeros((32, 32, 3), numpy.uint8))
assert not {{"torchvision", "torch._dynamo"}} & set(sys.modules)
routespace.train_recipe, routespace.evaluate, routespace.extract, routespace.verify, routespace.save_bundle
print([name for name in ("optuna", "typer", "rich", "segmentation_models_pytorch") if name in sys.modules])
"""
    assert in_fresh_python(code) == "[]"
