"""Decoders of a pyramid for pixel classes, of the blocks of segmentation_models_pytorch: Semantic FPN, UperNet.

    decoder(maps)                   maps of all rates, fine to coarse → features of the finest map's size
    decoder.convolutions(sizes)     each convolution with the size of what it gives, which is what it costs

They are built for the rates of a grid, be it one, and take maps of any size, those of odd sizes too. `drop_to`
leaves out, in place, what stands on the maps of some of them; the other weights keep their names.

Shape legend: B images · C channels of a map · D of a decoder · H, W of a rate's map; h, w of the finest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routespace.nn.views import view_of

DROPOUT = 0.1  # of whole channels before the classifier, as in the Semantic FPN of DiT's and PVT's tables
CHANNELS_STEP = 16  # D is a multiple of it
NORM_GROUPS = 32  # of the branches of Semantic FPN, which have D / 2 channels; of fewer, or others, FEW in a group
FEW = 4
GROUP_CHANNELS = 16  # of UperNet's norms: maps pooled to one place have no more numbers than that
Size = tuple[int, int]
Convolved = Iterator[tuple[nn.Conv2d, Size]]


class SemanticFpn(nn.Module):
    """Semantic FPN (Kirillov et al., 2019): maps added up from coarse to fine, a branch of each to the finest.

    With four rates, and 64 channels or a multiple, it is segmentation_models_pytorch's `FPNDecoder`. With
    `smoothed` its pyramid has FPN's 3×3 convolution on each level, as in mmsegmentation and so in PVT's and DiT's
    tables: these take a third of all MACs under a small backbone.

    Args:
        widths: C of each map, fine to coarse.
        channels: D; the branches have half as many.
        smoothed: a convolution on each level before its branch.
    """

    def __init__(self, widths: Sequence[int], channels: int, *, smoothed: bool = False) -> None:
        super().__init__()
        self.out_channels = channels // 2
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        smooth = (nn.Conv2d(channels, channels, 3, padding=1) if smoothed else nn.Identity() for _ in widths)
        self.smooth = nn.ModuleList(smooth)
        self.branches = nn.ModuleList(Branch(channels, self.out_channels, steps) for steps in range(len(widths)))
        self.dropout = nn.Dropout2d(DROPOUT)
        self.places: Sequence[int] = range(len(widths))

    def drop_to(self, places: Sequence[int]) -> None:
        """Read these maps alone, by their places; the finest of them has the size of what is given."""
        self.places = places
        for modules in (self.laterals, self.smooth, self.branches):
            _leave(modules, places)
        for place in places:  # convolutions stay where they were learned, only the last steps of growing fall away
            for step, part in enumerate(_steps(self.branches[place])):
                part.upsample = step < place - places[0]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, H, W), fine to coarse → (B, D / 2, h, w)."""
        height, width = maps[0].shape[-2:]
        levels: list[Tensor] = []
        for place, x in zip(reversed(self.places), reversed(maps), strict=True):
            level = self.laterals[place](x)
            if levels:
                level = level + F.interpolate(levels[-1], size=x.shape[-2:], mode="nearest")
            levels.append(level)
        pairs = zip(self.places, reversed(levels), strict=True)
        grown = [self.branches[place](self.smooth[place](level)) for place, level in pairs]
        # Twice a map that was rounded up is larger by a row or a column than the finer one.
        total = sum((x[..., :height, :width] for x in grown[1:]), grown[0])
        out: Tensor = self.dropout(total)
        return out

    def convolutions(self, sizes: Sequence[Size]) -> Convolved:
        """Each convolution with the size of what it gives, for maps of these sizes, fine to coarse."""
        for place, size in zip(self.places, sizes, strict=True):
            for conv in (self.laterals[place], self.smooth[place]):
                if isinstance(conv, nn.Conv2d):
                    yield conv, size
            doubled = 0
            for part in _steps(self.branches[place]):
                yield part.block[0], (size[0] << doubled, size[1] << doubled)
                doubled += part.upsample


def _steps(branch: Any) -> Iterator[Any]:
    """The convolutions of a branch, each with its norm and whether it doubles its map."""
    yield from branch.block


class Branch(nn.Module):
    """From a map of a rate to the finest's size: a convolution before each doubling, and one where there is none.

    Args:
        channels: D of the map.
        out_channels: of what is given.
        doublings: how often it grows.
    """

    def __init__(self, channels: int, out_channels: int, doublings: int) -> None:
        super().__init__()
        steps = max(1, doublings)
        widths = [channels] + [out_channels] * steps
        self.block = nn.Sequential(*(Step(*widths[n : n + 2], upsample=doublings > 0) for n in range(steps)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) → (B, D / 2, h, w)."""
        out: Tensor = self.block(x)
        return out


class Step(nn.Module):
    """A convolution, its norm, and twice the size where wanted."""

    def __init__(self, channels: int, out_channels: int, *, upsample: bool) -> None:
        super().__init__()
        groups = out_channels // FEW if out_channels % NORM_GROUPS else NORM_GROUPS
        conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        self.block = nn.Sequential(conv, PlaceNorm(groups, out_channels), nn.ReLU(inplace=True))
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, D / 2, H, W), or of twice the size."""
        out: Tensor = self.block(x)
        return F.interpolate(out, scale_factor=2.0, mode="bilinear", align_corners=True) if self.upsample else out


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
        self.last = len(widths) - 1
        self.places: Sequence[int] = range(len(widths))

    def drop_to(self, places: Sequence[int]) -> None:
        """Read these maps alone, by their places. Without the coarsest there is no pooling of the whole image."""
        self.places = places
        decoder = self.decoder
        _leave(decoder.feature_norms, places)
        for blocks in (decoder.fpn_lateral_blocks, decoder.fpn_conv_blocks):
            _leave(blocks, [self._block(place) for place in places])
        if self.last not in places:
            decoder.psp = nn.Identity()
        fusion = decoder.fusion_block
        fusion[0] = PartConv.of(fusion[0], places, self.out_channels)

    def _block(self, place: int) -> int:
        """Where the blocks of a map stand: the coarsest has none, and the others are counted from it."""
        return self.last - 1 - place

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, H, W), fine to coarse → (B, D, h, w)."""
        if len(self.places) <= self.last:
            return self._fused(maps)
        out: Tensor = self.decoder([maps[0], maps[0], *maps])
        return out

    def _fused(self, maps: Sequence[Tensor]) -> Tensor:
        """`UPerNetDecoder.forward` without some of the maps."""
        decoder, top, levels = self.decoder, None, list[Tensor]()
        for place, x in zip(reversed(self.places), reversed(maps), strict=True):
            normed = decoder.feature_norms[place](x)
            if place == self.last:
                top = decoder.psp(normed)
                levels.append(top)
                continue
            lateral = decoder.fpn_lateral_blocks[self._block(place)].conv_norm_relu(normed)
            top = lateral if top is None else lateral + _resized(top, lateral.shape[-2:])
            levels.append(decoder.fpn_conv_blocks[self._block(place)](top))
        out: Tensor = decoder.fusion_block(torch.cat([_resized(x, maps[0].shape[-2:]) for x in levels[::-1]], 1))
        return out

    def convolutions(self, sizes: Sequence[Size]) -> Convolved:
        """Each convolution with the size of what it gives, for maps of these sizes, fine to coarse."""
        decoder = self.decoder
        for place, size in zip(self.places, sizes, strict=True):
            if place == self.last:
                for pool, (conv, *_) in decoder.psp.blocks:
                    yield conv, (pool.parts, pool.parts)
                yield decoder.psp.out_conv[0], size
            else:
                yield decoder.fpn_lateral_blocks[self._block(place)].conv_norm_relu[0], size
                yield decoder.fpn_conv_blocks[self._block(place)][0], size
        yield decoder.fusion_block[0], sizes[0]


class PartConv(nn.Conv2d):
    """A convolution of some blocks of its input's channels; it keeps the weights of all, which it shares."""

    places: Sequence[int]
    width: int

    @classmethod
    def of(cls, conv: nn.Conv2d, places: Sequence[int], width: int) -> PartConv:
        """Of another one the blocks at `places`, of `width` channels each."""
        made: PartConv = object.__new__(cls)
        made.__dict__.update(view_of(conv).__dict__)
        made.places, made.width, made.in_channels = places, width, width * len(places)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of the blocks that there are → (B, D, H, W)."""
        parts = [self.weight[:, place * self.width : (place + 1) * self.width] for place in self.places]
        out: Tensor = self._conv_forward(x, torch.cat(parts, 1), self.bias)
        return out


def _resized(x: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _leave(modules: nn.ModuleList, places: Sequence[int]) -> None:
    """Put nothing in the place of all other modules, in place; names stay."""
    for place in range(len(modules)):
        if place not in places:
            modules[place] = nn.Identity()


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
    "semantic_fpn_3x3": partial(SemanticFpn, smoothed=True),
    "upernet": UperNet,
}
