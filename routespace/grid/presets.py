"""The built-in families, and the named grids of their sizes: `pvt_v2_b0…b5`, `dit_b0…b5`, `swin_v2_t/s/b` and
`dit_swin_v2_t/s/b`.

All have four layers whose columns hold the family's own depths, so the family's plain network is the
staircase path of each. The `dit_` grids embed in the columns S0–S3, as the paper's figures show vertical edges
there; the plain ones only in columns 1–3, where the staircase steps down.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from routespace.errors import SpecError
from routespace.grid.families.base import Family
from routespace.grid.families.pvt_v2 import PVT_V2
from routespace.grid.families.swin_v2 import SWIN_V2

STAIRCASE_COLUMNS = (1, 2, 3)
DIT_COLUMNS = (0, 1, 2, 3)

# A grid is called by its kind and a size of the family, as in dit_b2. This table is all that makes a family a
# built-in one: `family: swin_v2` in a file is looked up here.
PRESETS: Mapping[str, tuple[Family, tuple[int, ...]]] = {
    "pvt_v2": (PVT_V2, STAIRCASE_COLUMNS),
    "dit": (PVT_V2, DIT_COLUMNS),
    "swin_v2": (SWIN_V2, STAIRCASE_COLUMNS),
    "dit_swin_v2": (SWIN_V2, DIT_COLUMNS),
}
FAMILIES: Mapping[str, Family] = {family.name: family for family, _ in PRESETS.values()}


def preset_names() -> list[str]:
    """Every preset's name."""
    return [f"{kind}_{size}" for kind, (family, _) in PRESETS.items() for size in family.sizes]


def preset_fields(name: str) -> dict[str, Any]:
    """The GridSpec fields of a preset.

    Raises:
        SpecError: no preset of that name.
    """
    if name not in preset_names():
        raise SpecError(f"preset: {name!r:.80} is not known; allowed: {', '.join(preset_names())}")
    kind, _, size = name.rpartition("_")
    family, columns = PRESETS[kind]
    return {
        "layers": 4,
        "max_down": 32,
        "family": family,
        "size": size,
        "depths": family.depths[size],
        "embed_layers": columns,
        "image_size": family.image_size,
    }
