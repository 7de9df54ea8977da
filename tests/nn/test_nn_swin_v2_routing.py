"""SwinV2 under routing: packed equals masked, values and gradients, and means what the semantics say."""

import pytest
import torch
from thinning import thinned
from torch.utils.flop_counter import FlopCounterMode

from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.families.swin_v2 import MODULES, PatchEmbed, SwinBlock
from routespace.nn.packing.keep import KeptTokens
from routespace.nn.packing.maps import spread
from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import TaskNet

RATE = 8
MASKS = ("random", "empty", "full", "single", "ragged", "windows", "one_image")
SIZES = [((16, 16), 8), ((11, 13), 4), ((6, 21), 8), ((5, 4), 8), ((9, 9), 1)]


def spec_of(hw=(16, 16), window=8) -> GridSpec:
    return GridSpec.parse(
        {
            "layers": 2,
            "max_down": 16,
            "family": "swin_v2",
            "widths": [16, 24, 32],
            "heads": [2, 3, 4],
            "mlp_ratios": [2, 2, 2],
            "window": window,
            "image_size": (hw[0] * RATE, hw[1] * RATE),
        }
    )


def shake(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module


def mask_of(kind: str, hw: tuple[int, int], images: int = 3) -> torch.Tensor:
    n = hw[0] * hw[1]
    generator = torch.Generator().manual_seed(1)
    draw = torch.rand(images, n, generator=generator)
    if kind == "windows":
        squares = -(-hw[0] // 4) * -(-hw[1] // 4)
        return spread(torch.rand(images, squares, generator=generator) < 0.5, hw, 4)
    kept = {
        "random": draw < 0.5,
        "empty": draw < 0,
        "full": draw < 2,
        "single": torch.arange(images * n).view(images, n) == n + n // 2,
        "ragged": draw < torch.tensor([0.05, 0.4, 0.95])[:, None],
        "one_image": (draw < 2) & (torch.arange(images) == 1)[:, None],
    }
    return kept[kind]


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    return float((a - b).abs().max()) <= tolerance * max(float(b.abs().max()), 1e-6)


def run(module, call, x):
    """Output of `call`, and gradients of the input and of every parameter (zero where there is none)."""
    x = x.clone().requires_grad_()
    module.zero_grad()
    y = call(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    (y * weights).sum().backward()
    grads = {"x": x.grad} | {name: p.grad for name, p in module.named_parameters()}
    return y.detach(), {name: torch.zeros(1) if grad is None else grad.clone() for name, grad in grads.items()}


@pytest.mark.parametrize(
    *thinned(kind=MASKS, visible=["all", "kept", "reached"], shifted=[False, True], size=SIZES)
)
def test_packed_is_masked(kind, visible, shifted, size):
    hw, window = size
    block = shake(SwinBlock(spec_of(hw, window), RATE, index=int(shifted)))
    kept = mask_of(kind, hw)
    reached = kept | mask_of("ragged", hw) if visible == "reached" else None

    def keep() -> KeptTokens:
        return KeptTokens(kept, hw, reached, sees_kept=visible == "kept")

    x = torch.randn(3, hw[0] * hw[1], 24, generator=torch.Generator().manual_seed(3))
    reference, wanted = run(block, lambda x: block.masked(x, hw, keep()), x)
    y, grads = run(block, lambda x: block.packed(x, hw, keep()), x)
    assert close(y, reference, 1e-4)
    for name, grad in grads.items():
        if not kept.any() and name != "x":
            assert float(grad.abs().max()) == float(wanted[name].abs().max()) == 0
        else:
            assert close(grad, wanted[name], 1e-3), name
    assert torch.equal(y[~kept], x[~kept])
    with torch.no_grad():
        assert close(block.packed(x.clone(), hw, keep()), reference, 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("shifted", [False, True])
def test_all_kept_is_the_plain_block(shifted):
    hw = (11, 13)
    block = shake(SwinBlock(spec_of(hw, 4), RATE, index=int(shifted)))
    x = torch.randn(2, 143, 24)
    keep = KeptTokens(torch.ones(2, 143, dtype=torch.bool), hw)
    assert torch.allclose(block.masked(x, hw, keep), block(x, hw), atol=1e-6)
    assert close(block.packed(x.clone(), hw, keep), block(x, hw), 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True])
def test_skipped_tokens_are_seen_only_where_visible(packed):
    hw = (8, 8)
    block = shake(SwinBlock(spec_of(hw), RATE, index=0))
    kept = mask_of("random", hw, 1)
    x = torch.randn(1, 64, 24)
    changed = torch.where(kept.unsqueeze(-1), x, x + 1)

    def at_kept(x, visible):
        keep = KeptTokens(kept, hw, visible)
        return (block.packed(x.clone(), hw, keep) if packed else block.masked(x, hw, keep))[kept]

    assert torch.equal(at_kept(x, kept), at_kept(changed, kept))
    assert not torch.allclose(at_kept(x, None), at_kept(changed, None))


@pytest.mark.parametrize("keys", ["all", "kept"])
def test_a_stage_shares_its_tables_and_leaves_its_input_alone(keys):
    hw = (11, 13)
    stage = shake(MODULES.stage(spec_of(hw, 4), RATE, 4))
    kept = mask_of("random", hw)
    x = torch.randn(3, 143, 24)
    before = x.clone()
    keep = KeptTokens(kept, hw, sees_kept=keys == "kept")
    reference, wanted = run(stage, lambda x: stage(x, hw, keep), x)
    y, grads = run(stage, lambda x: stage(x, hw, keep, packed=True), x)
    assert close(y, reference, 1e-4)
    assert all(close(grad, wanted[name], 1e-3) for name, grad in grads.items())
    with torch.no_grad():
        assert close(stage(x, hw, keep, packed=True), reference, 1e-4)
    assert torch.equal(x, before)


@torch.no_grad()
@pytest.mark.parametrize("hw", [(8, 8), (5, 7)])
def test_packed_patch_merging_is_the_whole_ones(hw):
    embed = shake(PatchEmbed(spec_of(hw), RATE))
    coarse = (-(-hw[0] // 2), -(-hw[1] // 2))
    kept = mask_of("random", coarse)
    rows = kept.flatten().nonzero().squeeze(1)
    x = torch.randn(3, hw[0] * hw[1], 24)
    for visible in (None, mask_of("ragged", hw).float().unsqueeze(-1)):
        assert torch.allclose(embed.packed(x, hw, rows, visible), embed(x, hw, visible)[kept], atol=1e-5)


def routed_net(**gates) -> TaskNet:
    spec = GridSpec.parse(spec_of((12, 10)).model_dump(exclude_none=True) | {"depths": 2, "num_classes": 5})
    net = TaskNet.classifier(Architecture.full(RoutingGrid(spec)), GateSpec(**gates))
    return shake(net).eval()


@torch.no_grad()
@pytest.mark.parametrize(
    *thinned(
        keep=[0.3, 0.0, 1.0],
        gates=[
            {},
            {"keys": "kept"},
            {"rows": "window", "window": 4},
            {"rows": "window", "window": 8, "keys": "kept"},
            {"rows": "window", "window": 4, "source": "map"},
            {"rows": "image", "columns": "token"},
            {"columns": "token", "keys": "kept", "early_stop": True},
        ],
    ),
    ids=str,
)
def test_networks_agree_in_every_mode(gates, keep):
    net = routed_net(**gates)
    images = torch.randn(3, 3, 96, 80)
    routes = Routes.random(net, images, keep=keep, columns=0.5, seed=4)
    results = {}
    for mode in ("dense", "packed", "auto"):
        net.decide(execution=mode)
        results[mode] = net(images, routes=routes).logits
    assert close(results["packed"], results["dense"], 1e-4)
    assert close(results["auto"], results["dense"], 1e-4)


@torch.no_grad()
def test_routing_runs_no_more_than_it_counts():
    """MACs of packed blocks, counted by torch, against the price list: whole windows scale down entirely."""
    hw = (32, 32)
    spec = GridSpec.preset("swin_v2_t", image_size=256)
    cost = spec.family.block_cost(spec, RATE)
    x = torch.randn(1, 1024, 192)
    squares = torch.zeros(1, 16, dtype=torch.bool)
    squares[0, ::2] = True
    for shifted, limit in ((False, 0.5 * cost.macs), (True, cost.fixed_macs + 0.5 * cost.routed_macs)):
        block = SwinBlock(spec, RATE, index=int(shifted))
        keep = KeptTokens(spread(squares, hw, 8), hw)
        with FlopCounterMode(display=False) as counter:
            block.packed(x.clone(), hw, keep)
        # The position bias does not shrink with the tokens.
        assert counter.get_total_flops() // 2 <= limit + 225 * 512 * (2 + 6)


@torch.no_grad()
def test_stochastic_depth_drops_whole_images_in_both_modes():
    hw = (8, 8)
    block = shake(SwinBlock(spec_of(hw), RATE, index=0, drop_path=0.5)).train()
    keep = KeptTokens(mask_of("random", hw), hw)
    x = torch.randn(3, 64, 24)
    torch.manual_seed(5)
    masked = block.masked(x, hw, keep)
    torch.manual_seed(5)
    assert close(block.packed(x.clone(), hw, keep), masked, 1e-4)


@torch.no_grad()
def test_packed_runs_in_bfloat16_autocast():
    hw = (11, 13)
    block = shake(SwinBlock(spec_of(hw, 4), RATE, index=1))
    kept = mask_of("random", hw)
    x = torch.randn(3, 143, 24)
    for keys in ("all", "kept"):
        keep = KeptTokens(kept, hw, sees_kept=keys == "kept")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, reference = block.packed(x.clone(), hw, keep), block.masked(x, hw, keep)
        assert close(y.float(), reference.float(), 0.05)
