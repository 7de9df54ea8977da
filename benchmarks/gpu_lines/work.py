"""The work of a run: its operations, by the cost model, and the bytes that it cannot do without, counted.

Matrix products, convolutions and attentions each read their inputs from memory and write their results to it;
everything element-wise can be done on the way. So the bytes counted here are what a perfectly fused version of
these kernels moves. They are counted with few images; what is not a weight grows with the images.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from gpu_lines.line import Run, Work
from routespace import TaskNet, architecture_cost
from routespace.nn.kernels.linear import products


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of each product's inputs and results: weights apart, as a batch reads them once."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.weights = {parameter.data_ptr() for parameter in module.parameters()}
        self.of_weights = self.of_images = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket not in flop_registry:
            with self:  # without gradients, layers arrive whole
                parts = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if parts is NotImplemented else parts
        result = func(*args, **kwargs)
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        if tensor.data_ptr() in self.weights:
            self.of_weights += tensor.nbytes
        else:
            self.of_images += tensor.nbytes


def work_of(run: Run, net: TaskNet, *, counted: int, batch: int, training: bool = False) -> Work:
    """The work of a run with `batch` images.

    Args:
        run: the call, of an uncompiled network that computes everything, with `counted` images.
        net: whose weights they are, and whose MACs the cost model tells.
        counted: images of the call.
        batch: images of the call whose work is wanted.
        training: the call is a training step: three times the operations of inference.
    """
    with products("torch"):  # what other libraries multiply, no counter sees
        run()
        with _Traffic(net) as traffic:
            run()
    images = batch / counted
    macs = architecture_cost(net.architecture.opened()).macs
    flops = (3 if training else 1) * 2 * float(macs) * batch
    return Work(flops, traffic.of_images * images + traffic.of_weights)
