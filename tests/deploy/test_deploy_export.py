"""Exported files give the network's numbers, for any batch and in any type, or are not written."""

import copy
import importlib
import json
import resource
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from devices import SLOW_ON_A_CPU

from routespace.deploy.examples import example_images
from routespace.deploy.export.formats import EXPORTERS
from routespace.deploy.export.load import load_exported
from routespace.deploy.export.onnx import onnx_exporter
from routespace.deploy.export.write import export, export_as
from routespace.errors import BundleError, MissingDependencyError, RoutespaceError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import TaskNet

FIELDS = {"layers": 2, "max_down": 8, "widths": (8, 16), "heads": (1, 2), "mlp_ratios": (2.0, 2.0),
          "sr_ratios": (2, 1), "image_size": 32, "num_classes": 3}  # fmt: skip


def make_net(kind="staircase", **changes):
    torch.manual_seed(0)
    return TaskNet.classifier(getattr(Architecture, kind)(RoutingGrid(GridSpec.parse(FIELDS | changes))))


def names_in(folder):
    return [path.name for path in folder.iterdir()]


@pytest.fixture(params=list(EXPORTERS), scope="module")
def form(request):
    """Each format whose packages are there."""
    for package in EXPORTERS[request.param].needs:
        pytest.importorskip(package)
    return request.param


class Exported:
    """A network, its file, what was said on the way, and what was traced."""

    def __init__(self, net, path, *, traces, **more) -> None:
        self.net, self.path, self.said, self.traced = net, path, [], []
        self.traces, trace = traces, torch.export.export
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                torch.export, "export", lambda *args, **how: self.traced.append(args) or trace(*args, **how)
            )
            self.report = export(net, path, say=self.said.append, traces=traces, **more)


def exported_to(form, folder, traces):
    path, told = folder / f"net{EXPORTERS[form].suffix}", {"classes": '["Äpfel", "☕", "pears"]'}
    return Exported(make_net(), path, traces=traces, image_size=(40, 48), metadata=told)


@pytest.fixture(scope="module")
def pt2(tmp_path_factory):
    """A network and its .pt2 file."""
    return exported_to("pt2", tmp_path_factory.mktemp("pt2"), {})


@pytest.fixture(scope="module")
def exported(form, pt2, tmp_path_factory):
    """One file of each format, of one network and one trace."""
    return pt2 if form == "pt2" else exported_to(form, tmp_path_factory.mktemp(form), pt2.traces)


def assert_gives_the_nets_numbers(net, path, image_size=None, atol=1e-4):
    """For batches that were never traced or checked, the tensors of the plain module under their names."""
    loaded = load_exported(path)
    module = net.eval().as_module()
    assert loaded.names == module.names
    for batch in (1, 5, 7):
        images = example_images(net, batch, image_size)
        with torch.no_grad():
            expected = module(images)
        given = loaded(images)
        assert isinstance(given, torch.Tensor) == isinstance(expected, torch.Tensor)
        for one, other in zip(*((x if isinstance(x, tuple) else (x,)) for x in (expected, given)), strict=True):
            assert one.shape == other.shape
            assert (one.double() - other.double().cpu()).abs().max() <= atol * max(1, one.abs().max())
    assert torch.equal(torch.as_tensor(loaded(images.numpy())[0]), loaded(images)[0])


def test_every_format_gives_the_logits(exported):
    report = exported.report
    assert report.max_difference < 1e-5
    assert report.dtype == "float32"
    assert names_in(report.path.parent) == [report.path.name]
    assert report.bytes == report.path.stat().st_size
    assert exported.net.training
    assert exported.said[0] == "running the network"
    assert exported.said[1].startswith(f"writing {report.path.name}")
    assert exported.said[-1] == f"checking {report.path.name}"
    assert_gives_the_nets_numbers(copy.deepcopy(exported.net), report.path, image_size=(40, 48))


def test_the_file_tells_what_it_is(exported):
    metadata = load_exported(exported.path).metadata
    assert metadata["architecture"] == exported.net.architecture.hash
    assert metadata["grid"] == exported.net.spec.hash
    assert json.loads(metadata["image_size"]) == [40, 48]
    assert json.loads(metadata["classes"]) == ["Äpfel", "☕", "pears"]


def test_others_read_the_files_without_us(exported):
    net = copy.deepcopy(exported.net).eval()
    images = example_images(net, 7, (40, 48))
    expected = net(images).logits.detach().numpy()
    if exported.path.suffix == ".pt2":
        given = torch.export.load(exported.path).module()(images).detach()
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(exported.path))
        (given,) = session.run(["logits"], {"images": images.numpy()})
        assert "☕" in session.get_modelmeta().custom_metadata_map["classes"]
        assert exported.report.operators["Conv"] == 5  # stem, keys' reduction, two depth-wise, patch embedding
    np.testing.assert_allclose(given, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_networks_of_other_types(form, dtype, tmp_path):
    net, path = make_net().to(getattr(torch, dtype)), tmp_path / f"net{EXPORTERS[form].suffix}"
    if dtype not in EXPORTERS[form].types:
        with pytest.raises(
            SpecError, match=rf"{form}: the network is in {dtype}, .* give one in float32"
        ) as caught:
            export(net, path)
        assert "\n" not in str(caught.value)
        assert names_in(tmp_path) == []
        return
    report = export(net, path)
    assert report.dtype == dtype
    assert report.max_difference <= report.tolerance
    images = torch.randn(2, 3, 32, 32)  # as preprocessing gives them
    assert load_exported(path)(images).shape == (2, 3)
    assert (report.tolerance > 1e-4) == (dtype == "float16" or dtype == "bfloat16")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_onnx_of_what_its_runtime_does_not_compute_is_refused_at_once(dtype, tmp_path):
    with pytest.raises(SpecError, match=r"onnx: the network is in b?float\d\d, .* give one in float32"):
        export(make_net().to(dtype), tmp_path / "net.onnx")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("device", SLOW_ON_A_CPU, indirect=True)  # on it, all other tests export
def test_a_network_is_exported_from_where_it_is(form, device, tmp_path):
    net, path = make_net().to(device), tmp_path / f"net{EXPORTERS[form].suffix}"
    assert export(net, path).max_difference <= 1e-4
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        expected = net(images.to(device)).logits.cpu()
    (given,) = load_exported(path).run(images)
    assert (given.cpu() - expected).abs().max() < 1e-4
    assert next(net.parameters()).device.type == device.type


def prepared_of(net, folder, **more):
    """What a format is given to write of a network."""
    given = []

    def write(prepared, _):
        given.append(prepared)
        raise RuntimeError("enough")

    with pytest.raises(RoutespaceError, match="enough"):
        export_as(replace(EXPORTERS["pt2"], write=write), net, folder / "net.pt2", **more)
    return given[0]


def test_one_trace_serves_every_format(exported, pt2):
    """Tracing takes a good part of the time."""
    once = exported is pt2
    assert len(exported.traced) == sum("tracing" in word for word in exported.said) == once


def test_the_trace_of_another_network_does_not_pass(pt2, tmp_path):
    other = make_net()
    with torch.no_grad():
        list(other.parameters())[-1].add_(1.0)
    with pytest.raises(RoutespaceError, match="differs from the original"):
        export(other, tmp_path / "other.pt2", image_size=(40, 48), traces=pt2.traces)
    assert not (tmp_path / "other.pt2").exists()


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_wrapped_networks_are_exported_as_themselves(wrap, tmp_path):
    net = make_net()
    prepared, plain = prepared_of(wrap(net), tmp_path), net.eval().as_module()
    assert [type(part) for part in prepared.module.modules()] == [type(part) for part in plain.modules()]
    assert prepared.names == plain.names
    assert prepared.metadata["architecture"] == net.architecture.hash
    assert json.loads(prepared.metadata["versions"])["torch"] == torch.__version__
    torch.testing.assert_close(prepared.module(prepared.images), plain(prepared.images))


def test_a_bare_backbone_gives_its_maps(tmp_path):
    backbone = RouteNet(make_net(outputs="pyramid").architecture)
    prepared = prepared_of(backbone, tmp_path)
    assert prepared.names == ("features_r04", "features_r08")
    found = prepared.module(example_images(backbone, 4))
    assert [tuple(x.shape) for x in found] == [(4, 8, 8, 8), (4, 16, 4, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("scout", [0, 2])
def test_rows_that_follow_one_map(form, tmp_path, scout):
    torch.manual_seed(0)
    rows = Architecture.routed(RoutingGrid(GridSpec.parse(FIELDS)), "depth")
    skipped = "mlp" if scout else "identity"
    net = TaskNet.classifier(rows, GateSpec(source="map", opening="share", scout=scout, skipped=skipped))
    for path in net.backbone.skips.values():
        torch.nn.init.normal_(path.last.weight, std=0.1)
    leader, follower = net.gates.values()
    torch.nn.init.normal_(leader.ema_weight, std=0.5)
    for gate in (leader, follower):
        gate.cut.value.fill_(2.2)
    path = tmp_path / f"net{EXPORTERS[form].suffix}"
    export(net, path)
    assert_gives_the_nets_numbers(net, path)


@pytest.mark.parametrize("form", ["onnx", pytest.param("pt2", marks=pytest.mark.slow)], indirect=True)
def test_a_pyramid(form, tmp_path):
    net, path = make_net(layers=1, num_classes=0, outputs="pyramid"), tmp_path / f"net{EXPORTERS[form].suffix}"
    export(net, path, image_size=(40, 48))
    assert names_in(tmp_path) == [path.name]
    assert_gives_the_nets_numbers(net, path, image_size=(40, 48))


@pytest.mark.slow
def test_swin_v2(form, tmp_path):
    net = make_net(family="swin_v2", sr_ratios=None, window=4, image_size=(40, 56))
    assert export(net, tmp_path / f"net{EXPORTERS[form].suffix}").max_difference < 1e-5


@pytest.mark.slow
def test_a_supernet_keeps_its_execution(form, tmp_path):
    net = make_net("full")
    net.decide(execution="packed")
    assert export(net, tmp_path / f"net{EXPORTERS[form].suffix}").max_difference < 1e-4
    assert net.execution == "packed"


@pytest.mark.slow
def test_another_operator_set(tmp_path):
    onnx = pytest.importorskip("onnx")
    export_as(onnx_exporter(opset=20), make_net(), tmp_path / "net.onnx")
    assert [entry.version for entry in onnx.load(tmp_path / "net.onnx").opset_import if not entry.domain] == [20]


def with_load(change, file):
    """The .pt2 format, as quick as copying `file`, with outputs that differ from what that holds."""
    pt2 = EXPORTERS["pt2"]

    def load(path):
        loaded = pt2.load(path)
        return replace(loaded, run=lambda images: tuple(change(x) for x in loaded.run(images)))

    def write(_, path):
        shutil.copy(file, path)
        return {}

    return replace(pt2, load=load, write=write)


@pytest.mark.parametrize("change", [lambda x: x + 1e-3, lambda x: x * float("nan")], ids=["shifted", "NaN"])
def test_a_wrong_export_is_not_kept(change, pt2, tmp_path):
    path = tmp_path / "deep" / "net.pt2"
    with pytest.raises(RoutespaceError, match=r"differs from the original by .* \(allowed in float32: 1e-04\)"):
        export_as(with_load(change, pt2.path), pt2.net, path, image_size=(40, 48))
    assert names_in(tmp_path) == []


def test_the_same_without_the_change_is_kept(pt2, tmp_path):
    export_as(with_load(lambda x: x, pt2.path), pt2.net, tmp_path / "net.pt2", image_size=(40, 48))
    assert names_in(tmp_path) == ["net.pt2"]


@pytest.mark.parametrize("tolerance", [-1, float("nan"), float("inf")])
def test_a_tolerance_that_nothing_can_meet_or_miss_is_refused(tolerance, tmp_path):
    with pytest.raises(SpecError, match="tolerance"):
        export(make_net(), tmp_path / "net.pt2", tolerance=tolerance)


def without_onnx(monkeypatch, error):
    real = importlib.import_module

    def import_other(name, *rest):
        if name.split(".")[0] == "onnx":
            raise error
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", import_other)


def test_missing_packages_name_the_install_command(tmp_path, monkeypatch):
    net = make_net()
    without_onnx(monkeypatch, ImportError("onnx"))
    with pytest.raises(MissingDependencyError, match=r"pip install .routespace\[export\]"):
        export(net, tmp_path / "net.onnx")
    assert names_in(tmp_path) == []


def raised_from(error, cause):
    """An error that a library makes of another one."""
    error.__cause__ = cause
    return error


def test_an_interrupt_stays_one_whatever_libraries_make_of_it(tmp_path, monkeypatch):
    def interrupted(*_):
        raise raised_from(RuntimeError("Failed to export the model"), KeyboardInterrupt())

    exporter = replace(EXPORTERS["pt2"], write=interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_as(exporter, make_net(), tmp_path / "net.pt2")
    without_onnx(monkeypatch, raised_from(ImportError("no module"), KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        export(make_net(), tmp_path / "net.onnx")
    assert names_in(tmp_path) == []


def test_what_torch_cannot_export_is_one_line(tmp_path):
    def refuse(*_):
        raise RuntimeError("first line\nand a page of others")

    with pytest.raises(RoutespaceError, match=r"cannot export this network \(first line\)") as caught:
        export_as(replace(EXPORTERS["pt2"], write=refuse), make_net(), tmp_path / "net.pt2")
    assert "\n" not in str(caught.value)


def test_bad_places_and_sizes(tmp_path):
    with pytest.raises(SpecError, match=r"no known format; give one of \.onnx, \.pt2"):
        export(make_net(), tmp_path / "net.pt")
    with pytest.raises(SpecError, match=r"does not end in \.pt2"):
        export_as(EXPORTERS["pt2"], make_net(), tmp_path / "net.onnx")
    for suffix in ("onnx", "pt2"):  # before anything is traced or made
        with pytest.raises(SpecError, match="image_size: 7x7 px is too small"):
            export(make_net(), tmp_path / "deep" / f"net.{suffix}", image_size=7)
    assert names_in(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot be written"):
        export(make_net(), tmp_path / "file" / "net.pt2")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(BundleError, match="no such file"):
        load_exported(tmp_path / "net.pt2")
    for suffix in ("onnx", "pt2"):
        (tmp_path / f"net.{suffix}").write_bytes(b"nothing of the kind")
        with pytest.raises(BundleError, match="cannot be read") as caught:
            load_exported(tmp_path / f"net.{suffix}")
        assert "\n" not in str(caught.value)


def test_a_full_disk_ends_an_export_in_one_line(pt2, tmp_path):
    """torch's own writer ended the whole process there, with nothing said (SIGABRT)."""
    _, most = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, most))
    try:
        with pytest.raises(BundleError, match=r"cannot be written \(File too large\); nothing was left behind"):
            export(pt2.net, tmp_path / "net.pt2", image_size=(40, 48), traces=pt2.traces)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names_in(tmp_path) == []
