"""Families: hashes stay, parameters belong to the family, no file imports anything, and images fit the maps."""

import copy
import json
import pickle
import subprocess
import sys

import pytest

from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.families.base import EdgeCost, Family, Parameter, Shape
from routespace.grid.families.lookup import allow_families, import_family, known_families
from routespace.grid.families.pvt_v2 import PVT_V2, PvtV2
from routespace.grid.families.swin_v2 import SWIN_V2
from routespace.grid.graph import RoutingGrid
from routespace.grid.presets import FAMILIES, preset_names
from routespace.grid.spec import GridSpec

# Of a grid, its full and its staircase architecture, as first released: runs, bundles and tables name them.
HASHES = {
    "pvt_v2_b0": ("33d665119a28", "0a877d111d4d", "58b5b56bd33f"),
    "dit_b2": ("789d907ab60a", "fb88303772ea", "5316deb4c684"),
    "dit_b5": ("5c0d684ae2d4", "e233d584a897", "45aec0c64873"),
    "swin_v2_t": ("627fd6d6c48e", "9bd3b5bd64e8", "4e7589113877"),
    "dit_swin_v2_b": ("9f90c808e66e", "64ec45b85485", "dcb725b04b02"),
}
SPECS = [
    ({"layers": 24}, "1862e93fd0c2"),
    ({"layers": 12, "family": "swin_v2", "size": "t", "image_size": 64}, "2f4897413f8a"),
    ({"layers": 4, "family": "swin_v2", "window": (16, 8, 8, 4), "image_size": 256}, "d12c79064354"),
    (
        {"layers": 2, "max_down": 8, "widths": (8, 16), "heads": (1, 2), "mlp_ratios": (2, 2), "sr_ratios": (2, 1),
         "image_size": 32, "num_classes": 10},
        "edf1addaaa07",
    ),
    (
        {"layers": 2, "max_down": 8, "family": "swin_v2", "widths": (16, 32), "heads": (1, 2),
         "mlp_ratios": (2, 2.5), "window": 4, "image_size": (40, 56), "num_classes": 10,
         "outputs": "pyramid", "embed_layers": (0, 1)},
        "d3b04496a827",
    ),
]  # fmt: skip
# A grid file as it was written when every family's parameters were fields of every grid.
OLD_FILE = json.loads("""{"layers": 2, "max_down": 8, "stem_down": 4, "depths": 1, "embed_layers": [0, 1],
    "family": "swin_v2", "widths": [16, 32], "heads": [1, 2], "mlp_ratios": [2.0, 2.5], "sr_ratios": null,
    "window": 4, "outputs": "pyramid", "image_size": [40, 56], "in_channels": 3, "num_classes": 10}""")


class Glance(PvtV2):
    """PVTv2 with numbers of its own."""

    name = "glance"
    nn_module = "routespace.nn.families.pvt_v2"
    parameters = PVT_V2.parameters | {
        "reach": Parameter("How far a block looks", one_for_all=True, least=0, default=0),
        "strides": Parameter("Strides of something"),
    }
    sizes = {"s": Shape((32, 64, 160, 256), (1, 2, 5, 8), (8.0, 8.0, 4.0, 4.0),
                        {"sr_ratios": (8, 4, 2, 1), "strides": (4, 3, 2, 1)})}  # fmt: skip
    depths = {"s": (1, 1, 1, 1)}


GLANCE = Glance()


@pytest.mark.parametrize("name", HASHES)
def test_hashes_of_named_grids_stay(name):
    grid = RoutingGrid(GridSpec.preset(name))
    assert (grid.hash, Architecture.full(grid).hash, Architecture.staircase(grid).hash) == HASHES[name]


@pytest.mark.parametrize(("fields", "digits"), SPECS)
def test_hashes_stay_in_python_in_files_and_back(fields, digits):
    spec = GridSpec(**fields)
    assert spec.hash == GridSpec.parse(fields).hash == digits
    data = json.loads(json.dumps(RoutingGrid(spec).to_json()))
    assert {name for name in fields if name in data["spec"]} == set(fields)  # flat, as they were given
    again = RoutingGrid.from_json(data).spec
    assert again == spec == pickle.loads(pickle.dumps(spec)) == copy.deepcopy(spec)
    assert again.hash == pickle.loads(pickle.dumps(spec)).hash == digits


def test_old_files_are_read():
    assert GridSpec.parse(OLD_FILE).hash == "d3b04496a827"
    assert GridSpec.parse(OLD_FILE | {"preset": "swin_v2_t"}).hash == "d3b04496a827"


def test_every_preset_has_its_familys_name():
    for name in preset_names():
        family = GridSpec.preset(name).family
        assert family in FAMILIES.values()
        assert name.startswith(family.name) or (name.startswith("dit_") and family.name in (name[4:-2], "pvt_v2"))


def test_parameters_belong_to_the_family():
    fields = {"layers": 4, "family": GLANCE}
    spec = GridSpec(**fields)
    assert [spec.own("strides", rate) for rate in spec.rates] == [4, 3, 2, 1]
    assert [spec.own("reach", rate) for rate in spec.rates] == [0] * 4
    assert GridSpec(**fields, reach=3).own("reach", 16) == 3
    assert GridSpec(**fields, reach=[3, 1, 1, 1]).own("reach", 16) == 1
    assert GridSpec(**fields, strides=[9, 9, 9, 9], max_down=32).own("strides", 4) == 9
    # one number for all, the list of it, and the default are the same grid
    assert GridSpec(**fields, reach=3).hash == GridSpec(**fields, reach=[3] * 4).hash != spec.hash
    assert GridSpec(**fields, reach=0).hash == spec.hash
    assert "reach" in GridSpec(**fields, reach=3).canonical()
    assert "reach" not in GridSpec(layers=4).canonical()


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"reach": -1}, "reach: -1 is not allowed; give one whole number from 0 up, or one per rate"),
        ({"reach": True}, "reach: True is not allowed"),
        ({"reach": [1, 2]}, "reach: 2 numbers given for 4 rates [4, 8, 16, 32]; give 4, one per rate"),
        ({"strides": 3}, "strides: 3 is not allowed; give whole numbers from 1 up, one per rate"),
        ({"strides": [1.5] * 4}, "strides: [1.5, 1.5, 1.5, 1.5] is not allowed"),
        ({"size": None, "widths": [8] * 4, "heads": [1] * 4, "mlp_ratios": [2] * 4, "sr_ratios": [1] * 4},
         "strides: missing; without a size give 4 numbers, one per rate"),
        ({"window": 8}, "window: family glance has none; leave it out, or use swin_v2"),
        ({"wimdow": 8}, "wimdow: unknown field; perhaps window; allowed: layers, "),
        ({"two\nlines": None}, r"'two\nlines': unknown field; allowed: layers, "),
        ({"family": "swin_v2", "strides": [1] * 4}, "strides: unknown field"),  # of no family that a file may name
    ],
)  # fmt: skip
def test_wrong_parameters_are_one_line(fields, line):
    with pytest.raises(SpecError) as caught:
        GridSpec(**{"layers": 4, "family": GLANCE} | fields)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_nothing_given_for_another_familys_parameter_is_fine():
    assert GridSpec(layers=4, window=None, sr_ratios=None) == GridSpec(layers=4)


def test_a_family_is_passed_or_allowed():
    grid = RoutingGrid(GridSpec(layers=4, family=GLANCE, reach=2))
    data = grid.to_json()
    assert data["spec"]["family"] == "glance"
    with pytest.raises(SpecError, match="family: 'glance' is not known; allowed: pvt_v2, swin_v2, "):
        RoutingGrid.from_json(data)
    assert RoutingGrid.from_json(data, families=[GLANCE]) == grid
    assert GridSpec.parse(data["spec"], families=[GLANCE]) == grid.spec
    path = Architecture.staircase(grid)
    assert Architecture.from_json(path.to_json(), families=[GLANCE]) == path
    with allow_families(GLANCE):
        assert RoutingGrid.from_json(data) == grid
        with allow_families(SWIN_V2):
            assert set(known_families()) == {*FAMILIES, "glance"}
    assert set(known_families()) == set(FAMILIES)


def test_what_is_allowed_is_checked():
    class Pvt(PvtV2):
        pass

    with pytest.raises(SpecError, match="family: 'pvt_v2' is a built-in family; give yours another name"):
        GridSpec(layers=4, family=Pvt())
    with pytest.raises(SpecError, match="built-in family"), allow_families(Pvt()):
        pass
    with pytest.raises(SpecError, match="families: 'glance' is a str; give Family objects"):
        GridSpec.parse({"layers": 4}, families=["glance"])
    with pytest.raises(SpecError, match="family: 3 is not known"):
        GridSpec(layers=4, family=3)


def test_a_family_that_is_defined_again_is_another():
    """As in a notebook, where a cell with other prices is run again."""

    class Dear(Glance):
        def stem_cost(self, spec) -> EdgeCost:
            return EdgeCost(0, 0, 10**12, 0, 0)

    class Cheap(Glance):
        def stem_cost(self, spec) -> EdgeCost:
            return EdgeCost(0, 0, 0, 0, 0)

    costs = [
        architecture_cost(Architecture.staircase(RoutingGrid(GridSpec(layers=4, family=family()))))
        for family in (Dear, Cheap)
    ]
    assert costs[0].macs - costs[1].macs == 10**12
    assert Dear() == Dear() != Cheap()
    assert {Dear(), Dear()} == {Dear()}


def test_a_copy_of_a_family_is_the_family():
    assert pickle.loads(pickle.dumps(PVT_V2)) == copy.deepcopy(PVT_V2) == PVT_V2 != SWIN_V2
    assert GridSpec(layers=4, family=copy.deepcopy(SWIN_V2)) == GridSpec(layers=4, family="swin_v2")
    assert str(PVT_V2) == PVT_V2.name == "pvt_v2"
    with pytest.raises(TypeError, match="abstract"):
        Family()


@pytest.mark.parametrize("name", ["this:s", "os:path", "antigravity:X", "routespace.nn:X", ".x:y", ":"])
def test_naming_a_module_imports_nothing(name):
    code = f"""
import sys
from routespace.errors import SpecError
from routespace.grid.spec import GridSpec
before = set(sys.modules)
for make in (GridSpec, lambda **fields: GridSpec.parse(fields)):
    try:
        make(layers=4, family={name!r})
    except SpecError as error:
        assert "--family-module" in str(error), error
    else:
        raise AssertionError("it was accepted")
print(sorted(set(sys.modules) - before))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise BaseException('two\\nlines')", "BaseException: two lines"),
        ("x = (", "SyntaxError"),
        ("VIT = 3", "is a int, not a Family"),
        ("OTHER = 3", "has no attribute 'VIT'"),
    ],
)
def test_a_module_that_was_allowed_and_fails_is_one_line(tmp_path, monkeypatch, source, reason):
    (tmp_path / "broken_family.py").write_text(source + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_family", raising=False)
    with pytest.raises(SpecError) as caught:
        import_family("broken_family:VIT")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    sys.modules.pop("broken_family", None)


def test_an_interrupt_while_importing_is_one(tmp_path, monkeypatch):
    (tmp_path / "slow_family.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        import_family("slow_family:VIT")
    for name in ("", "x", ":", "x:", ":x", ".x:y"):
        with pytest.raises(SpecError, match="family-module"):
            import_family(name)


@pytest.mark.parametrize("max_down", [4, 8, 16, 32])
def test_the_least_image_is_the_least_that_fits(max_down):
    spec = GridSpec(layers=4, max_down=max_down)
    least = spec.least_image_px
    assert least == max(29, max_down)  # rate 4 of PVTv2 needs eight tokens a side
    assert GridSpec(layers=4, max_down=max_down, image_size=least).image_size == (least, least)
    with pytest.raises(SpecError, match=r"(image_size|sr_ratios).*\d+x\d+"):
        GridSpec(layers=4, max_down=max_down, image_size=least - 1)
    assert spec.at(least).image_size == (least, least)
    with pytest.raises(SpecError, match=f"image_size: {least - 1}x50 px is too small .*give at least {least} px"):
        spec.at((least - 1, 50))


def test_other_sizes_of_image_are_priced_as_they_run():
    spec = GridSpec(layers=4, max_down=16, family="swin_v2", size="t", window=8, image_size=64)
    small = spec.at(20)
    assert small.given == spec.given
    assert small.hash != spec.hash
    assert small.map_size(4) == (5, 5)  # smaller than the window, which shrinks
    path = Architecture.staircase(RoutingGrid(spec))
    assert architecture_cost(path, image_size=20).macs < architecture_cost(path).macs
    for size in (0, -1, "20", (20,), 1 << 20, True, 2.5):
        with pytest.raises(SpecError, match="image_size"):
            spec.at(size)
