"""A network as a plain module: what other tools do with modules works on it."""

import copy
import pickle

import onnx
import onnxruntime
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from thinning import thinned
from tiny_grid import TINY_GRID

from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import TaskNet

FAMILIES = {"pvt_v2": {}, "swin_v2": {"family": "swin_v2", "window": 4, "sr_ratios": None}}
EACH = pytest.mark.parametrize(
    *thinned(net=["static", "supernet"], output=["logits", "features"]), indirect=["net"]
)


def make(family: str = "pvt_v2", *, static: bool = False, **fields) -> TaskNet:
    torch.manual_seed(0)
    grid = RoutingGrid(GridSpec.parse({**TINY_GRID, "outputs": "pyramid", **FAMILIES[family], **fields}))
    architecture = Architecture.staircase(grid) if static else Architecture.full(grid)
    return TaskNet.classifier(architecture).eval()


def as_tuple(outputs) -> tuple[torch.Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def assert_same(given, expected, atol: float = 1e-5) -> None:
    for one, other in zip(as_tuple(given), as_tuple(expected), strict=True):
        assert torch.allclose(torch.as_tensor(one), other, atol=atol)


@pytest.fixture(params=["static", "supernet"])
def net(request) -> TaskNet:
    return make(static=request.param == "static")


@torch.no_grad()
def test_it_gives_the_networks_tensors(net):
    images = torch.randn(2, 3, 32, 32)
    out = net(images, features=True)
    assert torch.equal(net.as_module("logits")(images), out.logits)
    assert torch.equal(net.as_module()(images), out.logits)
    for module in (net.as_module("features"), net.backbone.as_module()):
        assert_same(module(images), tuple(out.features.values()), atol=0)
        assert module.names == ("features_r04", "features_r08")


def test_it_shares_weights_and_mode_and_can_be_copied(net):
    module = net.as_module()
    assert not module.training
    module.train()
    assert net.training
    net.eval()
    assert {p.data_ptr() for p in module.parameters()} == {p.data_ptr() for p in net.parameters()}
    images = torch.randn(1, 3, 32, 32)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert_same(other(images), module(images))


def test_what_it_cannot_give_is_refused():
    with pytest.raises(SpecError, match="'maps' is not known; give logits, outputs or features"):
        make().as_module("maps")
    with pytest.raises(SpecError, match="gives features_r04, features_r08, no logits"):
        make(num_classes=0).as_module("logits")


def test_without_classes_it_gives_the_maps():
    images = torch.randn(1, 3, 32, 32)
    assert [tuple(x.shape) for x in make(num_classes=0).as_module()(images)] == [(1, 8, 8, 8), (1, 16, 4, 4)]


@EACH
def test_torch_export(net, output):
    module = net.as_module(output)
    program = torch.export.export(
        module, (torch.randn(3, 3, 32, 32),), dynamic_shapes={"images": {0: torch.export.Dim("batch", min=2)}}
    )
    images = torch.randn(5, 3, 32, 32)
    assert_same(program.module()(images), module(images))


@EACH
def test_jit_trace(net, output):
    module, images = net.as_module(output), torch.randn(2, 3, 32, 32)
    assert_same(torch.jit.trace(module, images)(images), module(images))


@pytest.mark.slow  # what is exported of a run is read by onnxruntime in the quick tests
def test_onnx(net, tmp_path):
    module, path = net.as_module("features"), tmp_path / "net.onnx"
    torch.onnx.export(
        module, (torch.randn(2, 3, 32, 32),), path, dynamo=True, output_names=list(module.names), verbose=False
    )
    assert [output.name for output in onnx.load(path).graph.output] == list(module.names)
    images = torch.randn(2, 3, 32, 32)
    session = onnxruntime.InferenceSession(path)
    assert_same(tuple(session.run(None, {session.get_inputs()[0].name: images.numpy()})), module(images), 1e-4)


def test_fvcore(net):
    analysis = FlopCountAnalysis(net.as_module(), torch.randn(1, 3, 32, 32))
    analysis.unsupported_ops_warnings(False).tracer_warnings("none")
    assert analysis.total() > 0


@pytest.mark.slow  # the network itself is compiled in the quick tests
@pytest.mark.parametrize("family", FAMILIES)
def test_torch_compile(family):
    module = make(family).as_module("features")
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    images = torch.randn(2, 3, 32, 32)
    assert_same(compiled(images), module(images))


def test_class_gradients_reach_a_map_by_hooks(net):
    """What Grad-CAM does: activations and gradients at a module of one's choice."""
    seen = {}
    target = net.backbone.outputs["r08"]
    target.register_forward_hook(lambda _, __, found: seen.update(found=found))
    net.as_module()(torch.randn(1, 3, 32, 32))[0, 3].backward(inputs=list(net.parameters()))
    assert seen["found"].shape == (1, 16, 16)


def test_a_bare_backbone_is_one_too():
    backbone = RouteNet(make().architecture).eval()
    assert len(backbone.as_module()(torch.randn(1, 3, 32, 32))) == 2


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("above", ["open", "gated"])
def test_a_gated_way_down_beside_an_open_one_is_traced(above):
    """Every image arrives below another way, which is known without a tensor that would say so."""
    edges = {"l00_r04_patch_embed": "open", "l01_r04_patch_embed": "gated", "l00_r08_identity": "open"}
    edges |= {"l01_r08_transformer": "open", "l00_r04_identity": above}
    edges |= {"l00_r04_transformer": "gated"} if above == "gated" else {}
    grid = GridSpec.parse(TINY_GRID | {"layers": 2, "max_down": 8, "widths": (8, 16), "heads": (1, 2)}
                          | {"mlp_ratios": (2, 2), "sr_ratios": (2, 1)})  # fmt: skip
    net = TaskNet.classifier(Architecture(grid, edges)).eval()
    images = torch.randn(2, 3, *grid.image_size)
    with torch.no_grad():
        assert_same(torch.jit.trace(net.as_module(), (images,))(images), net(images).logits)
