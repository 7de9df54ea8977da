"""Parts of a network that differ from others in a few choices: where a search goes on."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Sequence

from routespace.errors import GridError
from routespace.grid.architecture import Architecture

MOST_CHANGES = 4  # of one step: a block that moves to another rate takes two, with its way down four
TRIES = 40  # draws for each wanted neighbour


class Neighbours:
    """Draws neighbours of static parts.

    Args:
        whole: the network's architecture; only its choices vary.
        seed: of the draws.
    """

    def __init__(self, whole: Architecture, seed: int) -> None:
        self.whole = whole
        self._draw = random.Random(seed)
        self._rows = {
            name: str(whole.grid.edges[name].partner)
            for name in whole.gated_edges
            if whole.grid.edges[name].kind == "transformer"
        }
        self._columns = [n for n in whole.gated_edges if whole.grid.edges[n].kind == "patch_embed"]

    def of(
        self,
        parts: Sequence[Architecture],
        count: int,
        wanted: Callable[[Architecture], bool],
        *,
        known: Container[Architecture] = (),
    ) -> list[Architecture]:
        """Up to `count` different parts near the given ones, of those that are wanted and not known yet."""
        found: dict[Architecture, None] = {}
        choices = [*self._rows, *self._columns]
        for _ in range(TRIES * count if parts and choices else 0):
            if len(found) == count:
                break
            changed = self._changed(self._draw.choice(parts), choices)
            if changed is not None and changed not in found and changed not in known and wanted(changed):
                found[changed] = None
        return list(found)

    def _changed(self, part: Architecture, choices: Sequence[str]) -> Architecture | None:
        """A part with some rows or columns switched; None where that is none of the network's."""
        names = set(part.edges)
        # Rows that nobody reaches pass on, so that a way down that moves finds its way; dead ends are removed.
        names |= {passing for name, passing in self._rows.items() if name not in names}
        for name in self._draw.sample(choices, min(len(choices), self._draw.randint(1, MOST_CHANGES))):
            passing = self._rows.get(name)
            if passing is not None:
                names ^= {name, passing}
            else:
                names ^= {name}
        try:
            changed = Architecture.static(part.spec, names)
        except GridError:
            return None
        return changed if self.whole.contains(changed) else None
