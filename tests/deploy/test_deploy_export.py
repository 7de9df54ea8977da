"""ONNX and pt2 files give the network's numbers, for any batch, or are not written."""

import builtins
import sys

import numpy as np
import pytest
import torch

from routespace.deploy.export import base as export
from routespace.deploy.export.base import example_images, export_onnx, export_pt2
from routespace.errors import BundleError, MissingDependencyError, RoutespaceError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.task_net import TaskNet

FIELDS = {"layers": 2, "max_down": 8, "widths": (8, 16), "heads": (1, 2), "mlp_ratios": (2.0, 2.0),
          "sr_ratios": (2, 1), "image_size": 32, "num_classes": 3}  # fmt: skip


def make_net(kind="staircase", **changes):
    torch.manual_seed(0)
    return TaskNet.classifier(getattr(Architecture, kind)(RoutingGrid(GridSpec.parse(FIELDS | changes))))


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def test_onnx_of_a_static_network(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    net = make_net()
    report = export_onnx(net, tmp_path / "net.onnx")
    assert report.max_difference < 1e-5
    assert report.operators["Conv"] == 5  # stem, reduction of the keys, two depth-wise, patch embedding
    assert names_in(tmp_path) == ["net.onnx"]
    assert net.training
    session = onnxruntime.InferenceSession(str(report.path))
    images = example_images(net, 7)
    (given,) = session.run(["logits"], {"images": images.numpy()})
    np.testing.assert_allclose(given, net.eval()(images).logits.detach().numpy(), atol=1e-4)


@pytest.mark.slow
def test_onnx_of_a_pyramid(tmp_path):
    pytest.importorskip("onnxruntime")
    export_onnx(make_net(num_classes=0, outputs="pyramid"), tmp_path / "net.onnx", image_size=(40, 48))
    assert names_in(tmp_path) == ["net.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("writer", [export_onnx, export_pt2])
def test_swin_v2(tmp_path, writer):
    pytest.importorskip("onnxruntime")
    net = make_net(family="swin_v2", sr_ratios=None, window=4, image_size=(40, 56))
    ending = "onnx" if writer is export_onnx else "pt2"
    assert writer(net, tmp_path / f"net.{ending}").max_difference < 1e-5


@pytest.mark.slow
def test_onnx_of_a_supernet(tmp_path):
    pytest.importorskip("onnxruntime")
    net = make_net("full")
    net.decide(execution="packed")
    assert export_onnx(net, tmp_path / "net.onnx").max_difference < 1e-4
    assert net.execution == "packed"


@pytest.mark.parametrize("kind", ["staircase", pytest.param("full", marks=pytest.mark.slow)])
def test_pt2(tmp_path, kind):
    net = make_net(kind)
    report = export_pt2(net, tmp_path / "net.pt2")
    assert report.max_difference < 1e-5
    images = example_images(net, 5)
    given = torch.export.load(report.path).module()(images)
    assert torch.allclose(given, net.eval()(images).logits, atol=1e-5)
    assert names_in(tmp_path) == ["net.pt2"]


def test_a_wrong_export_is_not_kept(tmp_path):
    with pytest.raises(RoutespaceError, match="differs from the original"):
        export_pt2(make_net(), tmp_path / "net.pt2", tolerance=-1.0)
    assert names_in(tmp_path) == []


def test_missing_packages_name_the_install_command(tmp_path, monkeypatch):
    real, net = builtins.__import__, make_net()

    def without_onnx(name, *args, **kwargs):
        if name.split(".")[0] == "onnx":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_onnx)
    monkeypatch.setattr(export.importlib, "import_module", without_onnx)
    monkeypatch.delitem(sys.modules, "onnx", raising=False)
    with pytest.raises(MissingDependencyError, match=r"pip install .routespace\[export\]"):
        export_onnx(net, tmp_path / "net.onnx")
    assert names_in(tmp_path) == []


def test_bad_places(tmp_path):
    with pytest.raises(SpecError, match="does not end in"):
        export_pt2(make_net(), tmp_path / "net.pt")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot be written"):
        export_pt2(make_net(), tmp_path / "file" / "net.pt2")
