"""What a training takes of the memory is told before it starts, and `train.batch_size: auto` becomes a number."""

from __future__ import annotations

import os
from collections.abc import Callable

from accelerate import Accelerator
from accelerate.utils import gather_object

from routespace.errors import SpecError, warn
from routespace.grid.architecture import Architecture
from routespace.memory import bytes_text
from routespace.train.memory import LEAST_STEPS, MemoryNeed, chosen_batch, free_memory, recipe_need
from routespace.train.recipe.parts import AUTO
from routespace.train.recipe.recipe import Recipe


def settled_batch(
    recipe: Recipe,
    architecture: Architecture,
    accelerator: Accelerator,
    *,
    images: int,
    size: tuple[int, int] | None = None,
    tell: Callable[[str], None] | None,
) -> Recipe:
    """The recipe with its batch size as a number; told on the way: what the training takes of the memory.

    Call it before the network lies on its device, in every process. Where nobody listens and there is nothing to
    choose, nothing is measured.

    Args:
        recipe: of the training.
        architecture: what is trained.
        accelerator: device and processes.
        images: to train with.
        size: (H, W) of the largest of them; the grid's own without it.
        tell: is given the lines; None for the processes that say nothing.

    Raises:
        SpecError: `auto`, and not even the smallest batch fits.
    """
    auto, count = recipe.train.batch_size == AUTO, accelerator.num_processes
    if tell is None and not auto:
        return recipe
    device = accelerator.device
    try:
        need = recipe_need(recipe, architecture, size=size, device=device.type, processes=count)
    except SpecError as error:
        if auto or tell is None:
            raise
        tell(str(error))
        return recipe
    free = free_memory(device, _processes_here(count))
    if auto:
        paired = bool(recipe.train.mixup or recipe.train.cutmix)
        found = chosen_batch(need, free, images=images, processes=count, even=paired)
        recipe = recipe.override({"train.batch_size": min(gather_object([found]))})  # the poorest process decides
    if tell is not None:
        own = size in (None, recipe.grid.image_size)
        of = "" if own or size is None else f", at most, of {size[0]}×{size[1]} px"
        _tell(tell, recipe, need, free, processes=count, auto=auto, of=of)
    return recipe


def _tell(
    tell: Callable[[str], None],
    recipe: Recipe,
    need: MemoryNeed,
    free: int | None,
    *,
    processes: int,
    auto: bool,
    of: str = "",
) -> None:
    each = recipe.train.batch // processes
    tell(f"memory: {need.text(each, free)}{of}")
    if auto:
        tell(
            f"train.batch_size: {recipe.train.batch}, chosen by auto: the largest power of two that fits, with "
            f"{LEAST_STEPS} steps or more an epoch"
        )
    elif free is not None and need.of_batch(each) > free:
        lower = "" if recipe.train.grad_checkpointing else ", or set train.grad_checkpointing=true"
        warn(
            f"train.batch_size: {recipe.train.batch} takes about {bytes_text(need.of_batch(each))} and "
            f"{bytes_text(free)} are free: the system may end the training without a word; give "
            f"{max(1, need.most_images(free)) * processes} or fewer (auto chooses){lower}"
        )


def _processes_here(count: int) -> int:
    """How many of the processes share this machine's memory."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    return min(int(text), count) if text.isdecimal() and int(text) else count
