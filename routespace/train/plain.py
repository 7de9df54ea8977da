"""The plain counterpart of a recipe: an ordinary staircase network of the MACs that a routed one takes.

plain_recipe(recipe, macs)             as deep as the recipe's own staircase, and as wide as the MACs allow
smaller_recipe(recipe, macs)           the recipe's own staircase, on images that are as small as the MACs ask for
plain_recipes(recipe, macs)            splits of the blocks, each with widths of its own, and smaller images
best_plain(recipe, macs)               the one of these that short trainings find best (plain_search.py)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from routespace.errors import BudgetError, GridError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.train.recipe.parts import SELF
from routespace.train.recipe.recipe import Recipe
from routespace.train.recipe.resizing import size_changes

NEAR = 3  # how far each rate's channels per head may lie from the common number
CLOSE_FRAC = 0.005
NEAR_FRAC = 0.1  # of the wanted MACs, by which smaller images may be off: their sizes come in steps


class PlainShape(NamedTuple):
    """What tells plain networks of the same MACs apart.

    Attributes:
        blocks: of each rate, fine to coarse.
        image_size: (H, W) in pixels.
    """

    blocks: tuple[int, ...]
    image_size: tuple[int, int]

    def __str__(self) -> str:
        height, width = self.image_size
        return f"{' + '.join(map(str, self.blocks))} blocks, {height}x{width} px"


def plain_recipe(recipe: Recipe, macs: float, *, blocks: Sequence[int] | None = None) -> Recipe:
    """The recipe of a static staircase, with widths that give it the wanted MACs.

    Heads stay as they are; the channels of a head, one number per rate, are chosen to come closest, the more
    equal ones first. What is of routed networks alone (a sandwich, a network that teaches itself) is left out.

    Args:
        recipe: data, training and grid to keep.
        macs: of one image, to be met within half a percent where whole channels allow it.
        blocks: of each rate, fine to coarse; None for those of the recipe's grid, shared equally.

    Raises:
        BudgetError: even one pair of channels a head takes more.
    """
    grid, heads = recipe.grid, recipe.grid.shape.heads
    # Without size and widths a grid has its family's first size; with widths alone it would have none.
    size = grid.size if grid.size is not None or grid.widths is not None else next(iter(grid.family.sizes))
    shape: dict[str, Any] = {} if size is None else {"size": size}
    if blocks is not None:
        shape |= {"layers": max(1, sum(blocks)), "depths": 1, "embed_layers": "all"}
    fields = grid.model_dump(exclude_none=True) | shape

    def widths_of(channels: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(each * head for each, head in zip(channels, heads, strict=True))

    def cost(channels: tuple[int, ...]) -> float:
        """MACs of the staircase; infinite where the family cannot have such widths."""
        try:
            spec = GridSpec.parse(fields | {"widths": widths_of(channels)})
        except SpecError:
            return math.inf
        return architecture_cost(Architecture.staircase(RoutingGrid(spec), blocks)).macs

    largest = max(width // head for width, head in zip(grid.shape.widths, heads, strict=True))
    equal_costs = dict[int, float]()
    for each in range(2, (2 if blocks is None else 4) * largest):
        equal_costs[each] = cost((each,) * len(heads))
        if macs <= equal_costs[each] < math.inf:  # wider networks take more
            break
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
    changes |= {f"grid.{name}": value for name, value in shape.items()}
    changes["split"] = None if blocks is None else list(blocks)
    return recipe.override(changes | _without_routing(recipe))


def _without_routing(recipe: Recipe) -> dict[str, Any]:
    """Changes that leave out what is of routed networks alone."""
    changes: dict[str, Any] = {"gates": GateSpec().model_dump(mode="json"), "budget.ratio": None}
    changes |= {"budget.macs": None, "budget.control": 0.0, "train.mode": "plain", "train.start": "open"}
    changes["task"] = recipe.task.without_gates().model_dump(mode="json")
    return changes | ({"train.teacher": None} if recipe.train.teacher == SELF else {})


def smaller_recipe(recipe: Recipe, macs: float) -> Recipe:
    """The recipe of the grid's own staircase as a static network, on smaller images.

    Args:
        recipe: data, training and grid to keep; what it says in pixels of scenes that are made here shrinks along.
        macs: of one image. The size is the largest that takes at most a tenth more.

    Raises:
        BudgetError: no smaller size is within a tenth of that.
    """
    grid, stairs = recipe.grid, Architecture.staircase(RoutingGrid(recipe.grid))
    height, width = grid.image_size
    step, least = grid.stem_down, grid.least_image_px
    sides = range(-(-least // step) * step, min(height, width), step)
    sizes = [
        (round(height * side / min(height, width)), round(width * side / min(height, width))) for side in sides
    ]
    costs = {size: architecture_cost(stairs, image_size=size).macs for size in sizes}
    fitting = [size for size, cost in costs.items() if abs(cost / macs - 1) <= NEAR_FRAC]
    if not fitting:
        raise BudgetError(f"macs: {macs / 1e6:.4g} MMACs is what no smaller image of this grid's staircase takes")
    size = fitting[-1]
    changes: dict[str, Any] = {"name": f"{recipe.name}_smaller", "routing": "static", "split": None}
    return recipe.override(changes | size_changes(recipe, size) | _without_routing(recipe))


def plain_recipes(recipe: Recipe, macs: float) -> dict[PlainShape, Recipe]:
    """Plain networks of the wanted MACs: splits of the blocks among the rates, and smaller images.

    Args:
        recipe: as in `plain_recipe`.
        macs: of one image.

    Returns:
        Shape → the recipe. The first has the blocks of the recipe's own staircase; then come one block a rate,
        none at the finest, and more at a coarse one; last the own staircase on smaller images. What cannot have
        these MACs is left out.

    Raises:
        BudgetError: none can.
    """
    own = _own_blocks(recipe.grid)
    ones, last = [1] * len(own), len(own) - 1
    coarse = max(0, last - 1)  # plain networks have most of their blocks there
    wanted = [own, ones, [0, *ones[1:]]]
    wanted += [_with(some, coarse, 1) for some in (ones, [0, *ones[1:]], own)]
    wanted += [_with(own, 0, -1)]
    size, found = recipe.grid.image_size, dict[PlainShape, Recipe]()
    for blocks in dict.fromkeys(map(tuple, wanted)):
        with suppress(BudgetError, GridError):
            found[PlainShape(blocks, size)] = plain_recipe(recipe, macs, blocks=blocks)
    with suppress(BudgetError, SpecError):
        smaller = smaller_recipe(recipe, macs)
        found[PlainShape(tuple(own), smaller.grid.image_size)] = smaller
    if not found:
        found[PlainShape(tuple(own), size)] = plain_recipe(recipe, macs)  # which tells why it cannot be
    return found


def _own_blocks(grid: GridSpec) -> list[int]:
    """Blocks of each rate in a grid's staircase of equal shares."""
    stairs = Architecture.staircase(RoutingGrid(grid))
    blocks = dict.fromkeys(grid.rates, 0)
    for name in stairs.edges:
        edge = stairs.grid.edges[name]
        if edge.kind == "transformer":
            blocks[edge.rate] += grid.depth(edge.layer)
    return list(blocks.values())


def _with(blocks: Sequence[int], place: int, more: int) -> list[int]:
    changed = list(blocks)
    changed[place] = max(0, changed[place] + more)
    return changed
