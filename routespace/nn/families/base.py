"""What a family's torch side consists of: Stem, Block, PatchEmbed and Output, and the Stage that runs blocks.

A family's module (`routespace.nn.families.pvt_v2`, `….swin_v2`, or your own) derives its classes from the
abstract ones here and tells them in one constant, which `modules_of` finds:

    MODULES = FamilyModules(stem=Stem, block=VitBlock, patch_embed=PatchEmbed, output=Output)

Shape legend: B images · N tokens · n kept tokens of the whole batch · C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, final

import torch
from torch import Tensor, nn

from routespace.errors import SpecError
from routespace.grid.families.base import Family
from routespace.grid.families.lookup import import_attribute
from routespace.grid.spec import GridSpec
from routespace.nn.families.again import computed_again, is_worth_it, keeps_inputs
from routespace.nn.families.packing_costs import PACKING_COSTS, PackingCosts
from routespace.nn.families.parts import image_parts, in_parts
from routespace.nn.packing.keep import KeptTokens


class Stem(nn.Module, ABC):
    """Image → finest map."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) pixels → (B, N, C)."""


class Block(nn.Module, ABC):
    """One transformer block, computed for all tokens, under a mask, or for the kept tokens alone.

    Attributes:
        has_compiled_steps: whether the family has steps for `torch.compile`.
        compiled: run them; see `RouteNet.compile_blocks`.
        row_numbers: how many numbers a compiled step makes of a token at its widest, by which a batch is parted;
            0 where that is not known.
    """

    has_compiled_steps: ClassVar[bool] = False
    compiled: bool = False
    row_numbers: int = 0

    @property
    def packing_costs(self) -> PackingCosts:
        """What packing takes beside the kept tokens, in eager execution on this CPU."""
        return PACKING_COSTS

    def forward(
        self, x: Tensor, hw: tuple[int, int], keep: KeptTokens | None = None, *, packed: bool = False
    ) -> Tensor:
        """(B, N, C) → (B, N, C) in one of the three ways below; forward hooks hear all of them.

        Args:
            x: the token map.
            hw: its height and width.
            keep: the tokens to compute; None means all.
            packed: compute the kept tokens alone instead of masking.
        """
        if keep is None:
            return self.whole(x, hw)
        return self.packed(x, hw, keep) if packed else self.masked(x, hw, keep)

    @abstractmethod
    def whole(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """(B, N, C) → (B, N, C), every token."""

    @abstractmethod
    def masked(self, x: Tensor, hw: tuple[int, int], keep: KeptTokens) -> Tensor:
        """(B, N, C) → (B, N, C): kept tokens as routing defines them, the others unchanged. The reference."""

    @abstractmethod
    def packed(self, x: Tensor, hw: tuple[int, int], keep: KeptTokens) -> Tensor:
        """(B, N, C) → (B, N, C), equal to `masked`, in the time of the kept tokens.

        Without autograd the block may write to x and return it.
        """


class PatchEmbed(nn.Module, ABC):
    """A map → the map of the next coarser rate.

    Attributes:
        grad_checkpointing: compute again, in the backward pass, what stands before its product; see
            `RouteNet.set_grad_checkpointing`.
    """

    grad_checkpointing: bool = False

    @abstractmethod
    def forward(self, x: Tensor, hw: tuple[int, int], visible: Tensor | None = None) -> Tensor:
        """(B, N, C) → (B, N', C'); `visible` (B, N, 1) zeroes the tokens that are not there."""


class TokenEmbed(PatchEmbed):
    """A patch embedding that can compute some of its coarse tokens alone."""

    @abstractmethod
    def packed(self, x: Tensor, hw: tuple[int, int], rows: Tensor, visible: Tensor | None) -> Tensor:
        """(B, N, C) fine map → (n, C'): the coarse tokens at `rows` (n,) of the flat (B·N') coarse batch.

        `visible` (B, N, 1) zeroes the fine tokens that are not there; None means all are.
        """


class Output(nn.Module, ABC):
    """What stands between the last node of a rate and the heads."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) → (B, N, C)."""


@final
class Stage(nn.Module):
    """A transformer edge: blocks in a row.

    Attributes:
        grad_checkpointing: keep only the edge's input for the backward pass, which computes the rest again, but
            where that is not worth it; see `RouteNet.set_grad_checkpointing`.
    """

    grad_checkpointing: bool = False

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    @property
    def compiled(self) -> bool:
        """Whether its blocks run their compiled steps."""
        return any(block.compiled for block in self.blocks)

    @property
    def packing_costs(self) -> PackingCosts:
        """Of its first block."""
        return next((b.packing_costs for b in self.blocks if isinstance(b, Block)), PACKING_COSTS)

    def forward(
        self, x: Tensor, hw: tuple[int, int], keep: KeptTokens | None = None, *, packed: bool = False
    ) -> Tensor:
        """(B, N, C) → (B, N, C).

        Args:
            x: the token map.
            hw: its height and width.
            keep: the tokens to compute; None means all.
            packed: compute the kept tokens alone instead of masking.
        """
        if self.grad_checkpointing and is_worth_it(x) and keeps_inputs():
            return computed_again(self._run, x, hw, keep, packed)
        images = self._image_parts(x, keep, packed)
        if len(images) == 1:
            return self._run(x, hw, keep, packed)
        parts = torch.split(x, images)
        keeps = [None] * len(parts) if keep is None else keep.split(images)
        done = [self._run(part, hw, kept, packed) for part, kept in zip(parts, keeps, strict=True)]
        return torch.cat(done)

    def _image_parts(self, x: Tensor, keep: KeptTokens | None, packed: bool) -> list[int]:
        """How many images of a (B, N, C) batch to run through the blocks before the next ones."""
        if not in_parts(x):
            return [x.shape[0]]
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        numbers = max((block.row_numbers for block in blocks if block.compiled), default=0)
        if not numbers or not (keep is None or packed):  # masked blocks are never compiled
            return image_parts(x)
        row_bytes = numbers * x.element_size()
        if keep is None:
            return image_parts(x, row_bytes=row_bytes)
        share = sum(keep.lengths) / max(1, keep.kept.numel())
        return image_parts(x, row_bytes=row_bytes, share=share, packed=True)

    def _run(self, x: Tensor, hw: tuple[int, int], keep: KeptTokens | None, packed: bool) -> Tensor:
        if packed and keep is not None and not torch.is_grad_enabled():
            x = x.clone()  # blocks may write to it
        for block in self.blocks:
            heard = packed and has_hooks(block)  # then its parts are called as modules, with whole maps
            x = block(x, hw, keep, packed=packed and not heard)
            if heard and not torch.is_grad_enabled():
                x = x.clone()  # the next block may write to it
        return x


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody listens to a module or to one of its direct parts."""
    try:
        for part in (module, *module.children()):
            if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
                return True
    except AttributeError:  # torch's private names
        return True
    return False


def as_maps_are(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution of token maps, its weights channels-last as the maps are: nothing is reordered in a call."""
    return conv.to(memory_format=torch.channels_last)


def drop_paths(x: Tensor, rate: float, training: bool) -> Tensor | None:
    """Stochastic depth: (B, 1, 1) factors, 0 or 1/(1 − rate) per image; None when there is nothing to drop."""
    if not training or rate == 0.0:
        return None
    return x.new_empty(x.shape[0], 1, 1).bernoulli_(1 - rate).div_(1 - rate)


class MakeBlock(Protocol):
    """How a block is made; a Block class with this constructor is one."""

    def __call__(self, spec: GridSpec, rate: int, *, drop_path: float, index: int) -> Block:
        """A block of the row at `rate`.

        Args:
            spec: the grid's spec.
            rate: whose numbers.
            drop_path: stochastic depth, the share of images that skip each branch in training.
            index: blocks of the row before this one, those of earlier columns too, for blocks that alternate.
        """


StateDict = dict[str, Tensor]


class TimmWeights(NamedTuple):
    """A timm network's weights, sorted by the part of a grid that each belongs to; keys are our modules' keys.

    Attributes:
        stem: of the stem.
        blocks: for each stage, for each block.
        embeds: for each patch embedding, from stage i to i + 1.
        outputs: for each stage's Output; empty dicts where a stage has none.
        head: `weight` and `bias` of the classifier.
    """

    stem: StateDict
    blocks: list[list[StateDict]]
    embeds: list[StateDict]
    outputs: list[StateDict]
    head: StateDict


@dataclass(frozen=True)
class FamilyModules:
    """A family's torch side.

    Attributes:
        stem: of a spec.
        block: of a spec and a rate; see MakeBlock.
        patch_embed: of a spec and the rate that it leaves.
        output: of a spec and a rate.
        from_timm: timm's state dict of such a network, sorted; None where timm has none.
        check_timm: raises BundleError for a module of timm's that computes something else with the same weights;
            None where a state dict says all.
    """

    stem: Callable[[GridSpec], Stem]
    block: MakeBlock
    patch_embed: Callable[[GridSpec, int], PatchEmbed]
    output: Callable[[GridSpec, int], Output]
    from_timm: Callable[[Mapping[str, Tensor]], TimmWeights] | None = None
    check_timm: Callable[[GridSpec, nn.Module], None] | None = None

    def stage(self, spec: GridSpec, rate: int, depth: int, drop_path: float = 0.0, *, first: int = 0) -> Stage:
        """A transformer edge of `depth` blocks; `first` counts the row's blocks in the columns before."""
        return Stage([self.block(spec, rate, drop_path=drop_path, index=first + i) for i in range(depth)])


def modules_of(family: Family) -> FamilyModules:
    """The torch side of a family: `MODULES` of its `nn_module`, which is imported now.

    Raises:
        SpecError: the module cannot be imported, or has no such constant.
    """
    found = import_attribute(family.nn_module, "MODULES", what=f"nn_module of family {family}")
    if not isinstance(found, FamilyModules):
        raise SpecError(
            f"family: MODULES of {family.nn_module} is a {type(found).__name__}; give a FamilyModules, from "
            f"routespace.nn.families.base"
        )
    return found


def prefixed(state: Mapping[str, Tensor], prefix: str) -> StateDict:
    """The tensors whose key starts with `prefix`, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
