"""A family's torch side: abstract classes that are filled in, one final Stage, one constant that tells them."""

import subprocess
import sys
import types

import pytest
import torch
from torch import nn

from routespace.errors import SpecError
from routespace.grid.families.base import Family
from routespace.grid.families.pvt_v2 import PVT_V2, PvtV2
from routespace.grid.presets import FAMILIES
from routespace.grid.spec import GridSpec
from routespace.nn.families import base, swin_v2
from routespace.nn.families.base import FamilyModules, Stage, modules_of
from routespace.nn.packing.keep import KeptTokens

ABSTRACT = (base.Stem, base.Block, base.PatchEmbed, base.TokenEmbed, base.Output)


def small(family: str | Family, **more: object) -> GridSpec:
    return GridSpec(layers=2, max_down=8, family=family, image_size=64, **more)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=str)
def test_a_built_in_family_fills_in_the_abstract_classes(family):
    spec, modules = small(family), modules_of(family)
    made = modules.stem(spec), modules.block(spec, 8, drop_path=0.0, index=0), modules.patch_embed(spec, 4)
    for module, wanted in zip((*made, modules.output(spec, 8)), (*ABSTRACT[:3], base.Output), strict=True):
        assert isinstance(module, wanted)
    x = made[0](torch.zeros(2, 3, 64, 64))
    assert x.shape == (2, 256, spec.width(4))
    assert made[2](x, (16, 16)).shape == (2, 64, spec.width(8))
    stage = modules.stage(spec, 8, 3, drop_path=0.1, first=1)
    assert type(stage) is Stage
    assert [name for name, _ in stage.named_children()] == ["blocks"]
    assert len(stage.blocks) == 3


@pytest.mark.parametrize("wanted", ABSTRACT)
def test_a_class_is_abstract_or_final(wanted):
    with pytest.raises(TypeError, match="abstract"):
        wanted()
    assert Stage.__final__
    assert not Stage.__subclasses__()


def test_places_of_blocks_go_on_from_column_to_column():
    stage = modules_of(FAMILIES["swin_v2"]).stage
    shifted = [block.shifted for first in (0, 1, 3) for block in stage(small("swin_v2"), 8, 2, first=first).blocks]
    assert shifted == [False, True, True, False, True, False]


@torch.no_grad()
def test_blocks_of_a_stage_share_their_windows_tables(monkeypatch):
    """Two kinds of windows, plain and shifted, whatever the number of blocks; and anew for the next mask."""
    made = []
    monkeypatch.setattr(swin_v2, "touch", lambda *args, real=swin_v2.touch: made.append(args) or real(*args))
    spec = small("swin_v2", window=4)
    stage = swin_v2.MODULES.stage(spec, 8, 6).eval()
    x = torch.randn(1, 64, spec.width(8))
    for rounds in (1, 2):
        stage(x, (8, 8), KeptTokens(torch.rand(1, 64) < 0.5, (8, 8)), packed=True)
        assert len(made) == 2 * rounds


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({}, "cannot be imported (AttributeError"),
        ({"MODULES": nn}, "MODULES of odd_modules is a module; give a FamilyModules"),
    ],
)
def test_a_module_that_does_not_tell_is_one_line(monkeypatch, source, words):
    module = types.ModuleType("odd_modules")
    vars(module).update(source)
    monkeypatch.setitem(sys.modules, "odd_modules", module)

    class Odd(PvtV2):
        name, nn_module = "odd", "odd_modules"

    with pytest.raises(SpecError) as caught:
        modules_of(Odd())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_modules_are_told_by_hand_too():
    """Tests and notebooks may mix the parts of two families."""
    pvt, swin = modules_of(PVT_V2), swin_v2.MODULES
    mixed = FamilyModules(stem=swin.stem, block=pvt.block, patch_embed=swin.patch_embed, output=pvt.output)
    assert mixed.from_timm is None
    assert mixed.stage(small(PVT_V2), 4, 2)(torch.zeros(1, 256, 64), (16, 16)).shape == (1, 256, 64)


def test_a_grid_with_a_family_needs_no_torch():
    code = (
        "import sys; from routespace.grid.spec import GridSpec; GridSpec(layers=4); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
