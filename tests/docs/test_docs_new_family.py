"""docs/new-family.md runs, and its ViT family is a full member: costs, equality with timm, routing, extraction."""

import re
from pathlib import Path

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.packing.keep import KeptTokens
from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import TaskNet

DOCS = Path(__file__).parents[2] / "docs"
FENCE = re.compile(r"^```python example\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _examples_are_found(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "examples"))


def spec_of(**fields) -> GridSpec:
    from vit_family import VIT

    base = {
        "layers": 3,
        "max_down": 16,
        "depths": 2,
        "family": VIT,
        "image_size": 64,
        "num_classes": 7,
    }
    return GridSpec.parse(base | fields)


def test_the_pages_blocks_run(capsys):
    namespace: dict = {}
    blocks = FENCE.findall((DOCS / "new-family.md").read_text())
    assert len(blocks) == 6
    for number, code in enumerate(blocks):
        exec(compile(code, f"new-family.md, block {number}", "exec"), namespace)
    assert "MMACs" in capsys.readouterr().out


def test_the_pages_bash_line_runs(monkeypatch, tmp_path):
    typer_testing = pytest.importorskip("typer.testing")
    from routespace.cli.app import app

    monkeypatch.chdir(tmp_path)
    line = re.search(r"^PYTHONPATH=\S+ routespace (.+)$", (DOCS / "new-family.md").read_text(), re.MULTILINE)
    result = typer_testing.CliRunner().invoke(app, line[1].split())
    assert result.exit_code == 0, result.output


@torch.no_grad()
@pytest.mark.parametrize("image", [(64, 64), (50, 71)])
def test_costs_are_what_torch_counts(image):
    for outputs in ("coarsest", "pyramid"):
        architecture = Architecture.staircase(RoutingGrid(spec_of(image_size=image, outputs=outputs)))
        cost = architecture_cost(architecture)
        with torch.device("meta"):
            net = TaskNet.classifier(architecture)
            with FlopCounterMode(display=False) as counter:
                net(torch.empty(1, 3, *image))
        assert counter.get_total_flops() == 2 * cost.macs
        assert sum(p.numel() for p in net.parameters()) == cost.params


@torch.no_grad()
def test_a_block_is_timms_block():
    from vit_family import VitBlock

    torch.manual_seed(0)
    block, oracle = VitBlock(spec_of(), 8), timm.models.vision_transformer.Block(64, 2, qkv_bias=True)
    block.load_state_dict(oracle.state_dict())
    x = torch.randn(2, 64, 64)
    assert torch.allclose(block(x, (8, 8)), oracle(x), atol=1e-5)


@pytest.mark.parametrize("keys", ["all", "kept"])
@pytest.mark.parametrize("share", [(0.5, 0.5), (0.05, 0.9), (0.0, 1.0)])
def test_packed_is_masked_with_gradients(keys, share):
    from vit_family import VitBlock

    torch.manual_seed(0)
    block = VitBlock(spec_of(), 8, drop_path=0.3).train()
    kept = torch.rand(2, 64) < torch.tensor(share)[:, None]
    results = []
    for packed in (False, True):
        torch.manual_seed(1)
        x = torch.randn(2, 64, 64).requires_grad_()
        block.zero_grad()
        keep = KeptTokens(kept, (8, 8), sees_kept=keys == "kept")
        y = block.packed(x, (8, 8), keep) if packed else block.masked(x, (8, 8), keep)
        y.square().sum().backward()
        results.append([y.detach(), x.grad] + [p.grad.clone() for p in block.parameters()])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-3 * max(1.0, float(a.abs().max())))


@torch.no_grad()
@pytest.mark.parametrize("rows", ["token", "window", "image"])
def test_networks_agree_dense_and_packed(rows):
    torch.manual_seed(0)
    gates = GateSpec(rows=rows, columns="token")
    net = TaskNet.classifier(Architecture.full(RoutingGrid(spec_of())), gates).eval()
    images = torch.randn(2, 3, 64, 64)
    routes = Routes.random(net, images, keep=0.4, columns=0.6)
    dense = net(images, routes=routes).logits
    net.decide(execution="packed")
    assert torch.allclose(net(images, routes=routes).logits, dense, atol=1e-4)


@torch.no_grad()
def test_a_part_of_the_supernet_is_the_same_network():
    torch.manual_seed(0)
    grid = RoutingGrid(spec_of())
    supernet = TaskNet.classifier(Architecture.full(grid)).eval()
    path = Architecture.staircase(grid)
    part, alone = supernet.restrict(path), TaskNet.classifier(path).eval()
    alone.load_state_dict(part.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(part(images).logits, alone(images).logits)
    assert set(alone.state_dict()) <= set(supernet.state_dict())


def test_other_sizes_of_image_work():
    net = TaskNet.classifier(Architecture.staircase(RoutingGrid(spec_of())))
    assert net(torch.randn(1, 3, 37, 90)).logits.shape == (1, 7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 8}, "window: family vit has none; leave it out, or use swin_v2"),
        ({"heads": [3, 2, 4]}, "heads: 3 does not divide"),
        ({"size": "ti", "widths": [6, 64, 128]}, "widths: 6 is no multiple of 4"),
        ({"family": "vit"}, "family: 'vit' is not known; allowed: pvt_v2, swin_v2, or one of your own"),
        ({"family": "vit_family:VIT"}, "family: 'vit_family:VIT' is not allowed; allow it with --family-module"),
    ],
)
def test_bad_input_is_one_clear_line(fields, message):
    with pytest.raises(SpecError) as caught:
        spec_of(**fields)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
