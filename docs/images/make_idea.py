"""Draw idea.png: the grid, a plain network's path, and what a routed network computes of one photograph.

Run it from the repository's root: python docs/images/make_idea.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

RATES = (4, 8, 16, 32)
LAYERS = 4
COLOURS = {"transformer": "#2563eb", "identity": "#b8c0cc", "patch_embed": "#ea580c"}
STAIRCASE = [((0, 0), (1, 0)), ((1, 0), (1, 1)), ((1, 1), (2, 1)), ((2, 1), (2, 2)), ((2, 2), (3, 2))]
STAIRCASE += [((3, 2), (3, 3)), ((3, 3), (4, 3))]
BEND = 0.22  # how far the identity edge swings below its transformer


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], kind: str, width: float, bend: float = 0
) -> None:
    """One edge from node to node."""
    style = {"arrowstyle": "-|>", "color": COLOURS[kind], "lw": width, "shrinkA": 9, "shrinkB": 9}
    axes.annotate("", end, start, arrowprops=style | {"connectionstyle": f"arc3,rad={bend}"})


def frame(axes: Axes, title: str) -> None:
    """Nodes, rates and layers."""
    for layer in range(LAYERS + 1):
        for row in range(len(RATES)):
            axes.plot(layer, -row, "o", ms=11, color="white", mec="#64748b", zorder=3)
    for row, rate in enumerate(RATES):
        axes.text(-0.35, -row, f"rate {rate}", ha="right", va="center", fontsize=9)
    for layer in range(LAYERS):
        axes.text(layer + 0.5, 0.55, f"layer {layer}", ha="center", fontsize=9)
    axes.set_title(title, fontsize=11, pad=14)
    axes.set_xlim(-1.1, LAYERS + 0.3)
    axes.set_ylim(-len(RATES) + 0.5, 0.8)
    axes.axis("off")


def space(axes: Axes) -> None:
    """Every edge of the grid, and the staircase on top."""
    frame(axes, "The space: every path is a network")
    for layer in range(LAYERS):
        for row in range(len(RATES)):
            taken = ((layer, row), (layer + 1, row)) in STAIRCASE
            arrow(axes, (layer, -row), (layer + 1, -row), "transformer", 3.2 if taken else 1.1)
            arrow(axes, (layer, -row), (layer + 1, -row), "identity", 1.1, BEND)
    for layer in range(LAYERS):
        for row in range(len(RATES) - 1):
            taken = ((layer, row), (layer, row + 1)) in STAIRCASE
            arrow(axes, (layer, -row), (layer, -row - 1), "patch_embed", 3.2 if taken else 1.1)


def routed(axes: Axes) -> None:
    """Widths by the share of tokens that an edge computes."""
    frame(axes, "A routed network: each image computes a part")
    shares = [[0.72, 0.13, 0, 0], [0.43, 0.38, 0.12, 0], [0, 0.68, 0.30, 0.08], [0, 0, 0.46, 0.42]]
    for row, parts in enumerate(shares):
        for layer, share in enumerate(parts):
            arrow(axes, (layer, -row), (layer + 1, -row), "identity", 1.1, BEND)
            if share:
                arrow(axes, (layer, -row), (layer + 1, -row), "transformer", 0.8 + 4 * share)
                axes.text(layer + 0.5, -row + 0.1, f"{100 * share:.0f} %", ha="center", fontsize=8)
    for layer, row in ((0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (3, 2)):
        arrow(axes, (layer, -row), (layer, -row - 1), "patch_embed", 1.6)


def main() -> None:
    """Write idea.png beside this file."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.9), dpi=130)
    space(left)
    routed(right)
    handles = [plt.Line2D([], [], color=colour, lw=2.5) for colour in COLOURS.values()]
    names = ["transformer blocks", "identity", "patch embedding: to half the resolution"]
    figure.legend(handles, names, ncol=3, loc="lower center", frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(Path(__file__).with_name("idea.png"))


if __name__ == "__main__":
    main()
