"""Loading the network of a run or bundle together with the recipe that its data comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from routespace.cli.arguments import load_usage, net_folder
from routespace.errors import BundleError

if TYPE_CHECKING:
    from routespace.deploy.bundle import Card
    from routespace.grid.usage import Usage
    from routespace.nn.route_net import RouteNet
    from routespace.train.recipe.recipe import Recipe

RECIPE_FILE = "recipe.yaml"


@dataclass(frozen=True)
class Found:
    """A trained network on disk.

    Attributes:
        folder: the run or bundle.
        net: its network, on the CPU, in evaluation mode.
        recipe: what it was trained with; None for a bundle that came without.
        card: a bundle's; None for a run.
        usage: what the run measured on validation; empty for a static network, None when not measured.
    """

    folder: Path
    net: RouteNet
    recipe: Recipe | None
    card: Card | None
    usage: Usage | None

    def require_recipe(self) -> Recipe:
        """The recipe; raises BundleError when there is none."""
        if self.recipe is None:
            raise BundleError(f"{self.folder}: has no {RECIPE_FILE}; name the recipe of its data with --recipe")
        return self.recipe


def load_found(folder: Path, recipe: str | None = None) -> Found:
    """The network of a run or bundle.

    Args:
        folder: a run's or a bundle's.
        recipe: name or file to take instead of the folder's own.

    Raises:
        BundleError: neither a finished run nor a bundle, or a file is damaged.
        SpecError: the recipe cannot be read.
    """
    from routespace.deploy.bundle import is_bundle, load_bundle
    from routespace.nn.weights import load_net
    from routespace.recipes import load_recipe

    own = folder / RECIPE_FILE
    source = recipe or (str(own) if own.exists() else None)
    taken = load_recipe(source) if source is not None else None
    if is_bundle(folder):
        net, card = load_bundle(folder)
        return Found(folder, net.eval(), taken, card, None)
    net = load_net(net_folder(folder)).eval()
    return Found(folder, net, taken, None, load_usage(folder, net.architecture.grid))
