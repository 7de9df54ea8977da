"""PVTv2 (Wang et al., arXiv 2106.13797): sizes b0–b5 and the exact price of each part.

A block is attention with spatially reduced keys (a strided convolution of side `sr`) and a feed-forward layer
with a 3×3 depth-wise convolution. The norm that PVTv2 keeps at the end of a stage belongs to leaving a row
here: it stands at the input of the patch embedding and at the outputs.

Shape legend: C channels · N tokens · M keys · R hidden channels of the feed-forward layer.
"""

from __future__ import annotations

from routespace.errors import SpecError
from routespace.grid.families.base import FLOAT_BYTES, EdgeCost, Family, GridNumbers, Parameter, Shape, norm_params

STEM_KERNEL = 7
EMBED_KERNEL = 3
DEPTHWISE_KERNEL = 3

_HEADS = (1, 2, 5, 8)
_SR = {"sr_ratios": (8, 4, 2, 1)}
_WIDE = (64, 128, 320, 512)


class PvtV2(Family):
    """The PVTv2 family; block cost at 224² and b1–b4 widths: 279, 263, 239, 158 MMACs."""

    name = "pvt_v2"
    free_size = True
    nn_module = "routespace.nn.families.pvt_v2"
    parameters = {"sr_ratios": Parameter("Spatial reduction ratios of keys and values")}
    sizes = {
        "b2": Shape(_WIDE, _HEADS, (8.0, 8.0, 4.0, 4.0), _SR),
        "b0": Shape((32, 64, 160, 256), _HEADS, (8.0, 8.0, 4.0, 4.0), _SR),
        "b1": Shape(_WIDE, _HEADS, (8.0, 8.0, 4.0, 4.0), _SR),
        "b3": Shape(_WIDE, _HEADS, (8.0, 8.0, 4.0, 4.0), _SR),
        "b4": Shape(_WIDE, _HEADS, (8.0, 8.0, 4.0, 4.0), _SR),
        "b5": Shape(_WIDE, _HEADS, (4.0, 4.0, 4.0, 4.0), _SR),
    }
    depths = {
        "b0": (2, 2, 2, 2),
        "b1": (2, 2, 2, 2),
        "b2": (3, 4, 6, 3),
        "b3": (3, 4, 18, 3),
        "b4": (3, 8, 27, 3),
        "b5": (3, 6, 40, 3),
    }

    def stem_cost(self, spec: GridNumbers) -> EdgeCost:
        """7×7 convolution of stride 4 with LayerNorm."""
        return _conv_cost(spec, spec.in_channels, spec.stem_down, kernel=STEM_KERNEL, norm_in=False)

    def patch_embed_cost(self, spec: GridNumbers, rate: int) -> EdgeCost:
        """LayerNorm of the row that is left, 3×3 convolution of stride 2, LayerNorm."""
        return _conv_cost(spec, spec.width(rate), 2 * rate, kernel=EMBED_KERNEL, norm_in=True)

    def block_cost(self, spec: GridNumbers, rate: int) -> EdgeCost:
        """Attention with reduced keys and the convolutional feed-forward layer."""
        i, c = spec.index(rate), spec.width(rate)
        h, w = spec.map_size(rate)
        n, r, sr = h * w, int(c * spec.shape.mlp_ratios[i]), spec.own("sr_ratios", rate)
        m = (h // sr) * (w // sr)
        reduction = c * c * sr * sr if sr > 1 else 0
        fixed_params = 2 * (c * c + c) + (reduction + c + norm_params(c) if sr > 1 else 0)
        dw = r * DEPTHWISE_KERNEL**2
        routed_params = 2 * (c * c + c) + (c * r + r) + (dw + r) + (r * c + c) + 2 * norm_params(c)
        fixed_macs = m * (reduction + 2 * c * c)
        routed_macs = n * (2 * c * c + 2 * m * c + 2 * c * r + dw)
        # Bytes: each linear or convolution reads its input and writes its output once.
        fixed_numbers = fixed_params + routed_params + (n * c + m * c if sr > 1 else 0) + m * 3 * c
        routed_numbers = n * (2 * c + 2 * c + 2 * c + (c + r) + 2 * r + (r + c) + 6 * c)
        return EdgeCost(
            params=fixed_params + routed_params,
            fixed_macs=fixed_macs,
            routed_macs=routed_macs,
            fixed_bytes=FLOAT_BYTES * fixed_numbers,
            routed_bytes=FLOAT_BYTES * routed_numbers,
        )

    def output_cost(self, spec: GridNumbers, rate: int) -> EdgeCost:
        """The LayerNorm before the heads."""
        c = spec.width(rate)
        h, w = spec.map_size(rate)
        return EdgeCost(norm_params(c), 0, 0, FLOAT_BYTES * 2 * c, FLOAT_BYTES * 2 * h * w * c)

    def check(self, spec: GridNumbers) -> None:
        """Heads divide widths; hidden widths are whole; each map holds at least one reduced key."""
        for i, rate in enumerate(spec.rates):
            width, heads, least = spec.shape.widths[i], spec.shape.heads[i], self.least_tokens(spec, rate)
            if width % heads:
                raise SpecError(f"heads: {heads} does not divide width {width} at rate {rate}; give a divisor")
            if int(width * spec.shape.mlp_ratios[i]) < 1:
                raise SpecError(f"mlp_ratios: {spec.shape.mlp_ratios[i]} leaves no hidden channel at rate {rate}")
            if min(spec.map_size(rate)) < least:
                h, w = spec.map_size(rate)
                raise SpecError(
                    f"sr_ratios: {least} at rate {rate} is larger than the {h}x{w} map; "
                    f"give at most {min(h, w)} or a larger image_size"
                )

    def least_tokens(self, spec: GridNumbers, rate: int) -> int:
        """One reduced key."""
        return spec.own("sr_ratios", rate)


def _conv_cost(spec: GridNumbers, c_in: int, rate: int, *, kernel: int, norm_in: bool) -> EdgeCost:
    """A convolution into the map at `rate` followed by LayerNorm, with a LayerNorm before it when asked."""
    c_out = spec.width(rate)
    h, w = spec.map_size(rate)
    n = h * w
    weights = c_in * c_out * kernel * kernel
    params = weights + c_out + norm_params(c_out) + (norm_params(c_in) if norm_in else 0)
    n_in = 4 * n if norm_in else spec.image_size[0] * spec.image_size[1]
    numbers = n_in * c_in * (3 if norm_in else 1) + 3 * n * c_out
    return EdgeCost(params, 0, n * weights, FLOAT_BYTES * params, FLOAT_BYTES * numbers)


PVT_V2 = PvtV2()
