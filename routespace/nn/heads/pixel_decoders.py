"""Decoders of a pyramid for pixel classes, of the blocks of segmentation_models_pytorch: Semantic FPN, UperNet.

    decoder(maps)                   maps of all rates, fine to coarse → features of the finest map's size
    decoder.convolutions(sizes)     each convolution with the size of what it gives, which is what it costs

They are built for the rates that there are, be it one, and take maps of any size, those of odd sizes too.

Shape legend: B images · C channels of a map · D of a decoder · H, W of a rate's map; h, w of the finest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DROPOUT = 0.1  # of whole channels before the classifier, as in the Semantic FPN of DiT's and PVT's tables
CHANNELS_STEP = 64  # D is a multiple of it: the branches of Semantic FPN have half as many, in 32 groups
GROUP_CHANNELS = 16  # of UperNet's norms: maps pooled to one place have no more numbers than that
Size = tuple[int, int]
Convolved = Iterator[tuple[nn.Conv2d, Size]]


class SemanticFpn(nn.Module):
    """Semantic FPN (Kirillov et al., 2019): maps added up from coarse to fine, a branch of each to the finest.

    With four rates it is segmentation_models_pytorch's `FPNDecoder`.

    Args:
        widths: C of each map, fine to coarse.
        channels: D; the branches have half as many.
    """

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        from segmentation_models_pytorch.decoders.fpn.decoder import SegmentationBlock

        self.out_channels = channels // 2
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.branches = nn.ModuleList(
            SegmentationBlock(channels, self.out_channels, n_upsamples=steps) for steps in range(len(widths))
        )
        _replace(self.branches, nn.GroupNorm, lambda norm: PlaceNorm(norm.num_groups, norm.num_channels))
        self.dropout = nn.Dropout2d(DROPOUT)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, H, W), fine to coarse → (B, D / 2, h, w)."""
        height, width = maps[0].shape[-2:]
        levels: list[Tensor] = []
        for lateral, x in zip(reversed(self.laterals), reversed(maps), strict=True):
            level = lateral(x)
            if levels:
                level = level + F.interpolate(levels[-1], size=x.shape[-2:], mode="nearest")
            levels.append(level)
        grown = [branch(level) for branch, level in zip(self.branches, reversed(levels), strict=True)]
        # Twice a map that was rounded up is larger by a row or a column than the finer one.
        total = sum((x[..., :height, :width] for x in grown[1:]), grown[0])
        out: Tensor = self.dropout(total)
        return out

    def convolutions(self, sizes: Sequence[Size]) -> Convolved:
        """Each convolution with the size of what it gives, for maps of these sizes, fine to coarse."""
        for lateral, branch, size in zip(self.laterals, self.branches, sizes, strict=True):
            assert isinstance(lateral, nn.Conv2d)
            yield lateral, size
            for step, conv in enumerate(part for part in branch.modules() if isinstance(part, nn.Conv2d)):
                yield conv, (size[0] << step, size[1] << step)


class PlaceNorm(nn.GroupNorm):
    """GroupNorm that also takes one image whose map is one place: a group of one number becomes its bias."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) → the same shape."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class UperNet(nn.Module):
    """UperNet (Xiao et al., 2018): segmentation_models_pytorch's `UPerNetDecoder`, with GroupNorm.

    Images of one size are a batch of their own, down to one image, of which batch statistics say nothing.

    Args:
        widths: C of each map, fine to coarse.
        channels: D.
    """

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

        self.out_channels = channels
        above = (0, 0)  # of the image and its half, which the decoder leaves out
        self.decoder = UPerNetDecoder((*above, *widths), decoder_channels=channels)
        _replace(
            self.decoder,
            nn.BatchNorm2d,
            lambda norm: nn.GroupNorm(norm.num_features // GROUP_CHANNELS, norm.num_features),
        )
        for block in self.decoder.psp.blocks:
            block[0] = Pool(block[0].output_size)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, H, W), fine to coarse → (B, D, h, w)."""
        out: Tensor = self.decoder([maps[0], maps[0], *maps])
        return out

    def convolutions(self, sizes: Sequence[Size]) -> Convolved:
        """Each convolution with the size of what it gives, for maps of these sizes, fine to coarse."""
        pooling = self.decoder.psp
        for pool, (conv, *_) in pooling.blocks:
            yield conv, (pool.parts, pool.parts)
        yield pooling.out_conv[0], sizes[-1]
        for lateral, fused, size in zip(
            self.decoder.fpn_lateral_blocks, self.decoder.fpn_conv_blocks, reversed(sizes[:-1]), strict=True
        ):
            yield lateral.conv_norm_relu[0], size
            yield fused[0], size
        yield self.decoder.fusion_block[0], sizes[0]


class Pool(nn.Module):
    """The mean of each of k×k parts of a map; exported as two products, which ONNX has for maps of any size.

    Args:
        parts: k.
    """

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, k, k)."""
        if not torch.compiler.is_exporting():
            return F.adaptive_avg_pool2d(x, self.parts)
        rows, columns = (_shares(side, self.parts, x) for side in x.shape[-2:])
        return rows @ x @ columns.T


def _shares(side: int, parts: int, like: Tensor) -> Tensor:
    """(parts, side): what each place counts in the mean of each part, which may share places with the next."""
    number, place = torch.arange(parts, device=like.device)[:, None], torch.arange(side, device=like.device)
    inside = (place >= number * side // parts) & (place < ((number + 1) * side + parts - 1) // parts)
    weights = inside.to(like.dtype)
    return weights / weights.sum(1, keepdim=True)


def _replace(module: nn.Module, kind: type[nn.Module], by: Callable[[Any], nn.Module]) -> None:
    """Put another module in the place of every one of a kind, in place."""
    for name, part in module.named_children():
        if isinstance(part, kind):
            setattr(module, name, by(part))
        else:
            _replace(part, kind, by)


DECODERS: Mapping[str, Callable[[Sequence[int], int], SemanticFpn | UperNet]] = {
    "semantic_fpn": SemanticFpn,
    "upernet": UperNet,
}
