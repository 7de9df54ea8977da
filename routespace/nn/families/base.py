"""What a family's torch side consists of: blocks in a Stage, and the classes Stem, PatchEmbed and Output.

A family module (`routespace.nn.families.pvt_v2`, `….swin_v2`, or your own) offers four classes:

    Stem(spec)                      (B, 3, H, W) image → (B, N, C) map of the finest rate
    Stage(spec, rate, depth, drop_path, first=…)
                                    a transformer edge, here below, made of the family's blocks; `first` counts
                                    the blocks of earlier columns, for families whose blocks alternate
    PatchEmbed(spec, rate)          map of `rate` → map of 2·rate, all of it or some of its tokens
    Output(spec, rate)              what stands between the last node of a rate and the heads

and, where timm has the family, `from_timm(state_dict) -> TimmWeights`.

Shape legend: B images · N tokens · n kept tokens of the whole batch · C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from routespace.nn.packing.keep import KeptTokens

TOKENS_AT_ONCE = 16384  # of each thread of a CPU, in inference: what a block makes of so many fits its caches


class Block(nn.Module, ABC):
    """One transformer block, computed for all tokens, under a mask, or for the kept tokens alone.

    Attributes:
        has_compiled_steps: whether the family has steps for `torch.compile`.
        compiled: run them; see `RouteNet.compile_blocks`.
    """

    has_compiled_steps: ClassVar[bool] = False
    compiled: bool = False

    @abstractmethod
    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """(B, N, C) → (B, N, C), every token."""

    @abstractmethod
    def masked(self, x: Tensor, hw: tuple[int, int], keep: KeptTokens) -> Tensor:
        """(B, N, C) → (B, N, C): kept tokens as routing defines them, the others unchanged. The reference."""

    @abstractmethod
    def packed(self, x: Tensor, hw: tuple[int, int], keep: KeptTokens) -> Tensor:
        """(B, N, C) → (B, N, C), equal to `masked`, in the time of the kept tokens.

        Without autograd the block may write to x and return it.
        """


class TokenEmbed(nn.Module, ABC):
    """A patch embedding that can compute some of its coarse tokens alone."""

    @abstractmethod
    def packed(self, x: Tensor, hw: tuple[int, int], rows: Tensor, visible: Tensor | None) -> Tensor:
        """(B, N, C) fine map → (n, C'): the coarse tokens at `rows` (n,) of the flat (B·N') coarse batch.

        `visible` (B, N, 1) zeroes the fine tokens that are not there; None means all are.
        """


class Stage(nn.Module):
    """A transformer edge: blocks in a row.

    Attributes:
        grad_checkpointing: keep only the edge's input for the backward pass, which computes the rest again; see
            `RouteNet.set_grad_checkpointing`.
    """

    grad_checkpointing: bool = False

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    @property
    def compiled(self) -> bool:
        """Whether its blocks run their compiled steps."""
        return any(block.compiled for block in self.blocks)

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
        if self.grad_checkpointing and torch.is_grad_enabled() and not torch.compiler.is_exporting():
            again: Tensor = checkpoint(self._run, x, hw, keep, packed, use_reentrant=False)
            return again
        images = self._images_at_once(x)
        if images >= x.shape[0]:
            return self._run(x, hw, keep, packed)
        parts = torch.split(x, images)
        keeps = [None] * len(parts) if keep is None else keep.split(images)
        done = [self._run(part, hw, kept, packed) for part, kept in zip(parts, keeps, strict=True)]
        return torch.cat(done)

    def _images_at_once(self, x: Tensor) -> int:
        """How many images of a (B, N, C) batch to run through the blocks before the next ones."""
        if not in_parts(x):
            return x.shape[0]
        return max(1, TOKENS_AT_ONCE * torch.get_num_threads() // x.shape[1])

    def _run(self, x: Tensor, hw: tuple[int, int], keep: KeptTokens | None, packed: bool) -> Tensor:
        if packed and keep is not None and not torch.is_grad_enabled():
            x = x.clone()  # blocks may write to it
        for block in self.blocks:
            assert isinstance(block, Block)
            if keep is None:
                x = block(x, hw)
            elif packed:
                x = block.packed(x, hw, keep)
            else:
                x = block.masked(x, hw, keep)
        return x


def in_parts(x: Tensor) -> bool:
    """Whether to compute a part of the work at a time, as fits the caches: in inference on a CPU, not traced."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing())  # type: ignore[no-untyped-call,attr-defined]


def as_maps_are(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution of token maps, its weights channels-last as the maps are: nothing is reordered in a call."""
    return conv.to(memory_format=torch.channels_last)


def drop_paths(x: Tensor, rate: float, training: bool) -> Tensor | None:
    """Stochastic depth: (B, 1, 1) factors, 0 or 1/(1 − rate) per image; None when there is nothing to drop."""
    if not training or rate == 0.0:
        return None
    return x.new_empty(x.shape[0], 1, 1).bernoulli_(1 - rate).div_(1 - rate)


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


def prefixed(state: Mapping[str, Tensor], prefix: str) -> StateDict:
    """The tensors whose key starts with `prefix`, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
