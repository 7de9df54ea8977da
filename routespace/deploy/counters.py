"""The analytic cost against two counters that others wrote: torch's FlopCounterMode and fvcore.

    torch_macs(net)        torch's counter on meta tensors (no arithmetic is done), halved: it counts two a MAC
    fvcore_macs(net)       fvcore, with a handle for fused attention or, `attention=False`, as it comes
    compare(architecture)  analytic, torch, fvcore with the handle, fvcore alone, side by side

What all four count: convolutions, linear layers and the matrix products of attention. fvcore alone drops
`scaled_dot_product_attention`; its norm counts are left out as no multiply-adds of this convention. An operator
that a counter has no formula for, and that is not known to be free of them, is reported by name.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from routespace.checked import checked
from routespace.deploy.examples import image_shape
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.gate_spec import GateSpec
from routespace.grid.leading import gated_rows
from routespace.grid.usage import EdgeUsage
from routespace.nn.cost import network_cost
from routespace.nn.drawing import undrawn
from routespace.nn.heads.base import Head
from routespace.nn.module import unwrap
from routespace.nn.route_net import RouteNet
from routespace.nn.running import evaluating
from routespace.nn.task_net import TaskNet, WithRest

FLOPS_PER_MAC = 2
OTHERS_IMAGE_PX = 224  # the usual side where a module does not tell
ATTENTION = "aten::scaled_dot_product_attention"
# Operators without multiply-adds in the field's convention, beyond those that torch tags as element-wise: norms,
# pooling, softmax, copying, indexing. Names without the underscores around them, so in-place forms are meant too.
_FREE_NAMES = """
    abs sign add sub rsub mul div neg pow sqrt exp sin cos log log1p log2 logit erf gelu relu sigmoid tanh softmax
    log_softmax safe_softmax mean sum amax amin any all max min where clamp clamp_min gt lt ge le eq ne and or not
    logical_not logical_and logical_or bitwise_not bitwise_and bitwise_or floor_divide cumsum normalize norm
    linalg_vector_norm native_layer_norm native_group_norm native_batch_norm max_pool2d avg_pool2d
    max_pool2d_with_indices adaptive_avg_pool2d constant_pad_nd pad cat stack unflatten roll flip repeat
    repeat_interleave expand_as index index_select index_copy index_put gather scatter nonzero topk sort argsort
    masked_fill arange meshgrid empty empty_like zeros zeros_like ones ones_like full full_like new_empty new_zeros
    new_full fill scalar_tensor rand rand_like bernoulli exponential uniform clone copy to_copy lift_fresh
    reshape_alias unsafe_view local_scalar_dense upsample_nearest2d upsample_bilinear2d as_strided promote_types
    addcmul maximum minimum"""
_FREE = frozenset(_FREE_NAMES.split())
_CPU_ATTENTION = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)  # a private name
WITH_PATHS = "with the paths for skipped tokens, which a dense pass computes too"
_NORMS = ("layer_norm", "batch_norm", "group_norm", "instance_norm")


@dataclass(frozen=True)
class MacCount:
    """What one counter says about one image.

    Attributes:
        macs: multiply-adds.
        by_operator: operator → its multiply-adds.
        unknown: operator → calls of operators that this counter has no formula for and nobody declared free;
            their multiply-adds are missing from `macs`.
    """

    macs: int
    by_operator: Mapping[str, int]
    unknown: Mapping[str, int]


@dataclass(frozen=True)
class CheckRow:
    """One line of a CheckReport.

    Attributes:
        name: who counted.
        macs: what it counted, for one image.
        difference: `macs` minus the analytic number.
        note: what it lacks, or nothing.
    """

    name: str
    macs: int
    difference: int
    note: str


@dataclass(frozen=True)
class CheckReport:
    """The four counts of one architecture.

    Attributes:
        rows: analytic · torch · fvcore with its handle · fvcore alone; and of a dense task's whole network, with
            the head, analytic · torch.
        params: analytic, and of the module.
        ok: parameters and the first three rows agree to the last one, as do those of the whole network, and no
            operator is unknown.
    """

    rows: tuple[CheckRow, ...]
    params: tuple[int, int]
    ok: bool

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The report as text."""
        analytic, built = self.params
        head = f"params  analytic {analytic}, module {built}" + ("" if analytic == built else "  DIFFERENT")
        width = max(len(row.name) for row in self.rows)
        return [head] + [
            f"{row.name:<{width}}  {row.macs:>16,d} MACs  {row.difference:>+14,d}  {row.note}".rstrip()
            for row in self.rows
        ]


class _Operators(TorchDispatchMode):
    """Counts the operators that torch's flop counter has no formula for and that are not free."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.unknown: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        name = str(packet).removeprefix("aten.")
        free = torch.Tag.pointwise in func.tags or func.is_view or name.strip("_") in _FREE
        if not free and packet not in flop_registry and packet not in _added_formulas():
            self.unknown[name] += 1
        return out


def _added_formulas() -> dict[Any, Callable[..., int]]:
    """Operator → its formula, where torch's counter has none: fused attention on a CPU, before torch 2.15."""
    known = _CPU_ATTENTION is None or _CPU_ATTENTION in flop_registry
    return {} if known else {_CPU_ATTENTION: _attention_flops}


def _attention_flops(queries: Any, keys: Any, values: Any, *_: object, **__: object) -> int:
    """Shapes (…, Q, d), (…, M, d), (…, M, e) → operations, two a multiply-add."""
    return int(FLOPS_PER_MAC * math.prod(queries[:-1]) * keys[-2] * (queries[-1] + values[-1]))


def _image(net: nn.Module, image_size: tuple[int, int] | int | None) -> tuple[int, int, int]:
    """Channels, height and width of one image."""
    if isinstance(net, RouteNet | TaskNet):
        return image_shape(net, image_size)
    size = OTHERS_IMAGE_PX if image_size is None else image_size
    return 3, *((size, size) if isinstance(size, int) else size)


@contextmanager
def _computing_all(net: nn.Module) -> Iterator[None]:
    """Evaluation mode, and every token of every edge computed, whatever gates decide.

    Nothing is in inference mode, where operators reach the counters whole, as names that they do not know.
    """
    with evaluating(net), torch.inference_mode(False), torch.no_grad():
        if not isinstance(net, TaskNet | RouteNet):
            yield
            return
        with net.deciding_as(held=None, execution="dense"):
            yield


@checked
def torch_macs(net: nn.Module, image_size: tuple[int, int] | int | None = None, *, meta: bool = True) -> MacCount:
    """MACs of one image through a module as it is, by torch's counter.

    Args:
        net: a TaskNet, a RouteNet or any module from images to a tensor, in a wrapper such as torch.compile's or
            not. Every token of a gated edge is counted, also on the path of skipped ones; of a detector also what
            it may compute at most for the objects that it finds.
        image_size: height and width in pixels, or one number; a TaskNet's own by default, else 224.
        meta: count on meta tensors, where nothing is computed; else on a real image, on the net's device, which
            is faster for small networks.
    """
    net = unwrap(net)
    whole = WithRest(net)
    tensors = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}  # also those that are not saved
    if meta:
        tensors = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    some = next((t for t in tensors.values() if t.is_floating_point()), torch.empty(0))
    count = FlopCounterMode(display=False, custom_mapping=_added_formulas())
    with _computing_all(net):
        tensors = {name: tensor.clone() if tensor.is_inference() else tensor for name, tensor in tensors.items()}
        images = torch.zeros(1, *_image(net, image_size), dtype=some.dtype, device=some.device)
        with count as counter, _Operators() as operators:
            torch.func.functional_call(whole, tensors, (images,))
    counted = counter.get_flop_counts()["Global"]
    by_operator = {str(name).removeprefix("aten."): int(n) // FLOPS_PER_MAC for name, n in counted.items()}
    return MacCount(counter.get_total_flops() // FLOPS_PER_MAC, by_operator, dict(operators.unknown))


def _attention_macs(inputs: list[Any], _outputs: list[Any]) -> Counter[str]:
    """Queries × keys and weights × values of fused attention; shapes (…, Q, d) · (…, M, d) · (…, M, e)."""
    queries, keys, values = (value.type().sizes() for value in inputs[:3])
    rows = math.prod(queries[:-1])
    return Counter({"scaled_dot_product_attention": rows * keys[-2] * (queries[-1] + values[-1])})


def fvcore_macs(
    net: nn.Module, image_size: tuple[int, int] | int | None = None, *, attention: bool = True
) -> MacCount:
    """MACs of one image by fvcore, which traces the module on the CPU (seconds).

    Args:
        net, image_size: as for `torch_macs`; the module must be on the CPU.
        attention: register a handle for fused attention. Without it fvcore drops it, and `unknown` says so.
    """
    net = unwrap(net)
    module = net.as_module() if isinstance(net, RouteNet | TaskNet) else net
    with _computing_all(net), warnings.catch_warnings():
        images = torch.zeros(1, *_image(net, image_size), dtype=next(net.parameters()).dtype)
        warnings.simplefilter("ignore")  # fvcore's own, and the tracer's about constants of the fixed image size
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(module.eval(), images)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        if attention:
            analysis.set_op_handle(ATTENTION, _attention_macs)
        counted = {name: int(number) for name, number in analysis.by_operator().items() if name not in _NORMS}
        missing = {name.removeprefix("aten::"): count for name, count in analysis.unsupported_ops().items()}
    unknown = {name: count for name, count in missing.items() if name.strip("_") not in _FREE}
    return MacCount(sum(counted.values()), counted, unknown)


def compare(
    architecture: Architecture,
    *,
    gates: GateSpec | None = None,
    image_size: tuple[int, int] | int | None = None,
    head: Head | None = None,
) -> CheckReport:
    """Count an architecture four ways, for one image with every token computed; see `dense_usage`.

    What a detector computes of the objects that it finds is in no graph that fvcore could trace, so that the whole
    network of a dense task is counted by torch alone.

    Args:
        architecture: static, or with gated edges, whose gates are counted too.
        gates: of the gated edges; the defaults without it.
        image_size: height and width in pixels, or one number, when not the spec's own.
        head: of a dense task, that stands on the architecture; on whatever device.

    Raises:
        SpecError: an image size that the grid cannot take.
    """
    gates = gates or GateSpec()
    usage = dense_usage(architecture, gates)
    cost = architecture_cost(architecture, gates=gates, usage=usage, image_size=image_size)
    net = TaskNet.classifier(architecture, gates).eval()
    params = cost.params, sum(parameter.numel() for parameter in net.parameters())
    counts = {
        "torch": torch_macs(net, image_size),
        "fvcore with handle": fvcore_macs(net, image_size),
        "fvcore alone": fvcore_macs(net, image_size, attention=False),
    }
    analytic = int(cost.macs)
    rows = [CheckRow("analytic", analytic, 0, WITH_PATHS if usage else "")]
    for name, count in counts.items():
        rows.append(CheckRow(name, count.macs, count.macs - analytic, _note(count)))
    exact = all(row.macs == analytic for row in rows[:3])
    known = not counts["torch"].unknown and not counts["fvcore with handle"].unknown
    if head is not None:
        whole, params = _whole(architecture, gates, head, image_size)
        rows += whole
        exact, known = exact and not whole[1].difference, known and not whole[1].note
    return CheckReport(tuple(rows), params, exact and known and params[0] == params[1])


def _whole(
    architecture: Architecture, gates: GateSpec, head: Head, image_size: tuple[int, int] | int | None
) -> tuple[list[CheckRow], tuple[int, int]]:
    """The whole network of a dense task, analytic and by torch; and its parameters, analytic and of the module."""
    with torch.device("meta"), undrawn():
        net = TaskNet(RouteNet(architecture, gates), head).eval()
    cost = network_cost(net, usage=dense_usage(architecture, gates), image_size=image_size)
    count, analytic = torch_macs(net, image_size), int(cost.macs)
    rows = [
        CheckRow("analytic, with the head", analytic, 0, ""),
        CheckRow("torch, with the head", count.macs, count.macs - analytic, _note(count)),
    ]
    return rows, (cost.params, sum(parameter.numel() for parameter in net.parameters()))


def dense_usage(architecture: Architecture, gates: GateSpec) -> dict[str, EdgeUsage]:
    """What a dense pass computes: every token of every edge, and on the path of skipped ones (`gates.skipped`)."""
    if gates.skipped == "identity":
        return {}
    return {row.name: EdgeUsage(skipped=1) for row in gated_rows(architecture)}


def _note(count: MacCount) -> str:
    if not count.unknown:
        return ""
    names = ", ".join(f"{name} ×{calls}" for name, calls in sorted(count.unknown.items()))
    return f"not counted: {names}"
