"""The parts of a recipe beside grid, gates and data: BudgetSpec, PhaseSpec, TrainSpec.

All are frozen pydantic models that refuse unknown fields. Shares end in `_frac` or are called ratios, sizes of
images are pixels, rates of learning are per optimiser step.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from routespace.values import Value

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_COUNT = re.compile(r"([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([KMGT]?)", re.IGNORECASE)


def parse_count(value: Any) -> Any:
    """`12M`, `1.2G`, `800K` or a plain number → int; anything else is returned for pydantic to refuse.

    Raises:
        ValueError: a string that is no count.
    """
    if isinstance(value, str):
        match = _COUNT.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"{value!r:.40} is no count; write a number, or one with K, M or G, such as 12M")
        number = float(match[1]) * _UNITS[match[2].upper()]
        return round(number) if math.isfinite(number) else value
    return round(value) if isinstance(value, float) and math.isfinite(value) else value


Count = Annotated[int, BeforeValidator(parse_count), Field(ge=1)]
AtLeast0 = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
MOST_COUNT = 10**9  # images, epochs, pixels: none has more, and whatever computes with it stays a number
Whole = Annotated[int, Field(ge=0, le=MOST_COUNT)]
Natural = Annotated[int, Field(ge=1, le=MOST_COUNT)]
Seconds = Annotated[float, Field(gt=0, le=MOST_COUNT, allow_inf_nan=False)]
AUTO = "auto"
UNTRAINED_BATCH = 64  # images at a time of a recipe whose batch size no training has chosen yet


TIMM = "timm:"  # before the name of one of timm's networks
SELF = "self"  # the teacher that a network is of itself
# What recipes had not from the first version on: where it is as it comes, hashes are those of before.
LATER = {
    "train": (
        "phases",
        "teacher",
        "teacher_weight",
        "teacher_temperature",
        "teacher_images",
        "mode",
        "sandwich_parts",
        "sandwich_window",
        "layer_decay",
        "freeze_stem",
        "schedule",
        "decay_fracs",
        "seconds",
        "clock",
        "cuda_graphs",
    ),
    "phases": ("seconds",),  # of each
    "gates": ("scout", "scout_width", "scout_square", "skipped"),
    "search": ("pruner",),
}


class Section(Value):
    """A section of a recipe: frozen, no unknown fields."""

    model_config = ConfigDict(validate_default=True)


class BudgetSpec(Section):
    """How many MACs the routed network may take: L = L_task + weight·(E[MACs]/base − ratio)².

    With `gates.opening: share` there is no loss: each row opens a share of the tokens, by its rate, such that the
    target is met (see `routespace/train/shares.py`); everything until `open_frac`, falling to the final shares at
    `settle_frac`. Of the other fields `ratio`, `of`, `macs` and `calibrate` hold.

    Args:
        ratio: target as a share of the base; None for no target.
        of: the base: the grid's `staircase`, its `full` architecture, or `base`, the family's own network of
            the grid's `size` (the paper's C_base).
        macs: absolute target, such as 12M; it wins over `ratio`.
        weight: λ of the squared distance; from a distance of one base on the loss grows linearly, so that a deep
            grid with open gates does not drown the task.
        multiplier_lr: above 0 adds ν·(E[MACs]/base − ratio), where ν grows by this times the distance at every
            step (method of multipliers): the squared distance alone settles where its slope balances the
            task's, above the target.
        control: above 0 moves the gates' threshold at every step by this times the distance, in logits: training
            then meets the target, and the loss only says where saving is cheapest. Needs a threshold:
            no `tanh` gates, no capacity, a learned selection.
        open_frac: share of the training during which every gate is held open (with `train.start: staircase`:
            held on the staircase), so that blocks learn before they are skipped ("masks start as all ones").
        warmup_frac: share of the training after which the loss is switched on (the paper's ancestor: .4).
        schedule: `constant`, or `linear`: from the switch-on the target falls from what is paid then to `ratio`,
            until `settle_frac` of the training.
        settle_frac: share of the training at which a linear schedule arrives.
        correct: once the schedule has settled, aim lower by what validation images cost more than the training
            images of the epoch before (or higher, by what they cost less).
        calibrate: after training, move the gates' threshold until the MACs counted on validation images meet
            the target.
    """

    ratio: Annotated[float, Field(gt=0, le=16)] | None = 0.5
    of: Literal["staircase", "full", "base"] = "staircase"
    macs: Count | None = None
    weight: AtLeast0 = 10.0
    multiplier_lr: AtLeast0 = 0.0
    control: AtLeast0 = 0.0
    open_frac: Annotated[float, Field(ge=0, lt=1)] = 0.0
    warmup_frac: Annotated[float, Field(ge=0, lt=1)] = 0.0
    schedule: Literal["constant", "linear"] = "constant"
    settle_frac: Share = 0.5
    correct: bool = True
    calibrate: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.schedule == "linear" and self.settle_frac <= self.warmup_frac:
            raise ValueError(
                f"settle_frac: {self.settle_frac} is not after warmup_frac {self.warmup_frac}; give a later share"
            )
        return self

    @property
    def wanted(self) -> bool:
        """Whether there is a target at all."""
        return self.macs is not None or self.ratio is not None


class PhaseSpec(Section):
    """A phase that comes before the recipe's own training; what is not given is as in the recipe.

    Args:
        epochs: passes over the training images.
        seconds: of steps in place of a number of epochs, as in the training; `epochs` may then be left out.
        image_size: height and width in pixels, or one number for a square.
        data: fields of the data section, such as digit_px or object_px; not the kind, and not where it lies.
        gates: `held`, everything is computed and the network is a plain one, without a budget; `taught`, the same
            while the dense pass teaches the gates (`gates.teach`); `free`, gates decide. Phases come in that
            order, and the recipe's own training is a free one. Temperature, noise and the budget's shares of the
            training (such as `open_frac`) count from the end of the held phases on.
        lr_factor: of `lr` and `gate_lr`. Each phase has a warm-up and a cosine of its own.
        min_lr: where that cosine ends.
        warmup_epochs: linear warm-up, part of `epochs`.
        execution: as in the training.
    """

    epochs: Natural | None = None
    seconds: Seconds | None = None
    image_size: Natural | tuple[Natural, Natural] | None = None
    data: dict[str, Any] = {}
    gates: Literal["held", "taught", "free"] = "held"
    lr_factor: Above0 = 1.0
    min_lr: AtLeast0 | None = None
    warmup_epochs: AtLeast0 | None = None
    execution: Literal["dense", "packed", "auto"] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.epochs is None and self.seconds is None:
            raise ValueError("epochs: a phase needs a length; give epochs, or seconds")
        return self

    @property
    def length(self) -> float:
        """In seconds where it goes by the clock, else in epochs."""
        return self.seconds if self.seconds is not None else float(self.epochs or 0)


class TrainSpec(Section):
    """How the weights are taught.

    Args:
        epochs: passes over the training images; 0 trains nothing (calibration and evaluation still run). Those of
            `phases` come before them.
        seconds: of steps, in place of a number of epochs: the images are gone through until the time is spent, and
            the step in which it ends is the last. Rates of learning, budget, temperature and noise follow the
            share of the time; warm-up takes `warmup_epochs` / `epochs` of it. What counts is all between the first
            batch and the last step: images, teacher, passes, optimiser. What does not is validation, checkpoints
            and calibration. Those of `phases` come before them. Setting `epochs` later takes the seconds away.
        clock: of the seconds: `wall`, or `processor`, what this process takes of all cores together, which is the
            same where others share the machine (not on an accelerator, nor with loader processes).
        phases: what comes first, such as a small canvas with large objects. Weights go on from phase to phase.
            MACs are told as those of images of the recipe's own size.
        batch_size: images of one optimiser step, all processes together; `auto` takes the largest power of two
            that fits the machine, and keeps it in the run's recipe. Rates of learning stay as they are.
        lr, gate_lr: peak learning rates of AdamW; gates have their own group, without weight decay.
        min_lr: where cosine and poly end, and warm-up begins.
        schedule: of the rates after the warm-up: `cosine`; `poly`, the power 0.9 of what is left, as is usual in
            semantic segmentation; `multistep`, a tenth from each of `decay_fracs` on, as in detection.
        decay_fracs: shares of the training, 8 and 11 of 12 epochs by default (1x; 3x has 27 and 33 of 36).
        weight_decay: of matrices; norms and biases have none.
        layer_decay: each layer learns at this share of the rate of the next one towards the head; 1: all alike.
        freeze_stem: leave the stem's weights as they start.
        warmup_epochs: linear warm-up, part of `epochs`.
        clip_grad: largest gradient norm of each group (matrices, norms and biases, gates); None: no clipping.
        start: `open`, all gates open with the chance `gates.openness`, or `staircase`: those of the staircase with
            that chance, the others with the rest of it. Training then starts from the plain network.
        teacher: gives soft labels beside the data's: `timm:NAME`, the folder of a run or bundle, or `self`, the
            same network with everything computed, which then learns from the data in a pass of its own while the
            routed pass also learns from it. Its time is part of the training's.
        teacher_weight: the share of the soft labels in what teaches; the data's labels have the rest.
        teacher_temperature: T of the soft labels: the loss is T²·KL(softmax(teacher/T) ‖ softmax(network/T)).
        teacher_images: what a teacher of another image size sees: `resized`, the network's own training images
            brought to that size, or `own`, the same scenes or pictures made a second time at that size, so that it
            sees what is lost on smaller ones. That takes the time of making them twice.
        mode: `plain`, or `sandwich`: the gates are left alone, and each step trains everything computed, the
            smallest part and some parts between, which also learn from the largest's answers. The budget then
            plays no role before a part is extracted.
        sandwich_parts: parts of each step beside the largest and the smallest.
        sandwich_window: in which they lie, as shares of the MACs of everything computed.
        weights: of a pretrained network, to start from: `timm:NAME` (such as timm:pvt_v2_b2), a file
            (.safetensors, .pth), or the folder of a run or bundle. What it does not have begins anew: the gates,
            and a head for another number of classes. Where it is set and `start` is not, `start` is `staircase`.
        drop_path: stochastic depth at the last layer.
        label_smoothing, mixup, cutmix: as timm has them; mixup and cutmix are the alphas, 0 for off.
        ema_decay: of a moving average of all weights that is validated and saved in their place; None: off.
        precision: `no` (fp32) or `bf16` (autocast).
        execution: `dense`, `packed` or `auto`; see RouteNet. `auto` is `dense` where `cuda_graphs` are.
        compile: run pvt_v2's blocks compiled (torch.compile), on a CPU the packed ones: a minute at the start,
            faster steps afterwards.
        cuda_graphs: on a GPU, record the passes of a step as CUDA graphs where they call the same kernels each
            time: those of plain networks, and of gates with `execution: dense` once temperature, noise, shares and
            budget have settled. Small networks then train several times as fast; results are the same. A step
            keeps its memory. Not with several processes, `compile`, `grad_checkpointing`, nor for detectors.
        grad_checkpointing: keep only each edge's input for the backward pass, which computes the edge again: less
            memory, more time; see `RouteNet.set_grad_checkpointing`.
        device: `auto` takes an accelerator where there is one.
        checkpoint_epochs: epochs between checkpoints.
    """

    epochs: Whole = 20
    seconds: Seconds | None = None
    clock: Literal["wall", "processor"] = "wall"
    phases: tuple[PhaseSpec, ...] = ()
    batch_size: Natural | Literal["auto"] = 64
    lr: Above0 = 1e-3
    gate_lr: Above0 | None = None
    min_lr: AtLeast0 = 1e-5
    schedule: Literal["cosine", "poly", "multistep"] = "cosine"
    decay_fracs: tuple[Share, ...] = (8 / 12, 11 / 12)
    weight_decay: AtLeast0 = 0.05
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    freeze_stem: bool = False
    warmup_epochs: AtLeast0 = 1.0
    clip_grad: Above0 | None = 1.0
    start: Literal["open", "staircase"] = "open"
    weights: Annotated[str, Field(min_length=1)] | None = None
    teacher: Annotated[str, Field(min_length=1)] | None = None
    teacher_weight: Share = 0.5
    teacher_temperature: Annotated[float, Field(gt=0, le=100)] = 2.0
    teacher_images: Literal["resized", "own"] = "resized"
    mode: Literal["plain", "sandwich"] = "plain"
    sandwich_parts: Annotated[int, Field(ge=1, le=1000)] = 2
    sandwich_window: tuple[Share, Share] = (0.0, 1.0)
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mixup: AtLeast0 = 0.0
    cutmix: AtLeast0 = 0.0
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    precision: Literal["no", "bf16"] = "no"
    execution: Literal["dense", "packed", "auto"] = "dense"
    compile: bool = False
    cuda_graphs: bool = True
    grad_checkpointing: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_epochs: Natural = 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_epochs > self.epochs > 0:
            raise ValueError(
                f"warmup_epochs: {self.warmup_epochs:g} is more than the {self.epochs} epochs of which it is a "
                f"part; give fewer"
            )
        if self.seconds is not None and not self.epochs:
            raise ValueError(
                f"seconds: {self.seconds:g} were given, and epochs 0, which trains nothing; leave one of them out"
            )
        if self.clock == "processor" and self.device == "cuda":
            raise ValueError("clock: 'processor' does not see what an accelerator takes; give wall")
        low, high = self.sandwich_window
        if low >= high:
            raise ValueError(f"sandwich_window: {low} to {high} is empty; give the lower share first")
        if list(self.decay_fracs) != sorted(set(self.decay_fracs)):
            raise ValueError(f"decay_fracs: {list(self.decay_fracs)} must be distinct and in increasing order")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr: {self.min_lr} is above lr {self.lr}; give at most that")
        if self.gate_lr is not None and self.min_lr > self.gate_lr:  # else gates would learn ever faster
            raise ValueError(f"min_lr: {self.min_lr} is above gate_lr {self.gate_lr}; give at most that")
        if (self.mixup or self.cutmix) and self.batch % 2:
            raise ValueError(
                f"batch_size: {self.batch_size} is odd; mixup and cutmix pair images, give an even one"
            )
        return self

    @property
    def length(self) -> float:
        """Of the recipe's own stretch: in seconds where it goes by the clock, else in epochs."""
        return self.seconds if self.seconds is not None else float(self.epochs)

    @property
    def batch(self) -> int:
        """`batch_size` as a number; while it is `auto`, which a training settles, that of an evaluation."""
        return UNTRAINED_BATCH if self.batch_size == AUTO else int(self.batch_size)
