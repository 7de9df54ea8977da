"""GateSpec: every choice about how edges are gated, and every constant of it.

A row gate decides, per place and granularity, between the transformer edge and the identity edge; a column gate
decides whether a patch embedding is taken. The defaults are the paper's (DiT, arXiv 2308.03409): rows per token,
columns per image, a linear layer to two logits, Gumbel-Softmax, hard decisions with straight-through gradients,
an EMA copy of the gate weights for inference, masks that start as all ones. What the paper leaves open
(temperature, openness, decay, threshold, keys) is a field here.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from routespace.grid.scout import ScoutShape
from routespace.values import Value

Granularity = Literal["layer", "image", "token", "window"]


def _odd(side: int) -> int:
    if side % 2 == 0:
        raise ValueError(f"{side} is even; give an odd side, so that a token stands in the middle")
    return side


Side = Annotated[int, Field(ge=1, le=31), AfterValidator(_odd)]
RANKING = ("attention", "entropy")  # selections that rank tokens without weights
# Fields that say which modules and weights a row's gate is made of.
SHAPING = (
    *("kind", "rows", "columns", "selection", "source", "context_side"),
    *("scout", "scout_width", "scout_square", "opening", "skipped"),
)
MAP_CONTEXT, MAP_SMOOTH = 5, 3  # sides with `source: map` where none are given
Open01 = Annotated[float, Field(gt=0, lt=1)]
Temperature = Annotated[float, Field(ge=1e-3, le=100)]  # below, margins over it leave what floats can hold


class GateSpec(Value):
    """How edges are gated.

    Args:
        kind: `gumbel` (DiT: two logits, Gumbel-Softmax noise while training), `sigmoid` (one logit, no noise)
            or `tanh` (DynamicRouting: max(0, tanh), the value multiplies the edge).
        rows: granularity of the transformer/identity choice: `layer` one learned number, `image` from the pooled
            map, `token` from each token, `window` from each pooled window×window square.
        columns: granularity of patch embeddings; `token` decides per 2×2 group of fine tokens.
        window: side of a `window` square, in tokens (for columns: in coarse tokens).
        relaxation: `straight_through` (hard forward, soft gradient) or `soft` (the probability itself scales the
            edge while training; inference is hard).
        selection: how rows choose tokens: `learned`, or the controls `random` (a coin of probability `keep`),
            `attention` (the share `keep` of tokens that the mean token attends to most) and `entropy` (the share
            `keep` of tokens whose surroundings tell most: the entropy of a Gaussian with their deviations).
        keep: share of tokens that `random`, `attention`, `entropy` and `capacity` keep; of those that are there.
        capacity: True takes exactly the best of each image by gate logit (static shapes, for CUDA graphs and small
            batches), instead of what is above `threshold`; rows must be `token`. A row takes the share `keep` of
            the tokens that are there. A patch embedding with columns `token` takes the share `keep` of all P
            groups: ceil(keep·P), but at most a quarter of the tokens that are there, which many groups are sure to
            hold. So each image sends something down at every one, and nobody is stranded. Other columns decide as
            without capacity. Shapes are known as far as nodes have one way in, and on a staircase `keep` alone
            fixes the cost; where several ways meet the shares are the same, but packed execution waits for the
            counts, and so it does with `early_stop`, where stopped tokens are ranked too: fewer are computed then.
        source: where a row's margins come from. `own`: from weights of its own. `map`: the gate of the first gated
            row alone has weights; what it says of each token, the maximum over the tokens that a coarser token
            covers, is the margin of all later rows, which costs them nothing. Rows must be `token`, or `window`: a
            window opens for the best of its tokens. That first row must be of the finest gated rate, and
            everything must arrive at it.
        context: side of the square of tokens around each token whose mean and standard deviation a row's gate
            reads beside the token itself, without giving them a gradient; 1: the token alone. None: 5 with `map`,
            else 1.
        smooth: side of the square of margins that is averaged before a row decides; 1: none. None: 3 with `map`,
            else 1.
        scout: blocks of a small convolutional network that looks for what is worth computing, with `source: map`;
            the first gated row's gate then reads its features of each square of tokens in place of a context,
            see `routespace/grid/scout.py`. 0: none. On photographs 2 or 4 see what a linear gate does not.
        scout_width: its channels.
        scout_square: side of its squares, in tokens: a scout that sees 4×4 tokens as one looks twice as far for a
            quarter of the MACs, and tells less exactly where.
        opening: what a row's gate opens for. `threshold`: what is above one threshold, the same for all gates.
            `share`: each gate has a threshold of its own, above which is a given share of a training batch's
            tokens, and at inference a running mean of it (`threshold` then moves all of them alike). The shares
            follow from the budget, see `BudgetSpec`.
        teach: `dense` teaches rows while all gates are held open (`budget.open_frac`): the tokens whose block
            changes most of what the loss depends on should open, see `routespace/train/teaching.py`; they learn
            from nothing else. `objects`: the same, by what annotations tell: tokens that touch an object's box
            should open (detection and instance segmentation). `none`: rows learn from the task's and the
            budget's gradients.
        teach_share: share of a batch's tokens that `dense` teaches to open; a taught gate begins with this chance
            in place of `openness`, so that it need not unlearn that first.
        keys: what skipped tokens do as keys and values: `all` keeps them visible, `kept` hides them (the
            paper's literal formula).
        early_stop: a token once skipped in a row stays skipped there until a patch embedding refreshes it.
        skipped: what a row does with a token that its gate skips. `identity`: nothing, as in the paper. `linear`:
            it adds a linear layer of its own to what a LayerNorm of its own makes of the token; `mlp`: two, from C
            channels to C / 2 and back, with a GELU between them. Both start as nothing; see `grid/skipped.py`.
            Tokens about which the gate was not asked get nothing: those that are not there or have stopped
            (`early_stop`), and all where gates are held.
        temperature, final_temperature: of the Gumbel-Softmax or sigmoid at the start and end of training.
        noise, final_noise: factor of the Gumbel noise at the start and end of training. At 0 the decisions of
            training are those of inference, so the cost that is trained is the cost that is paid.
        openness: probability that an untrained gate opens ("masks start as all ones").
        threshold: a decision at inference opens when its probability (tanh: its value) is above this; without
            it .5, and 0 for tanh. Calibration after training writes the one that meets the budget here.
        ema_decay: of the EMA copy of the gate weights.
    """

    kind: Literal["gumbel", "sigmoid", "tanh"] = "gumbel"
    rows: Granularity = "token"
    columns: Granularity = "image"
    window: Annotated[int, Field(ge=1, le=256)] = 2
    relaxation: Literal["straight_through", "soft"] = "straight_through"
    selection: Literal["learned", "random", "attention", "entropy"] = "learned"
    keep: Open01 = 0.5
    capacity: bool = False
    source: Literal["own", "map"] = "own"
    context: Side | None = None
    smooth: Side | None = None
    scout: Annotated[int, Field(ge=0, le=16)] = 0
    scout_width: Annotated[int, Field(ge=1, le=512)] = 16
    scout_square: Literal[1, 2, 4, 8] = 2
    opening: Literal["threshold", "share"] = "threshold"
    teach: Literal["none", "dense", "objects"] = "none"
    teach_share: Open01 = 0.15
    keys: Literal["all", "kept"] = "all"
    early_stop: bool = False
    skipped: Literal["identity", "linear", "mlp"] = "identity"
    temperature: Temperature = 1.0
    final_temperature: Temperature = 1.0
    noise: Annotated[float, Field(ge=0, le=10)] = 1.0
    final_noise: Annotated[float, Field(ge=0, le=10)] = 0.0
    openness: Open01 = 0.9
    threshold: Annotated[float, Field(ge=0, lt=1)] | None = None
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.capacity and self.rows != "token":
            raise ValueError(f"capacity: it selects tokens, so rows must be 'token' (given: {self.rows!r})")
        if self.capacity and (self.kind == "tanh" or self.relaxation == "soft" or self.selection == "random"):
            raise ValueError(
                "capacity: it takes hard decisions by rank; leave out kind 'tanh', relaxation 'soft' and "
                "selection 'random'"
            )
        if self.selection in RANKING and self.rows != "token":
            raise ValueError(
                f"selection: {self.selection!r} ranks tokens; rows must be 'token' (given: {self.rows!r})"
            )
        if self.skipped != "identity" and self.relaxation == "soft":
            raise ValueError(
                f"skipped: {self.skipped!r} is for tokens that are skipped, and with relaxation 'soft' none is "
                f"while training; take 'straight_through', or skipped 'identity'"
            )
        self._check_rows()
        return self

    def _check_rows(self) -> None:
        """Raise ValueError for what only rows that decide token by token, by weights and a margin, can do."""
        wants = {
            "source: 'map'": self.source == "map",
            f"context: {self.context}": self.context_side > 1,
            f"smooth: {self.smooth}": self.smooth_side > 1,
            "opening: 'share'": self.opening == "share",
            f"teach: {self.teach!r}": self.is_taught,
        }
        places = ("token", "window") if self.source == "map" else ("token",)
        for wish, wanted in wants.items():
            if wanted and (self.rows not in places or self.selection != "learned" or self.kind == "tanh"):
                raise ValueError(
                    f"{wish} is for rows that decide about tokens by what they have learned; it needs rows "
                    f"'token' (or 'window' with source 'map'), selection 'learned' and kind 'gumbel' or 'sigmoid'"
                )
        if self.scout and self.source != "map":
            raise ValueError(
                f"scout: {self.scout} blocks look for all rows at once; they need source 'map' (given: "
                f"{self.source!r})"
            )
        if self.scout and (self.context or 1) > 1:
            raise ValueError(f"context: {self.context} has no reader, as the scout looks around; leave it out")
        if self.opening == "share" and (self.capacity or self.early_stop):
            raise ValueError("opening: 'share' fixes how much opens; leave out capacity and early_stop")

    @property
    def is_taught(self) -> bool:
        """Whether rows learn from labels, and from nothing else."""
        return self.teach != "none"

    @property
    def read_rows(self) -> Granularity:
        """What the gate of a row reads one by one: a map is made of tokens, also where windows decide by it."""
        return "token" if self.source == "map" else self.rows

    @property
    def context_side(self) -> int:
        """The side of the context in force, in tokens."""
        if self.context is not None or self.scout:
            return self.context or 1
        return MAP_CONTEXT if self.source == "map" else 1

    @property
    def smooth_side(self) -> int:
        """The side of the smoothing in force, in tokens."""
        return self.smooth if self.smooth is not None else (MAP_SMOOTH if self.source == "map" else 1)

    @property
    def scales_edge(self) -> bool:
        """Whether a decision is a number that the edge's result is multiplied by, not just open or shut."""
        return self.kind == "tanh"

    @property
    def can_start_shut(self) -> bool:
        """Whether a gate can begin nearly shut and still learn to open."""
        return self.kind != "tanh"

    @property
    def has_threshold(self) -> bool:
        """Whether each decision compares a probability with a threshold that can be moved while training."""
        return self.kind != "tanh" and not self.capacity and self.selection == "learned"

    @property
    def logits(self) -> int:
        """Outputs of a gate's linear layer."""
        return 2 if self.kind == "gumbel" else 1

    @property
    def open_above(self) -> float:
        """The threshold in force at inference."""
        return self.threshold if self.threshold is not None else (0.0 if self.kind == "tanh" else 0.5)

    def gate_params(self, granularity: Granularity, width: int, *, rows: bool = True) -> int:
        """Learned numbers of one gate on maps of `width` channels; `rows` False for a column gate."""
        if rows and self.selection != "learned":
            return 0
        if granularity == "layer":
            return self.logits
        scout = self.scout_shape(width, rows=rows)
        return self.logits * (self.gate_inputs(width, rows=rows) + 1) + (scout.params if scout else 0)

    def scout_shape(self, width: int, *, rows: bool = True) -> ScoutShape | None:
        """The scout that looks at maps of `width` channels for the row that makes the map; None without one."""
        return ScoutShape(width, self.scout_width, self.scout, self.scout_square) if rows and self.scout else None

    def gate_inputs(self, width: int, *, rows: bool = True) -> int:
        """What a gate's linear layer reads of a place: the token's channels and its context's two of each, or
        the features of a scout.
        """
        if rows and self.scout:
            return self.scout_width
        return 3 * width if rows and self.context_side > 1 else width

    def gate_macs(self, granularity: Granularity, width: int, places: int, *, rows: bool = True) -> int:
        """MACs of one gate: `places` decisions (1 an image; the tokens; the windows), a linear layer each.

        With a scout `places` are the squares that it sees, and its own MACs are in it.
        """
        if granularity == "layer" or (rows and self.selection != "learned"):
            return 0
        scout = self.scout_shape(width, rows=rows)
        return (self.logits * self.gate_inputs(width, rows=rows) + (scout.square_macs if scout else 0)) * places


def gate_places(granularity: Granularity, map_size: tuple[int, int], window: int) -> int:
    """Number of decisions of one gate for one image, on a map of (H, W) places."""
    if granularity == "layer":
        return 0
    if granularity == "image":
        return 1
    side = window if granularity == "window" else 1
    return -(-map_size[0] // side) * -(-map_size[1] // side)
