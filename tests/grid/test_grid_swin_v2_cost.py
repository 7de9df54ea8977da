"""SwinV2's prices against torch's counter, timm's networks and the paper's table."""

import json
import math

import pytest
import timm
import torch
from fvcore.nn import FlopCountAnalysis
from thinning import thinned
from torch.utils.flop_counter import FlopCounterMode

from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.families.base import EdgeCost
from routespace.grid.families.swin_v2 import padded_size, window_sides
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.presets import preset_names
from routespace.grid.spec import GridSpec
from routespace.nn.families.swin_v2 import Output, PatchEmbed, Stem, SwinBlock
from routespace.nn.task_net import TaskNet

SIZES = [(256, 256), (224, 224), (100, 132), (61, 95), (32, 32)]


@torch.no_grad()
def counted(module: torch.nn.Module, *inputs) -> tuple[int, int]:
    """Parameters of a module, and its MACs by torch's counter (which counts a multiply-add as two)."""
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return sum(p.numel() for p in module.parameters()), flops // 2


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def priced(cost: EdgeCost) -> tuple[int, int]:
    return cost.params, cost.macs


@pytest.mark.parametrize(*thinned(size=["t", "b"], image=SIZES))
def test_every_part_costs_what_torch_counts(size, image):
    spec = GridSpec.preset(f"swin_v2_{size}", image_size=image, in_channels=4)
    family = spec.family
    with torch.device("meta"):
        assert priced(family.stem_cost(spec)) == counted(Stem(spec), meta(1, 4, *image))
        for rate in spec.rates:
            hw = spec.map_size(rate)
            x = meta(1, hw[0] * hw[1], spec.width(rate))
            for shifted in (False, True):
                block = SwinBlock(spec, rate, index=int(shifted))
                assert priced(family.block_cost(spec, rate)) == counted(block, x, hw)
            assert priced(family.output_cost(spec, rate)) == counted(Output(spec, rate), x)
            if rate < spec.max_down:
                assert priced(family.patch_embed_cost(spec, rate)) == counted(PatchEmbed(spec, rate), x, hw)


@pytest.mark.parametrize(("window", "ratio"), [(7, 4.0), (12, 2.5), (1, 3.0), (40, 1.0)])
def test_other_windows_and_ratios(window, ratio):
    spec = GridSpec.preset("swin_v2_t", image_size=(160, 224), window=window, mlp_ratios=[ratio] * 4)
    with torch.device("meta"):
        for rate in spec.rates:
            hw = spec.map_size(rate)
            block = SwinBlock(spec, rate, index=1)
            x = meta(1, hw[0] * hw[1], spec.width(rate))
            assert priced(spec.family.block_cost(spec, rate)) == counted(block, x, hw)


@pytest.mark.parametrize(
    ("window", "image"),
    [
        pytest.param((16, 8, 8, 4), (160, 224), marks=pytest.mark.slow),
        ((3, 5, 7, 2), (100, 132)),
        *(pytest.param(window, (256, 256), marks=pytest.mark.slow) for window in ((16, 8, 8, 4), (3, 5, 7, 2))),
        pytest.param((16, 8, 8, 4), (100, 132), marks=pytest.mark.slow),
        pytest.param((3, 5, 7, 2), (160, 224), marks=pytest.mark.slow),
    ],
)
def test_a_window_for_each_rate_costs_what_torch_counts(window, image):
    spec = GridSpec.preset("dit_swin_v2_t", image_size=image, window=window)
    architecture, gates = Architecture.full(RoutingGrid(spec)), GateSpec()
    with torch.device("meta"):
        for rate, side in zip(spec.rates, window, strict=True):
            hw = spec.map_size(rate)
            x = meta(1, hw[0] * hw[1], spec.width(rate))
            for shifted in (False, True):
                block = SwinBlock(spec, rate, index=int(shifted))
                assert block.window == spec.own("window", rate) == side
                assert priced(spec.family.block_cost(spec, rate)) == counted(block, x, hw)
        cost = architecture_cost(architecture, gates=gates)
        assert counted(TaskNet.classifier(architecture, gates).eval(), meta(1, 3, *image)) == (
            cost.params,
            cost.macs,
        )


def test_one_window_for_all_rates_is_the_same_grid_as_equal_ones():
    one = GridSpec.preset("swin_v2_t", window=8)
    assert one.model_dump(mode="json")["window"] == 8
    assert RoutingGrid(one).hash == "627fd6d6c48e"  # saved grids keep their name
    assert GridSpec.preset("swin_v2_t").hash == GridSpec.preset("swin_v2_t", window=[8, 8, 8, 8]).hash == one.hash


def test_a_window_for_each_rate_is_saved_and_read_back():
    grid = RoutingGrid(GridSpec.preset("swin_v2_t", window=[16, 8, 8, 4]))
    again = RoutingGrid.from_json(json.loads(json.dumps(grid.to_json())))
    assert again.spec == grid.spec
    assert again.spec.given["window"] == (16, 8, 8, 4)
    hashes = {GridSpec.preset("swin_v2_t", window=w).hash for w in (8, 16, (16, 8, 8, 4), (8, 16, 8, 4))}
    assert len(hashes | {grid.hash}) == 4


@pytest.mark.parametrize(
    ("size", "name", "image"),
    [
        pytest.param("t", "tiny", (256, 256), marks=pytest.mark.slow),
        pytest.param("s", "small", (256, 256), marks=pytest.mark.slow),
        pytest.param("b", "base", (256, 256), marks=pytest.mark.slow),
        pytest.param("t", "tiny", (224, 288), marks=pytest.mark.slow),
        ("t", "tiny", (100, 132)),
    ],
)
def test_staircase_costs_what_timm_costs(size, name, image):
    """To the digit, one image at a time: padding and the position bias's network are computed, so they count."""
    with torch.device("meta"):
        oracle = timm.create_model(f"swinv2_{name}_window8_256", img_size=image).eval()
        grid = RoutingGrid(GridSpec.preset(f"swin_v2_{size}", image_size=image))
        architecture = Architecture.staircase(grid)
        wanted = counted(oracle, meta(1, 3, *image))
        cost = architecture_cost(architecture)
        assert (cost.params, cost.macs) == wanted
        assert counted(TaskNet.classifier(architecture).eval(), meta(1, 3, *image)) == wanted


@pytest.mark.filterwarnings("ignore")  # fvcore traces with torch.jit, which warns
def test_fvcore_agrees_once_attention_has_a_handle():
    grid = RoutingGrid(GridSpec(layers=2, max_down=8, depths=2, family="swin_v2", size="t", image_size=(72, 80)))
    architecture = Architecture.staircase(grid)
    analysis = FlopCountAnalysis(TaskNet.classifier(architecture).eval().as_module(), torch.zeros(1, 3, 72, 80))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.set_op_handle("aten::scaled_dot_product_attention", attention_macs)
    found = analysis.by_operator()
    multiplied = ("conv", "linear", "matmul", "scaled_dot_product_attention")  # norms are not MACs of ours
    assert sum(found.get(name, 0) for name in multiplied) == architecture_cost(architecture).macs


def attention_macs(inputs, _outputs) -> int:
    query, key, value = (tensor.type().sizes() for tensor in inputs[:3])
    return math.prod(query) * key[-2] + math.prod(query[:-1]) * key[-2] * value[-1]


@pytest.mark.parametrize(("size", "params", "gmacs"), [("t", 28, 5.9), ("s", 50, 11.5), ("b", 88, 20.3)])
def test_the_papers_table(size, params, gmacs):
    cost = architecture_cost(Architecture.staircase(RoutingGrid(GridSpec.preset(f"swin_v2_{size}"))))
    assert round(cost.params / 1e6) == params
    assert cost.macs / 1e9 == pytest.approx(gmacs, abs=0.05)


def test_bytes_are_positive_and_grow_with_the_image():
    small, large = (
        architecture_cost(Architecture.full(RoutingGrid(GridSpec.preset("dit_swin_v2_t", image_size=side))))
        for side in (128, 256)
    )
    assert 4 * small.params < small.bytes < large.bytes < 4 * small.bytes


def test_presets():
    for size in ("t", "s", "b"):
        for name in (f"swin_v2_{size}", f"dit_swin_v2_{size}"):
            assert name in preset_names()
            assert GridSpec.preset(name).image_size == (256, 256)


def test_windows_are_clamped_to_the_map():
    assert window_sides((64, 64), 8) == (8, 8)
    assert window_sides((4, 64), 8) == (4, 8)
    assert padded_size((11, 16), (8, 8)) == (16, 16)


def test_a_sizes_own_window_is_clamped_in_silence():
    assert GridSpec.preset("swin_v2_t", image_size=(32, 256), window=8).map_size(4) == (8, 64)
    spec = GridSpec.preset("swin_v2_t", image_size=(32, 32), max_down=16)
    assert window_sides(spec.map_size(8), spec.own("window", 8)) == (4, 4)
    tiny = GridSpec(layers=1, max_down=4, family="swin_v2", image_size=(16, 256))
    assert window_sides(tiny.map_size(4), tiny.own("window", 4)) == (4, 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 65}, "window: 65 does not fit the finest map of 64x64 tokens; give at most 64"),
        (
            {"window": 60, "image_size": (32, 256)},
            "window: 60 does not fit the finest map of 8x64 tokens; give at most 8 or a larger image_size",
        ),
        (
            {"window": [8, 8, 8, 60], "image_size": (128, 256)},
            "window: 60 does not fit the finest map of 32x64 tokens; give at most 32",
        ),
        ({"window": [8, 8, 4]}, "window: 3 numbers given for 4 rates [4, 8, 16, 32]; give 4, one per rate"),
        ({"window": []}, "window: 0 numbers given for 4 rates"),
        (
            {"window": [8, 8, 8, 0]},
            "window: [8, 8, 8, 0] is not allowed; give one whole number from 1 up, or one per rate",
        ),
        ({"window": 0}, "window: 0 is not allowed; give one whole number from 1 up, or one per rate"),
        ({"window": "8"}, "window: '8' is not allowed; give one whole number"),
        ({"sr_ratios": [8, 4, 2, 1]}, "sr_ratios: family swin_v2"),
        ({"heads": [5, 6, 12, 24]}, "heads: 5 does not divide width 96 at rate 4"),
        ({"mlp_ratios": [0.001, 4, 4, 4]}, "mlp_ratios: 0.001 leaves no hidden channel at rate 4"),
        ({"size": "xl"}, "size: family swin_v2 has no size 'xl'; allowed: t, s, b"),
        ({"image_size": 16}, "image_size: 16x16 px is smaller than one token"),
        (
            {"size": None, "widths": [8, 8, 8, 8], "heads": [1, 1, 1, 1], "mlp_ratios": [2, 2, 2, 2]},
            "window: missing",
        ),
    ],
)
def test_bad_input_is_one_clear_line(fields, message):
    with pytest.raises(SpecError) as caught:
        GridSpec.preset("swin_v2_t", **fields)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
