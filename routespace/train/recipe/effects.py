"""Which fields of a recipe have no effect beside the others: what was asked for on purpose is refused then.

A recipe may hold such fields, since a search, or a phase, may turn to what they are about. Who sets one by hand,
or lets a search vary it, expects that something comes of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from routespace.errors import SpecError
from routespace.grid.gate_spec import RANKING

if TYPE_CHECKING:
    from routespace.train.recipe.recipe import Recipe

GIVEN: Literal["given"] = "given"  # in place of values: anything but nothing, 0 and none
Values = tuple[Any, ...] | Literal["given"]
MOST_SHOWN = 60  # characters of a value


class Rule(NamedTuple):
    """What some fields need to have an effect.

    Attributes:
        fields: dotted; a section for all that is in it.
        needs: dotted field → values, one of which is enough, as is one of the fields.
    """

    fields: tuple[str, ...]
    needs: Mapping[str, Values]

    def is_about(self, field: str) -> bool:
        """Whether a dotted field is one of these, or in one of these sections."""
        return any(f"{field}.".startswith(f"{name}.") for name in self.fields)

    def holds(self, recipe: Recipe) -> bool:
        """Whether the recipe has what is needed."""
        return any(_allows(values, value_at(recipe, name)) for name, values in self.needs.items())

    def words(self, recipe: Recipe) -> str:
        """What the recipe has, and what it would need."""
        here = " and ".join(f"{name} is {_shown(value_at(recipe, name))}" for name in self.needs)
        needed = " or ".join(_setting(name, values) for name, values in self.needs.items())
        return f"has no effect where {here}; set {needed} too, or leave it out"


GATED = {"routing": ("both", "depth", "scale")}
PLAIN = {"train.mode": ("plain",)}  # in the other one gates are left alone, and the budget is that of extraction
TARGET: Mapping[str, Values] = {"budget.ratio": GIVEN, "budget.macs": GIVEN}
RULES = (
    Rule(("gates", "train.gate_lr", "train.start"), GATED),
    Rule(tuple(f"budget.{name}" for name in ("ratio", "macs", "weight", "multiplier_lr", "control")), GATED),
    Rule(tuple(f"budget.{name}" for name in ("open_frac", "warmup_frac", "schedule", "settle_frac")), GATED),
    Rule(("budget.correct", "budget.calibrate"), GATED),
    Rule(
        tuple(f"gates.{name}" for name in ("rows", "selection", "source", "context", "smooth", "scout"))
        + tuple(f"gates.{name}" for name in ("opening", "teach", "skipped")),
        {"routing": ("both", "depth")},
    ),
    Rule(("gates.columns",), {"routing": ("both", "scale")}),
    Rule(("gates.window",), {"gates.rows": ("window",), "gates.columns": ("window",)}),
    Rule(
        ("gates.keep",),
        {"gates.selection": ("random", *RANKING), "gates.capacity": (True,), "gates.opening": ("share",)},
    ),
    Rule(("gates.scout_width", "gates.scout_square"), {"gates.scout": GIVEN}),
    Rule(("gates.teach_share",), {"gates.teach": ("dense", "objects")}),
    Rule(("gates.temperature", "gates.final_temperature"), {"gates.kind": ("gumbel", "sigmoid")}),
    Rule(("gates.noise", "gates.final_noise"), {"gates.kind": ("gumbel",)}),
    Rule(tuple(f"budget.{name}" for name in ("weight", "multiplier_lr", "control", "warmup_frac")), PLAIN),
    Rule(tuple(f"budget.{name}" for name in ("schedule", "settle_frac", "correct", "calibrate")), PLAIN),
    Rule(tuple(f"budget.{name}" for name in ("weight", "multiplier_lr", "control", "warmup_frac")), TARGET),
    Rule(tuple(f"budget.{name}" for name in ("schedule", "correct", "calibrate")), TARGET),
    Rule(("budget.ratio",), {"budget.macs": (None,)}),
    Rule(
        tuple(f"budget.{name}" for name in ("weight", "multiplier_lr", "warmup_frac", "schedule")),
        {"gates.opening": ("threshold",)},
    ),
    Rule(("budget.settle_frac",), {"budget.schedule": ("linear",), "gates.opening": ("share",)}),
    Rule(
        ("train.teacher_weight", "train.teacher_temperature"),
        {"train.teacher": GIVEN, "train.mode": ("sandwich",)},
    ),
    Rule(("train.teacher_images",), {"train.teacher": GIVEN}),
    Rule(("train.sandwich_parts", "train.sandwich_window"), {"train.mode": ("sandwich",)}),
    Rule(("train.decay_fracs",), {"train.schedule": ("multistep",)}),
    Rule(("train.min_lr",), {"train.schedule": ("cosine", "poly"), "train.warmup_epochs": GIVEN}),
    Rule(("train.cuda_graphs",), {"train.device": ("auto", "cuda")}),
    Rule(("train.cuda_graphs",), {"train.compile": (False,)}),
    Rule(("train.cuda_graphs",), {"train.grad_checkpointing": (False,)}),
    Rule(("train.clock",), {"train.seconds": GIVEN, "train.phases": GIVEN}),
)


def require_effect(recipe: Recipe, asked: Collection[str], *, open_to: Collection[str] = ()) -> None:
    """Raise SpecError for the first field that was asked for and has no effect.

    None, 0, False, and the word with which a choice comes, ask for nothing.

    Args:
        recipe: with what was asked for.
        asked: dotted fields that were set, or are varied, on purpose.
        open_to: dotted fields of which the recipe does not tell the last word, such as those that a search varies:
            what needs one of them may have an effect.
    """
    for field in asked:
        if field not in open_to and _asks_nothing(recipe, field):
            continue
        rule = next(_broken(recipe, field, open_to), None)
        if rule is not None:
            raise SpecError(f"{field}: {rule.words(recipe)}")


def value_at(recipe: Recipe, field: str) -> Any:
    """What a recipe has at a dotted field; None where it has no such field."""
    value: Any = recipe
    for name in field.split("."):
        value = getattr(value, name, None)
    return value


def _broken(recipe: Recipe, field: str, open_to: Collection[str]) -> Iterator[Rule]:
    for rule in RULES:
        varied = any(f"{need}.".startswith(f"{name}.") for need in rule.needs for name in open_to)
        if rule.is_about(field) and not varied and not rule.holds(recipe):
            yield rule


def _asks_nothing(recipe: Recipe, field: str) -> bool:
    value = value_at(recipe, field)
    section, _, name = field.rpartition(".")
    known = getattr(type(value_at(recipe, section)), "model_fields", {}).get(name)
    return not value or (known is not None and isinstance(value, str) and value == known.default)


def _allows(values: Values, value: Any) -> bool:
    return bool(value) if values == GIVEN else value in values


def _setting(name: str, values: Values) -> str:
    return name if values == GIVEN else f"{name}={'|'.join(_shown(value) for value in values)}"


def _shown(value: Any) -> str:
    """As `--set` reads it."""
    if value in (None, ()):
        return "null"
    return str(value).lower() if isinstance(value, bool) else f"{value!s:.{MOST_SHOWN}}"
