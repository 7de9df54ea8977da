"""Routes: every decision of one forward pass, to count, paint, record and replay.

Shape legend: B images · N tokens of the edge's map (coarse tokens for a patch embedding) · P = N, or 1 where a
decision is about the whole image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from routespace.checked import checked
from routespace.errors import GridError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.graph import RoutingGrid
from routespace.grid.usage import EdgeUsage
from routespace.nn.module import unwrap
from routespace.nn.routing.gates import share_count, top_share
from routespace.nn.routing.places import GatePlaces, HasGates
from routespace.nn.trees import register_dataclass, register_mapping


@dataclass(frozen=True)
class EdgeRoute:
    """What one transformer or patch_embed edge computed.

    Attributes:
        kept: (B, P) bool, computed tokens (P = 1: whole images).
        counted: (B, P) float, what the budget counts: `kept` as 0 or 1, with the gates' gradient.
        chance: (B, P) probability of opening, or None for an open edge.
        asked: (B, P) bool, where the gate was evaluated, or None for an open edge.
        per_image: kept tokens of every image where the selection makes them equal (top-k), else None.
        value: (B, P) what the edge's result was multiplied by, where that is neither 0 nor 1 (tanh gates, and soft
            ones while training); None for `kept` itself.
        skipped: (B, P) float, what took the cheap path for skipped tokens, as 0 or 1 with the gates' gradient;
            None where nothing does.
    """

    kept: Tensor
    counted: Tensor
    chance: Tensor | None = None
    asked: Tensor | None = None
    per_image: int | None = None
    value: Tensor | None = None
    skipped: Tensor | None = None

    @classmethod
    def of(cls, kept: Tensor, *, path: bool = False, per_image: int | None = None) -> EdgeRoute:
        """A decision from outside: (B, P) bool; with a `path`, all that is not kept takes it."""
        skipped = (~kept).float() if path else None
        return cls(kept, kept.float(), per_image=per_image, skipped=skipped)

    def usage(self) -> EdgeUsage:
        """Shares of tokens, images, gate decisions and skipped tokens; those of tokens carry the gates' gradient.

        A batch of no images computed nothing: its shares are 0.
        """
        images = self.counted if self.counted.shape[1] == 1 else self.kept.any(1).float()
        asked = share_of(self.asked.float()) if self.asked is not None else 0.0
        skipped = share_of(self.skipped) if self.skipped is not None else 0.0
        return EdgeUsage(tokens=share_of(self.counted), images=share_of(images), asked=asked, skipped=skipped)

    def told(self) -> str:
        """What was computed, in words; of tensors without numbers (meta, traced) the shape alone."""
        (images, places), kept = self.kept.shape, self.kept
        if kept.is_meta or type(kept) is not Tensor or torch.compiler.is_compiling():
            return f"decisions of shape ({images}, {places})"
        share, there = kept.float().mean().item() if images else 0.0, int(kept.any(1).sum())
        what = "images whole" if places == 1 else f"{places} tokens an image"
        return f"computed {share:.2f} of {what}, {there} of {images} images"

    def detach(self) -> EdgeRoute:
        """The same decisions without gradients."""
        value = None if self.value is None else self.value.detach()
        skipped = None if self.skipped is None else self.skipped.detach()
        return replace(self, counted=self.counted.detach(), value=value, skipped=skipped)


def share_of(counted: Tensor) -> Tensor:
    """0-d mean, which is 0 where there is nothing to average."""
    return counted.mean() if counted.numel() else counted.sum()


class Routes(Mapping[str, EdgeRoute]):
    """Edge name → EdgeRoute, for each edge that did not simply compute everything."""

    def __init__(self, edges: Mapping[str, EdgeRoute]) -> None:
        self._edges = dict(edges)

    def __getitem__(self, name: str) -> EdgeRoute:
        return self._edges[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._edges)

    def __len__(self) -> int:
        return len(self._edges)

    def __repr__(self) -> str:
        """One line an edge: the share of its tokens that it computed, and of how many images."""
        if not self._edges:
            return "Routes(every edge computed everything)"
        width = max(len(name) for name in self._edges)
        return "\n".join(
            ["Routes("] + [f"  {n:<{width}}  {route.told()}" for n, route in self._edges.items()] + [")"]
        )

    def usage(self) -> dict[str, EdgeUsage]:
        """Edge name → shares; edges that are absent computed everything. Scalars are tensors."""
        return {name: route.usage() for name, route in self._edges.items()}

    def lengths(self) -> dict[str, list[int]]:
        """Edge name → kept tokens of each image, of decisions by tokens; the host waits for the device once."""
        asked = {
            name: route.kept.sum(1)
            for name, route in self.items()
            if route.per_image is None and route.value is None and route.kept.shape[1] > 1
        }
        return dict(zip(asked, torch.stack(list(asked.values())).tolist(), strict=True)) if asked else {}

    def check(self, grid: RoutingGrid, *, images: int, sizes: Mapping[int, tuple[int, int]]) -> None:
        """Raise SpecError unless the decisions are about edges of `grid` and about so many images.

        Args:
            grid: whose edges they are to decide about.
            images: B.
            sizes: rate → height and width of its maps.
        """
        for name, route in self.items():
            edge = grid.edges.get(name)
            if edge is None:
                raise SpecError(f"routes: {name!r:.60} is not an edge of this grid; give routes of this network")
            height, width = sizes[edge.target[1]]
            if route.kept.shape not in ((images, 1), (images, height * width)):
                raise SpecError(
                    f"routes: {name} has decisions of shape {tuple(route.kept.shape)}; these images need "
                    f"({images}, 1) or ({images}, {height * width})"
                )

    def detach(self) -> Routes:
        """The same decisions without gradients, to keep or to replay."""
        return Routes({name: route.detach() for name, route in self._edges.items()})

    @classmethod
    @checked
    def following(
        cls,
        architecture: Architecture,
        places: Mapping[str, GatePlaces],
        *,
        images: int,
        device: torch.device | str | None = None,
    ) -> Routes:
        """Decisions that follow an architecture: gates of its edges open, all others shut.

        What is shut so passes unchanged, as in a network without that edge: no cheap path is taken.

        Args:
            architecture: whose edges are to be computed, and no others that have a gate.
            places: where the network's gates decide, from its `gate_places`.
            images: B, how many images the decisions are for.
            device: where the decisions are made, torch's default without it.
        """
        edges = {}
        for name, where in places.items():
            made = torch.ones if name in architecture.edges else torch.zeros  # `full` of bools cannot be traced
            kept = where.spread(made((images, where.decisions), dtype=torch.bool, device=device))
            edges[name] = EdgeRoute(kept, kept.float())
        return cls(edges)

    @classmethod
    @checked
    def full(cls, net: HasGates, images: Tensor) -> Routes:
        """Decisions that keep everything: each gated transformer and patch_embed edge computes all."""
        return cls.random(net, images, keep=1.0)

    @classmethod
    @checked
    def random(cls, net: HasGates, images: Tensor, *, keep: float, columns: float = 1.0, seed: int = 0) -> Routes:
        """Random decisions at a known keep ratio, to compare execution modes and to measure speed.

        Args:
            net: the network whose gates are replaced, in a wrapper such as torch.compile's or not.
            images: (B, C, H, W), for batch size and map sizes.
            keep: share of tokens (or windows, images) that each row computes.
            columns: likewise for patch embeddings.
            seed: of the draw.
        """
        if not (0 <= keep <= 1 and 0 <= columns <= 1):
            raise GridError(f"keep: {keep} and columns {columns} must be shares between 0 and 1")
        generator = torch.Generator().manual_seed(seed)
        edges, gated = {}, cast(HasGates, unwrap(net)) if isinstance(net, nn.Module) else net
        for name, places in gated.gate_places(images.shape[-2:]).items():
            share = columns if places.down else keep
            draw = torch.rand((images.shape[0], places.decisions), generator=generator, device="cpu")
            per_image = None
            if places.ranked and share > 0:
                per_image = share_count(share, places.decisions)
                draw, share = -top_share(draw, share), 0.0
            kept = places.spread((draw < share).to(images.device))
            edges[name] = EdgeRoute.of(kept, path=places.path and keep < 1, per_image=per_image)
        return cls(edges)


register_dataclass(EdgeRoute, "routespace.EdgeRoute")
register_mapping(Routes, "routespace.Routes")
