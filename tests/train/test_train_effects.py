"""What was asked for and has no effect is refused: the rules name real fields, and they are right."""

import pytest
import torch
from train_tiny import tiny

from routespace import SpecError, load_recipe, run_study, train_recipe
from routespace.train.recipe.effects import RULES, require_effect, value_at
from routespace.train.recipe.recipe import Recipe
from routespace.values import fields_at

SHORT = {"train.epochs": 1, "train.warmup_epochs": 0, "data.train_size": 32, "data.val_size": 16}
# Another recipe in which a field has no effect, and another value of it.
WITHOUT_EFFECT = {
    "gates.rows": ({"routing": "static"}, "image"),
    "gates.openness": ({"routing": "static"}, 0.6),
    "gates.threshold": ({"routing": "none"}, 0.7),
    "train.gate_lr": ({"routing": "static"}, 0.5),
    "train.start": ({"routing": "static"}, "staircase"),
    "budget.ratio": ({"routing": "static"}, 0.6),
    "budget.weight": ({"routing": "none"}, 3.0),
    "budget.open_frac": ({"routing": "static"}, 0.5),
    "gates.source": ({"routing": "scale", "budget.ratio": 1.3}, "map"),
    "gates.context": ({"routing": "scale", "budget.ratio": 1.3}, 3),
    "gates.smooth": ({"routing": "scale", "budget.ratio": 1.3}, 3),
    "gates.selection": ({"routing": "scale", "budget.ratio": 1.3}, "attention"),
    "gates.teach": ({"routing": "scale", "budget.ratio": 1.3}, "dense"),
    "gates.opening": ({"routing": "scale", "budget.ratio": 1.3}, "share"),
    "gates.skipped": ({"routing": "scale", "budget.ratio": 1.3}, "linear"),
    "gates.columns": ({"routing": "depth"}, "token"),
    "gates.window": ({}, 4),
    "gates.keep": ({}, 0.3),
    "gates.scout_width": ({}, 8),
    "gates.scout_square": ({}, 4),
    "gates.teach_share": ({}, 0.4),
    "gates.temperature": ({"gates.kind": "tanh"}, 3.0),
    "gates.final_temperature": ({"gates.kind": "tanh"}, 3.0),
    "gates.noise": ({"gates.kind": "sigmoid"}, 3.0),
    "gates.final_noise": ({"gates.kind": "sigmoid"}, 3.0),
    "budget.multiplier_lr": ({"budget.ratio": None}, 0.5),
    "budget.control": ({"budget.ratio": None}, 0.5),
    "budget.warmup_frac": ({"budget.ratio": None}, 0.3),
    "budget.schedule": ({"budget.ratio": None}, "linear"),
    "budget.correct": ({"budget.ratio": None, "budget.correct": False}, True),
    "budget.calibrate": ({"budget.ratio": None, "budget.calibrate": False}, True),
    "budget.settle_frac": ({}, 0.9),
    "train.teacher_weight": ({}, 0.9),
    "train.teacher_temperature": ({}, 9.0),
    "train.sandwich_parts": ({}, 5),
    "train.sandwich_window": ({}, [0.5, 0.9]),
    "train.decay_fracs": ({}, [0.5]),
    "train.min_lr": ({"train.schedule": "multistep", "train.warmup_epochs": 0}, 1e-4),
    "train.clock": ({}, "processor"),
    "train.cuda_graphs": ({"train.cuda_graphs": False}, True),
}
LOUD = {  # a sandwich, and gates that open a share
    "budget.weight": ({"train.mode": "sandwich"}, 3.0),
    "budget.control": ({"train.mode": "sandwich"}, 0.5),
    "budget.calibrate": ({"train.mode": "sandwich", "budget.calibrate": False}, True),
    "budget.warmup_frac": ({"routing": "depth", "gates.opening": "share"}, 0.3),
    "budget.multiplier_lr": ({"routing": "depth", "gates.opening": "share"}, 0.5),
}


def both(field, change, value):
    """The recipe as it is, and with a field that has no effect there; None where that is refused anyway."""
    first = tiny().override({**SHORT, **change})
    return first, first.override({field: value})


def test_rules_name_fields_that_there_are():
    for rule in RULES:
        for name in (*rule.fields, *rule.needs):
            section, _, field = name.rpartition(".")
            assert field in (fields_at(Recipe, section.split(".") if section else ()) or ()), name
        for need, values in rule.needs.items():
            if values != "given" and all(isinstance(value, str) for value in values):
                with pytest.raises(SpecError) as refused:
                    tiny().override({need: "nosuch"})
                assert all(repr(value) in str(refused.value) for value in values)


@pytest.mark.parametrize("field", WITHOUT_EFFECT)
def test_a_field_without_effect_is_refused_in_one_line(field):
    change, value = WITHOUT_EFFECT[field]
    _, second = both(field, change, value)
    with pytest.raises(SpecError) as refused:
        require_effect(second, [field])
    said = str(refused.value)
    assert said.startswith(f"{field}: has no effect where ")
    assert "\n" not in said
    assert "; set " in said
    assert said.endswith(" too, or leave it out")
    require_effect(second, [])  # a recipe may have it


@pytest.mark.slow
@pytest.mark.parametrize(("field", "change", "value"), [
    *((field, *rest) for field, rest in WITHOUT_EFFECT.items() if field != "gates.teach"),
    *((field, *rest) for field, rest in LOUD.items()),
])  # fmt: skip
def test_what_is_refused_has_no_effect(field, change, value, tmp_path):
    """The rules are right: a training with another value gives the same weights and the same metric.

    Teaching without gated rows is refused by the training itself.
    """
    first, second = both(field, change, value)
    with pytest.raises(SpecError, match="has no effect"):
        require_effect(second, [field])
    one, other = (train_recipe(recipe, tmp_path / name) for recipe, name in ((first, "one"), (second, "other")))
    assert one.metrics["accuracy"] == other.metrics["accuracy"]
    assert one.metrics["counted_macs"] == other.metrics["counted_macs"]
    weights = other.net.state_dict()
    assert weights.keys() == one.net.state_dict().keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in one.net.state_dict().items())


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({"gates.rows": "window"}, "gates.window"),
        ({"gates.columns": "window"}, "gates.window"),
        ({"gates.selection": "random"}, "gates.keep"),
        ({"gates.capacity": True}, "gates.keep"),
        ({"gates.source": "map", "gates.scout": 2}, "gates.scout_width"),
        ({"train.mode": "sandwich"}, "train.sandwich_parts"),
        ({"train.mode": "sandwich"}, "train.teacher_temperature"),
        ({"train.teacher": "self"}, "train.teacher_weight"),
        ({"train.seconds": 5}, "train.clock"),
        ({"budget.schedule": "linear"}, "budget.settle_frac"),
        ({"routing": "static"}, "train.lr"),
        ({"routing": "static", "train.start": "open"}, "train.start"),  # the usual word asks for nothing
        ({"routing": "static", "gates.threshold": None}, "gates.threshold"),
    ],
)
def test_what_has_an_effect_or_asks_for_nothing_is_fine(change, asked):
    require_effect(tiny().override(change), [asked, *change])


def test_what_a_search_varies_is_not_known_beforehand():
    require_effect(tiny(), ["train.sandwich_parts"], open_to=["train.mode"])
    require_effect(tiny(), ["gates.keep"], open_to=["gates"])
    with pytest.raises(SpecError, match=r"train\.sandwich_parts: has no effect"):
        require_effect(tiny(), ["train.sandwich_parts"], open_to=["train.lr"])


def test_a_ratio_that_is_set_takes_the_place_of_macs():
    """As of epochs and seconds, what is set last holds; both at once are two values for one thing."""
    recipe = tiny(budget__macs=500_000)
    assert recipe.override({"budget.ratio": 0.7}).budget_macs() == tiny(budget__ratio=0.7).budget_macs()
    together = tiny().override({"budget.ratio": 0.7, "budget.macs": 500_000})
    assert together.budget_macs() == 500_000
    with pytest.raises(SpecError, match=r"budget\.ratio: has no effect where budget\.macs is 500000"):
        require_effect(together, ["budget.ratio", "budget.macs"])
    assert value_at(together, "budget.macs") == 500_000
    assert value_at(together, "budget.nosuch") is None


def test_a_search_varies_nothing_without_effect(tmp_path):
    recipe = load_recipe("digits_tiny").override({"search.space": {"train.sandwich_parts": [1, 2]}})
    with pytest.raises(SpecError, match=r"search\.space\.train\.sandwich_parts: has no effect where train\.mode"):
        run_study(recipe, tmp_path / "study", trials=1)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("train.weights", r"search\.space: train\.weights: nosuch\.pth: does not exist"),
        ("train.teacher", r"search\.space: train\.teacher: nosuch\.pth: does not exist"),
    ],
)
def test_files_that_only_a_space_names_are_looked_for_first(field, words, tmp_path):
    recipe = load_recipe("digits_tiny").override({"search.space": {field: [None, "nosuch.pth"]}})
    with pytest.raises(SpecError, match=words):
        run_study(recipe, tmp_path / "study", trials=1)
    assert not (tmp_path / "study").exists()
