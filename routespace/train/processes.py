"""Several processes that train together: an error of one is the end of all, and it is told once.

with together():
    ...                 # what every process does; where it fails in one, it fails in all
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from routespace.errors import SpecError
from routespace.train.recipe.recipe import Recipe
from routespace.train.stopping import PeerError


def process_count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def together() -> Iterator[None]:
    """A block without steps of several processes inside: when it fails in one of them, it fails in all.

    The error is raised as it is where it is told, in the first process that has one. The others, also those that
    have one of their own, raise PeerError.
    """
    try:
        yield
    except Exception as error:
        agree(error)
        raise
    agree(None)


def agree(error: Exception | None) -> None:
    """Tell the other processes of an error, or of none; raises PeerError where another process tells of one."""
    if process_count() == 1:
        return
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    failed = torch.tensor(float(error is not None), device=device)
    dist.all_reduce(failed)
    if not failed.item():
        return
    said: list[str | None] = [None] * process_count()
    dist.all_gather_object(said, None if error is None else str(error) or type(error).__name__)
    teller = next(rank for rank, text in enumerate(said) if text is not None)
    if teller != dist.get_rank():
        raise PeerError(f"process {teller} of this training ended it: {said[teller]}")


def any_process(said: bool, accelerator: Accelerator) -> bool:
    """Whether any of several processes says so; every one must call it."""
    told = torch.tensor(float(said), device=accelerator.device)
    return bool(accelerator.reduce(told, "sum").item() > 0)


def mean_of_all(value: Tensor) -> Tensor:
    """The mean of every process's value (0-d), each of which must call it; its gradient is that of its own alone.

    A distributed wrapper averages gradients, which makes them the mean's. What is squared, say, is so squared once
    for the whole batch, as a single process would.
    """
    if process_count() == 1:
        return value
    mean = value.detach().clone()
    dist.all_reduce(mean)
    return value + (mean / process_count() - value.detach())


@contextmanager
def matching_layouts(net: nn.Module) -> Iterator[None]:
    """A block in which gradients have their parameters' strides, as a distributed wrapper wants them.

    Kernels of depth-wise convolutions have a dimension of one, along which memory formats differ without meaning.
    """
    handles = []
    if process_count() > 1:
        handles = [parameter.register_hook(_layout(parameter)) for parameter in net.parameters()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layout(parameter: Tensor) -> Callable[[Tensor], Tensor]:
    shape, stride = parameter.shape, parameter.stride()

    def matched(grad: Tensor) -> Tensor:
        if grad.stride() == stride:
            return grad
        return torch.empty_strided(shape, stride, dtype=grad.dtype, device=grad.device).copy_(grad)

    return matched


def check_processes(recipe: Recipe, count: int) -> None:
    """Raise SpecError where a process's part of a batch could not be trained on."""
    each, train = recipe.train.batch // count, recipe.train
    if (train.mixup or train.cutmix) and each % 2:
        raise SpecError(
            f"train.batch_size: {train.batch} over {count} processes gives each {each}; mixup and cutmix "
            f"pair images, give a multiple of {2 * count}"
        )
