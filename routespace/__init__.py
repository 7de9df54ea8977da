"""Neural architecture search over a routing space of layers × downsampling rates.

The names below are the public ones. They are imported when first used, so `import routespace` alone stays quick
and needs no torch; grids, costs and recipes never do.

    from routespace import Architecture, GridSpec, RoutingGrid, TaskNet

    grid = RoutingGrid(GridSpec(layers=24, max_down=32))
    net = TaskNet.classifier(Architecture.full(grid))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Every public name, by the module that defines it: the contract, pinned by tests/test_public_names.py.
_PUBLIC = {
    # the grid (no torch)
    "routespace.grid.spec": ("GridSpec",),
    "routespace.grid.graph": ("RoutingGrid", "Edge"),
    "routespace.grid.architecture": ("Architecture",),
    "routespace.grid.gate_spec": ("GateSpec",),
    "routespace.grid.cost": ("architecture_cost", "batch_cost"),
    "routespace.grid.count": ("count_static",),
    "routespace.grid.sample": ("sample_static",),
    "routespace.grid.select": ("select",),
    "routespace.grid.usage": ("EdgeUsage", "usage_from_json"),
    # the network
    "routespace.nn.task_net": ("TaskNet", "TaskOutput"),
    "routespace.nn.route_net": ("RouteNet", "RouteOutput"),
    "routespace.nn.routing.routes": ("Routes",),
    "routespace.nn.replayed": ("Replayed",),
    "routespace.nn.pretrained": ("load_timm_weights",),
    # teaching it
    "routespace.train.recipe.recipe": ("Recipe",),
    "routespace.recipes": ("load_recipe",),
    "routespace.train.run": ("train_recipe",),
    "routespace.train.evaluate": ("evaluate",),
    "routespace.train.candidates": ("evaluate_candidates",),
    "routespace.train.controls": ("object_auc", "oracle_routes"),
    "routespace.train.budget": ("budget_loss",),
    "routespace.train.calibrate": ("calibrate_threshold",),
    # taking it away
    "routespace.nn.usage": ("measure_usage",),
    "routespace.deploy.derive": ("derive",),
    "routespace.deploy.removal": ("removal_scores",),
    "routespace.deploy.extract": ("extract",),
    "routespace.deploy.verify": ("verify",),
    "routespace.deploy.bundle": ("Card", "save_bundle", "load_bundle"),
    "routespace.deploy.export.write": ("export",),
    "routespace.deploy.export.load": ("load_exported",),
    "routespace.deploy.latency.profiling": ("profile",),
    "routespace.deploy.predict.predictor": ("Predictor",),
    "routespace.deploy.timm_model": ("as_timm",),
    # looking at it
    "routespace.draw.grid": ("draw_grid",),
    # a command's work
    "routespace.workflow.artifacts": ("load_run",),
    "routespace.workflow.evaluation": ("evaluate_network",),
    "routespace.workflow.extraction": ("extract_bundle",),
    "routespace.workflow.routed": ("extract_routed",),
    "routespace.workflow.series": ("extract_series",),
    "routespace.workflow.fine_tuning": ("FineTuning",),
    # searching
    "routespace.search.study": ("run_study",),
    "routespace.search.records": ("load_study",),
    # what goes wrong
    "routespace.errors": (
        "RoutespaceError",
        "SpecError",
        "GridError",
        "BudgetError",
        "DataError",
        "BundleError",
        "MissingDependencyError",
    ),
}
_HOMES = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = list(_HOMES)

if TYPE_CHECKING:
    from routespace.deploy.bundle import Card as Card
    from routespace.deploy.bundle import load_bundle as load_bundle
    from routespace.deploy.bundle import save_bundle as save_bundle
    from routespace.deploy.derive import derive as derive
    from routespace.deploy.export.load import load_exported as load_exported
    from routespace.deploy.export.write import export as export
    from routespace.deploy.extract import extract as extract
    from routespace.deploy.latency.profiling import profile as profile
    from routespace.deploy.predict.predictor import Predictor as Predictor
    from routespace.deploy.removal import removal_scores as removal_scores
    from routespace.deploy.timm_model import as_timm as as_timm
    from routespace.deploy.verify import verify as verify
    from routespace.draw.grid import draw_grid as draw_grid
    from routespace.errors import BudgetError as BudgetError
    from routespace.errors import BundleError as BundleError
    from routespace.errors import DataError as DataError
    from routespace.errors import GridError as GridError
    from routespace.errors import MissingDependencyError as MissingDependencyError
    from routespace.errors import RoutespaceError as RoutespaceError
    from routespace.errors import SpecError as SpecError
    from routespace.grid.architecture import Architecture as Architecture
    from routespace.grid.cost import architecture_cost as architecture_cost
    from routespace.grid.cost import batch_cost as batch_cost
    from routespace.grid.count import count_static as count_static
    from routespace.grid.gate_spec import GateSpec as GateSpec
    from routespace.grid.graph import Edge as Edge
    from routespace.grid.graph import RoutingGrid as RoutingGrid
    from routespace.grid.sample import sample_static as sample_static
    from routespace.grid.select import select as select
    from routespace.grid.spec import GridSpec as GridSpec
    from routespace.grid.usage import EdgeUsage as EdgeUsage
    from routespace.grid.usage import usage_from_json as usage_from_json
    from routespace.nn.pretrained import load_timm_weights as load_timm_weights
    from routespace.nn.replayed import Replayed as Replayed
    from routespace.nn.route_net import RouteNet as RouteNet
    from routespace.nn.route_net import RouteOutput as RouteOutput
    from routespace.nn.routing.routes import Routes as Routes
    from routespace.nn.task_net import TaskNet as TaskNet
    from routespace.nn.task_net import TaskOutput as TaskOutput
    from routespace.nn.usage import measure_usage as measure_usage
    from routespace.recipes import load_recipe as load_recipe
    from routespace.search.records import load_study as load_study
    from routespace.search.study import run_study as run_study
    from routespace.train.budget import budget_loss as budget_loss
    from routespace.train.calibrate import calibrate_threshold as calibrate_threshold
    from routespace.train.candidates import evaluate_candidates as evaluate_candidates
    from routespace.train.controls import object_auc as object_auc
    from routespace.train.controls import oracle_routes as oracle_routes
    from routespace.train.evaluate import evaluate as evaluate
    from routespace.train.recipe.recipe import Recipe as Recipe
    from routespace.train.run import train_recipe as train_recipe
    from routespace.workflow.artifacts import load_run as load_run
    from routespace.workflow.evaluation import evaluate_network as evaluate_network
    from routespace.workflow.extraction import extract_bundle as extract_bundle
    from routespace.workflow.fine_tuning import FineTuning as FineTuning
    from routespace.workflow.routed import extract_routed as extract_routed
    from routespace.workflow.series import extract_series as extract_series

else:

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module 'routespace' has no attribute {name!r}; see routespace.__all__")
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
