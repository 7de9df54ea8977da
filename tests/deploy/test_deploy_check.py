"""The two counters of others, and what is reported when they cannot count."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from routespace.deploy.counters import compare, fvcore_macs, torch_macs
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
GRID = RoutingGrid(GridSpec(layers=2, max_down=8, widths=(8, 16), heads=(1, 2), mlp_ratios=(2.0, 2.0),
                            sr_ratios=(2, 1), image_size=(40, 56), num_classes=3))  # fmt: skip


@pytest.mark.parametrize("gates", [GateSpec(), GateSpec(rows="window", columns="token", keys="kept")])
def test_four_counts_of_a_supernet(gates):
    report = compare(Architecture.full(GRID), gates=gates)
    analytic, torch_row, handled, alone = report.rows
    assert report.ok, report.lines()
    assert analytic.macs == torch_row.macs == handled.macs
    assert alone.macs < analytic.macs
    assert "scaled_dot_product_attention" in alone.note
    assert len(report.lines()) == 5
    assert str(report).splitlines() == report.lines()


def test_four_counts_of_swin_v2():
    fields = GRID.spec.model_dump(exclude={"sr_ratios"}) | {"family": "swin_v2", "window": 4}
    report = compare(Architecture.full(RoutingGrid(GridSpec(**fields))))
    assert report.ok, report.lines()


@pytest.mark.parametrize("architecture", [Architecture.full, Architecture.staircase])
def test_four_counts_of_the_vit_example(monkeypatch, architecture):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from vit_family import VIT

    spec = GridSpec(layers=2, max_down=8, family=VIT, image_size=(40, 56), num_classes=3)
    report = compare(architecture(RoutingGrid(spec)))
    assert report.ok, report.lines()


def test_another_image_size():
    report = compare(Architecture.staircase(GRID), image_size=(37, 64))
    assert report.ok, report.lines()


def test_counters_agree_on_a_network_that_is_not_ours():
    net = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    by_torch, by_fvcore, alone = torch_macs(net), fvcore_macs(net), fvcore_macs(net, attention=False)
    assert by_torch.macs == by_fvcore.macs
    attention = 12 * 2 * 3 * 197 * 197 * 64  # blocks · products · heads · queries · keys · channels
    assert by_fvcore.macs - alone.macs == attention
    assert next(net.parameters()).device.type == "cpu"
    assert net.training


def test_an_operator_without_a_formula_is_reported():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            return torch.fft.fft2(self.linear(x.flatten(2).transpose(1, 2))).real

    count = torch_macs(Spectral(), 8)
    assert count.macs == 64 * 3 * 3
    assert any("fft" in name for name in count.unknown)
    assert any("fft" in name for name in fvcore_macs(Spectral(), 8).unknown)
