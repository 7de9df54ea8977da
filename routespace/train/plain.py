"""The plain counterpart of a recipe: an ordinary staircase network of the MACs that a routed one takes."""

from __future__ import annotations

import itertools

from routespace.errors import BudgetError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.train.recipe.recipe import Recipe

NEAR = 3  # how far each rate's channels per head may lie from the common number
CLOSE_FRAC = 0.005


def plain_recipe(recipe: Recipe, macs: float) -> Recipe:
    """The recipe of a static staircase in the same grid, with widths that give it the wanted MACs.

    Heads stay as they are; the channels of a head, one number per rate, are chosen to come closest, the more
    equal ones first.

    Args:
        recipe: data, training and grid to keep.
        macs: of one image, to be met within half a percent where whole channels allow it.

    Raises:
        BudgetError: even one pair of channels a head takes more.
    """
    heads = recipe.grid.shape.heads
    fields = recipe.grid.model_dump(exclude_none=True, exclude={"size"})

    def cost(sizes: tuple[int, ...]) -> float:
        widths = tuple(size * head for size, head in zip(sizes, heads, strict=True))
        grid = RoutingGrid(GridSpec.parse(fields | {"widths": widths}))
        return architecture_cost(Architecture.staircase(grid)).macs

    largest = max(width // head for width, head in zip(recipe.grid.shape.widths, heads, strict=True))
    equal = min(range(2, 2 * largest), key=lambda size: abs(cost((size,) * len(heads)) - macs))
    if cost((2,) * len(heads)) > macs:
        raise BudgetError(
            f"macs: {macs / 1e6:.4g} MMACs is less than the narrowest plain network of this grid takes"
        )
    near = range(max(2, equal - NEAR), equal + NEAR + 1)
    candidates = sorted(itertools.product(near, repeat=len(heads)), key=lambda sizes: max(sizes) - min(sizes))
    close = (sizes for sizes in candidates if abs(cost(sizes) / macs - 1) <= CLOSE_FRAC)
    sizes = next(close, (equal,) * len(heads))
    widths = [size * head for size, head in zip(sizes, heads, strict=True)]
    return recipe.override({"name": f"{recipe.name}_plain", "routing": "static", "grid.widths": widths})
