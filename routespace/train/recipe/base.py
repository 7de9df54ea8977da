"""What the ratios of a recipe are shares of: the MACs of the family's plain network, or of one inside the grid."""

from __future__ import annotations

from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec


def base_macs(spec: GridSpec, of: str) -> int:
    """MACs of one image.

    Args:
        spec: the grid's.
        of: `base`, the family's plain network of the grid's size, `full`, the whole grid, or `staircase`.

    Raises:
        SpecError: `base` of a grid that has no size.
    """
    grid = RoutingGrid(plain_spec(spec) if of == "base" else spec)
    whole = Architecture.full if of == "full" else Architecture.staircase
    return int(architecture_cost(whole(grid)).macs)


def plain_spec(grid: GridSpec) -> GridSpec:
    """The family's plain network of the grid's size, at the grid's image size."""
    if grid.size is None:
        raise SpecError(
            "budget.of: 'base' needs grid.size, the family's named network; give it or use 'staircase'"
        )
    depths = grid.family.depths[grid.size]
    shared = grid.model_dump(include={"family", "size", "image_size", "in_channels", "num_classes"})
    # What may be one number for all rates (a window) is the plain network's, too; a list of the grid's rates only
    # where these are the plain network's.
    parameters = grid.family.parameters
    own = {
        name: value
        for name, value in grid.given.items()
        if parameters[name].one_for_all and (isinstance(value, int) or len(value) == len(depths))
    }
    shape = {"layers": len(depths), "depths": depths, "max_down": grid.stem_down << (len(depths) - 1)}
    return GridSpec.parse(shared | own | shape)
