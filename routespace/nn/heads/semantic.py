"""The head of semantic segmentation: a decoder on the pyramid of maps, then a class for each place of the finest.

Whoever needs a class for each pixel interpolates the logits (bilinear, `align_corners` False).

Shape legend: B images · K classes · h, w of the finest map, a quarter of the image's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional as F

from routespace.errors import SpecError
from routespace.grid.families.base import FLOAT_BYTES, EdgeCost
from routespace.grid.spec import GridSpec
from routespace.nn.heads.base import Head, listed, missing_maps
from routespace.nn.heads.pixel_decoders import CHANNELS_STEP, DECODERS
from routespace.nn.route_net import RouteOutput
from routespace.nn.views import view_of

INIT_STD = 0.01
USUAL_RATES = 4, 8, 16, 32


class PixelClassifier(Head):
    """A class for each place of the finest map, from the maps of all rates that there are.

    Args:
        widths: channels of each map, fine to coarse.
        classes: K.
        decoder: `semantic_fpn`, `semantic_fpn_3x3` or `upernet`.
        channels: of the decoder; a multiple of 16.

    Raises:
        SpecError: no classes, another decoder or number of channels.
    """

    kind = "semantic"
    recordable = True
    free_size = True
    names = ("pixel_logits",)

    def __init__(
        self, widths: Mapping[int, int], classes: int, *, decoder: str = "semantic_fpn", channels: int = 256
    ) -> None:
        super().__init__()
        if classes < 1:
            raise SpecError(f"task.classes: {classes} classes of pixels cannot be told apart; give 1 or more")
        if decoder not in DECODERS:
            raise SpecError(f"task.decoder: {decoder!r:.40} is not known; give one of {', '.join(DECODERS)}")
        if channels < 1 or channels % CHANNELS_STEP:
            raise SpecError(f"task.channels: {channels} is not allowed; give a multiple of {CHANNELS_STEP}")
        from segmentation_models_pytorch.base.initialization import initialize_decoder

        self.classes, self.channels, self.decoder_name = classes, channels, decoder
        self.built = self.rates = tuple(widths)  # that it was made for, and that it reads
        self.decoder = DECODERS[decoder](tuple(widths.values()), channels)
        self.classifier = nn.Conv2d(self.decoder.out_channels, classes, 1)
        initialize_decoder(self.decoder)
        nn.init.normal_(self.classifier.weight, std=INIT_STD)  # all classes alike: the loss begins at ln K
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)

    @classmethod
    def build(cls, spec: GridSpec, settings: Mapping[str, Any]) -> Self:
        """The head on a grid's output rates; `settings` are classes, decoder and channels."""
        return cls({rate: spec.width(rate) for rate in spec.output_rates}, **settings)

    def settings(self) -> dict[str, Any]:
        """Classes, decoder and channels."""
        return {"classes": self.classes, "decoder": self.decoder_name, "channels": self.channels}

    def reads(self, spec: GridSpec) -> tuple[int, ...]:
        """All that there are."""
        return self.rates

    def over(self, rates: Sequence[int]) -> Self:
        """The same without what stands on the maps of the other rates; the finest that is read gives its size."""
        kept = tuple(rate for rate in self.rates if rate in rates)
        if kept == self.rates:
            return self
        part = view_of(self)
        part.rates = kept
        part.decoder.drop_to([self.built.index(rate) for rate in kept])
        return part

    def lines(self) -> tuple[str, ...]:
        """Which of the usual maps the grid does not have, or the architecture never reaches."""
        why = missing_maps(
            grid=[rate for rate in USUAL_RATES if rate > max(self.built)],
            architecture=[rate for rate in self.built if rate not in self.rates],
        )
        return (f"task: {why}; {self.decoder_name} reads {listed(self.rates)}",) if why else ()

    def cost(self, spec: GridSpec) -> EdgeCost:
        """The convolutions' price, exact to the last MAC; all of it is paid whatever gates decide."""
        sizes = [spec.map_size(rate) for rate in self.rates]
        placed = [*self.decoder.convolutions(sizes), (self.classifier, sizes[0])]
        params = sum(parameter.numel() for parameter in self.parameters())
        macs = sum(
            conv.out_channels * conv.in_channels * math.prod(conv.kernel_size) * h * w for conv, (h, w) in placed
        )
        moved = sum((conv.in_channels + conv.out_channels) * h * w for conv, (h, w) in placed)
        return EdgeCost(params, macs, 0, FLOAT_BYTES * (params + moved), 0)

    def forward(self, output: RouteOutput) -> Tensor:
        """Logits (B, K, h, w); tokens that nobody sent are zeros in the maps."""
        out: Tensor = self.classifier(self.decoder([output.maps[rate] for rate in self.rates]))
        return out

    def rest(self, outputs: Tensor) -> Any:
        """While training, what the loss keeps of logits at the image's size; nothing is multiplied afterwards."""
        if not self.training:
            return None
        full = F.interpolate(outputs.float(), scale_factor=float(min(self.rates)), mode="bilinear")
        return F.log_softmax(full, 1)

    def tensors(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """The logits."""
        return (outputs,)
