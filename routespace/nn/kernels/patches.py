"""Convolutions whose patches do not overlap, as matrix products of these patches.

oneDNN turns the weights of a convolution around in every call, which for a single image is half of its time; and
before a product a compiled step writes a normalised map as patches at once.

Shape legend: B images · H, W map sides · k side of a patch · N' = H·W/k² patches of an image · C, C' channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from routespace.nn.kernels.linear import is_untouched, linear
from routespace.nn.packing.compiler import is_plain_run
from routespace.nn.packing.maps import as_tokens

# Patches of a batch up to which an eager call gains, as more pay for their copy. PVTv2-b2 on a Zen 3, 1, 4, 8
# and 16 images of 49 patches: keys of rate 4 take 0.71, 0.90, 1.13 and 1.13 of the convolution's time, of rate 8
# 0.44, 0.64, 0.86 and 1.06, of rate 16 0.65, 0.75, 0.97 and 0.89. (A batch of 8 runs rate 4 by four images.)
FEW_PATCHES = 400


def convolved_tokens(conv: nn.Module, maps: Tensor) -> Tensor:
    """`conv(maps)` as tokens: (B, C, H, W) → (B, N', C'), by a product where that is faster."""
    if not (isinstance(conv, nn.Conv2d) and _goes_by_patches(conv, maps)):
        return as_tokens(conv(maps))
    k, (b, channels, h, w) = conv.stride[0], maps.shape
    lines = maps.permute(0, 2, 3, 1).reshape(b, h // k, k, w // k, k * channels)
    patches = lines.transpose(2, 3).reshape(b, (h // k) * (w // k), k * k * channels)
    return linear(patches, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)


def _goes_by_patches(conv: nn.Conv2d, maps: Tensor) -> bool:
    """Whether a convolution is that of whole patches, and its product is faster: in inference on a CPU."""
    compiling = torch.compiler.is_compiling()
    if torch.compiler.is_exporting() if compiling else not is_plain_run(maps):  # whose trace is of the convolution
        return False
    k = conv.stride[0]
    if torch.is_grad_enabled() or not maps.is_cpu or torch.is_autocast_enabled("cpu") or not is_untouched(conv):
        return False
    if not maps.dtype == conv.weight.dtype == torch.float32:
        return False
    if not (conv.kernel_size == conv.stride == (k, k) and conv.dilation == (1, 1) and conv.groups == 1):
        return False
    if conv.padding not in ("valid", (0, 0)) or maps.dim() != 4 or maps.shape[2] % k or maps.shape[3] % k:
        return False
    patches = maps.shape[0] * (maps.shape[2] // k) * (maps.shape[3] // k)
    return compiling or 0 < patches <= FEW_PATCHES
