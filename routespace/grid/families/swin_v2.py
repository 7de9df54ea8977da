"""SwinV2 (Liu et al., arXiv 2111.09883): sizes t, s, b and the exact price of each part.

A block is attention inside windows (every second block's windows are shifted by half a side) with cosine scores
and a position bias that a small network computes, and a plain feed-forward layer; norms stand after both. There
is no norm at the end of a stage but the last, so only the coarsest output has one.

What a block costs. A map that the window does not divide is padded, and padded places are computed: they count.
The position bias is the same for all images but computed in each forward pass: it counts as paid by each image,
so that one image costs what torch counts for a batch of one. Keys and values count as fixed: under token routing
nearly every window holds a computed token, and each such window needs all its keys. Windows without a computed
token need none, so under window routing, or with hidden keys, less is run than is counted.

Shape legend: C channels · N tokens · P tokens with padding · A tokens of a window · R hidden channels.
"""

from __future__ import annotations

from routespace.errors import SpecError
from routespace.grid.families.base import FLOAT_BYTES, EdgeCost, Family, GridNumbers, Parameter, Shape, norm_params

BIAS_HIDDEN = 512  # hidden channels of the network that turns relative positions into biases
MERGED = 4  # tokens that a patch merging joins

_HEADS = (3, 6, 12, 24)
_MLP = (4.0, 4.0, 4.0, 4.0)
_NARROW = (96, 192, 384, 768)
_WINDOW = {"window": 8}

FREE = EdgeCost(0, 0, 0, 0, 0)


def window_sides(map_size: tuple[int, int], window: int) -> tuple[int, int]:
    """Height and width of the windows of a map: `window`, or the map's side where that is smaller."""
    return min(window, map_size[0]), min(window, map_size[1])


def padded_size(map_size: tuple[int, int], sides: tuple[int, int]) -> tuple[int, int]:
    """The smallest map of whole windows that holds a map of (H, W) tokens."""
    (h, w), (a, b) = map_size, sides
    return -(-h // a) * a, -(-w // b) * b


class SwinV2(Family):
    """The SwinV2 family; t, s, b at 256²: 5.94, 11.55, 20.33 GMACs as torch counts timm's networks."""

    name = "swin_v2"
    nn_module = "routespace.nn.families.swin_v2"
    parameters = {
        "window": Parameter("Side of a window in tokens, one for all rates or one per rate", one_for_all=True),
        "pretrained_window": Parameter(
            "Side of the windows that given weights were first trained in; 0: of these windows",
            one_for_all=True,
            least=0,
            default=0,
        ),
    }
    alternates = 2  # every second block's windows are shifted
    sizes = {
        "t": Shape(_NARROW, _HEADS, _MLP, _WINDOW),
        "s": Shape(_NARROW, _HEADS, _MLP, _WINDOW),
        "b": Shape((128, 256, 512, 1024), (4, 8, 16, 32), _MLP, _WINDOW),
    }
    depths = {"t": (2, 2, 6, 2), "s": (2, 2, 18, 2), "b": (2, 2, 18, 2)}
    image_size = 256

    def stem_cost(self, spec: GridNumbers) -> EdgeCost:
        """4×4 convolution of stride 4 with LayerNorm; the image is padded to whole patches."""
        c, (h, w) = spec.width(spec.stem_down), spec.map_size(spec.stem_down)
        patch = spec.in_channels * spec.stem_down**2
        params = patch * c + c + norm_params(c)
        numbers = h * w * (patch + 3 * c)
        return EdgeCost(params, 0, h * w * patch * c, FLOAT_BYTES * params, FLOAT_BYTES * numbers)

    def patch_embed_cost(self, spec: GridNumbers, rate: int) -> EdgeCost:
        """Patch merging: four tokens become one through a linear layer and a LayerNorm."""
        c_in, c_out = spec.width(rate), spec.width(2 * rate)
        h, w = spec.map_size(2 * rate)
        weights = MERGED * c_in * c_out
        params = weights + norm_params(c_out)
        numbers = h * w * (2 * MERGED * c_in + 3 * c_out)
        return EdgeCost(params, 0, h * w * weights, FLOAT_BYTES * params, FLOAT_BYTES * numbers)

    def block_cost(self, spec: GridNumbers, rate: int) -> EdgeCost:
        """Window attention and the feed-forward layer."""
        i, c = spec.index(rate), spec.width(rate)
        size, heads, r = spec.map_size(rate), spec.shape.heads[i], int(c * spec.shape.mlp_ratios[i])
        sides = window_sides(size, spec.own("window", rate))
        tall, wide = padded_size(size, sides)
        n, p, area = size[0] * size[1], tall * wide, sides[0] * sides[1]
        places = (2 * sides[0] - 1) * (2 * sides[1] - 1)  # relative positions inside a window
        bias_weights = 2 * BIAS_HIDDEN + BIAS_HIDDEN * heads
        bias_params = bias_weights + BIAS_HIDDEN + heads  # `heads` for the learned temperature
        params = 4 * c * c + 3 * c + bias_params + (c * r + r) + (r * c + c) + 2 * norm_params(c)
        fixed_macs = 2 * p * c * c + places * bias_weights
        routed_macs = p * (2 * c * c + 2 * area * c) + 2 * n * c * r
        # Bytes: each linear layer reads its input and writes its output once.
        fixed_numbers = params + places * (BIAS_HIDDEN + heads) + heads * area * area + 3 * p * c
        routed_numbers = p * (2 * c + 2 * c + 2 * c) + n * ((c + r) + (r + c) + 6 * c)
        return EdgeCost(params, fixed_macs, routed_macs, FLOAT_BYTES * fixed_numbers, FLOAT_BYTES * routed_numbers)

    def output_cost(self, spec: GridNumbers, rate: int) -> EdgeCost:
        """The LayerNorm after the coarsest row; finer rows have none."""
        if rate != spec.max_down:
            return FREE
        c, (h, w) = spec.width(rate), spec.map_size(rate)
        return EdgeCost(norm_params(c), 0, 0, FLOAT_BYTES * 2 * c, FLOAT_BYTES * 2 * h * w * c)

    def check(self, spec: GridNumbers) -> None:
        """Heads divide widths, hidden widths are whole, and a window that was asked for fits the finest map.

        A size's own window is clamped to any map in silence, as every window is on the coarser maps.
        """
        h, w = spec.map_size(spec.stem_down)
        largest = max(spec.own("window", rate) for rate in spec.rates)
        if largest > min(h, w) and "window" in spec.given:
            raise SpecError(
                f"window: {largest} does not fit the finest map of {h}x{w} tokens; "
                f"give at most {min(h, w)} or a larger image_size"
            )
        for i, rate in enumerate(spec.rates):
            width, heads, ratio = spec.shape.widths[i], spec.shape.heads[i], spec.shape.mlp_ratios[i]
            if width % heads:
                raise SpecError(f"heads: {heads} does not divide width {width} at rate {rate}; give a divisor")
            if int(width * ratio) < 1:
                raise SpecError(f"mlp_ratios: {ratio} leaves no hidden channel at rate {rate}; give more")

    def least_tokens(self, spec: GridNumbers, rate: int) -> int:
        """Windows shrink to the smallest map."""
        return 1


SWIN_V2 = SwinV2()
