"""Named grids: `pvt_v2_b0…b5`, `dit_b0…b5`, `swin_v2_t/s/b` and `dit_swin_v2_t/s/b`.

All have four layers whose columns hold the family's own depths, so the family's plain network is the
staircase path of each. The `dit_` grids embed in the columns S0–S3, as the paper's figures show vertical edges
there; the plain ones only in columns 1–3, where the staircase steps down.
"""

from __future__ import annotations

from typing import Any

from routespace.errors import SpecError
from routespace.grid.families.base import get_family

FAMILIES = ("pvt_v2", "swin_v2")
STAIRCASE_COLUMNS = (1, 2, 3)
DIT_COLUMNS = (0, 1, 2, 3)


def preset_names() -> list[str]:
    """Every preset's name."""
    names = []
    for family in FAMILIES:
        sizes = get_family(family).sizes
        names += [f"{family}_{size}" for size in sizes]
        names += [f"dit_{size}" if family == "pvt_v2" else f"dit_{family}_{size}" for size in sizes]
    return names


def preset_fields(name: str) -> dict[str, Any]:
    """The GridSpec fields of a preset.

    Raises:
        SpecError: no preset of that name.
    """
    if name not in preset_names():
        raise SpecError(f"preset: {name!r} is not known; allowed: {', '.join(preset_names())}")
    size = name.rsplit("_", 1)[1]
    family = get_family("swin_v2" if "swin" in name else "pvt_v2")
    return {
        "layers": 4,
        "max_down": 32,
        "family": family.name,
        "size": size,
        "depths": family.depths[size],
        "embed_layers": DIT_COLUMNS if name.startswith("dit_") else STAIRCASE_COLUMNS,
        "image_size": family.image_size,
    }
