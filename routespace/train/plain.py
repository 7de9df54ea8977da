"""The plain counterpart of a recipe: an ordinary staircase network of the MACs that a routed one takes."""

from __future__ import annotations

import itertools
import math

from routespace.errors import BudgetError, SpecError
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
    grid, heads = recipe.grid, recipe.grid.shape.heads
    # Without size and widths a grid has its family's first size; with widths alone it would have none.
    size = grid.size if grid.size is not None or grid.widths is not None else next(iter(grid.family.sizes))
    fields = grid.model_dump(exclude_none=True) | ({} if size is None else {"size": size})

    def widths_of(channels: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(each * head for each, head in zip(channels, heads, strict=True))

    def cost(channels: tuple[int, ...]) -> float:
        """MACs of the staircase; infinite where the family cannot have such widths."""
        try:
            spec = GridSpec.parse(fields | {"widths": widths_of(channels)})
        except SpecError:
            return math.inf
        return architecture_cost(Architecture.staircase(RoutingGrid(spec))).macs

    largest = max(width // head for width, head in zip(grid.shape.widths, heads, strict=True))
    equal_costs = {each: cost((each,) * len(heads)) for each in range(2, 2 * largest)}
    if min(equal_costs.values()) > macs:
        raise BudgetError(
            f"macs: {macs / 1e6:.4g} MMACs is less than the narrowest plain network of this grid takes"
        )
    equal = min(equal_costs, key=lambda each: abs(equal_costs[each] - macs))
    near = range(max(2, equal - NEAR), equal + NEAR + 1)
    candidates = sorted(itertools.product(near, repeat=len(heads)), key=lambda each: max(each) - min(each))
    close = (each for each in candidates if abs(cost(each) / macs - 1) <= CLOSE_FRAC)
    widths = list(widths_of(next(close, (equal,) * len(heads))))
    changes = {"name": f"{recipe.name}_plain", "routing": "static", "grid.size": size, "grid.widths": widths}
    return recipe.override(changes)
