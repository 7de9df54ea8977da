"""The routed network as a bundle: the network itself, at the budget that is wished, in all that a bundle does."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dense_tiny import dense
from PIL import Image
from train_tiny import tiny

from routespace import (
    BudgetError,
    Card,
    FineTuning,
    Predictor,
    SpecError,
    evaluate,
    extract_bundle,
    extract_routed,
    load_bundle,
    load_exported,
    save_bundle,
    verify,
)
from routespace.deploy.tolerance import difference
from routespace.deploy.verify import outputs
from routespace.grid.architecture import Architecture
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import TaskNet
from routespace.preprocess import preprocess_to_json
from routespace.train.calibrate import set_threshold
from routespace.train.data.source import make_source
from routespace.train.macs import closed_macs, counted_macs, open_macs
from routespace.train.run import train_recipe
from routespace.train.teacher import make_teacher
from routespace.workflow import routed
from routespace.workflow.artifacts import load_artifact
from routespace.workflow.exporting import export_artifact
from routespace.workflow.fine_tuning import fine_tuned_recipe, require_tuning
from routespace.workflow.wishes import ExtractionWatch, Listener

TASKS = {
    "classify": None,
    "detect": {"kind": "detect", "classes": 10, "width": 16, "convs": 1},
    "instance": {"kind": "instance", "classes": 10, "width": 16, "convs": 1, "proposals": 8, "max_detections": 4},
    "semantic": {"kind": "semantic", "classes": 11, "channels": 64},
}
QUICK = {"routing": "depth", "train__epochs": 1, "train__warmup_epochs": 0, "train__execution": "packed"}
GATE_SCALE = 30  # of fresh weights: gates that tell tokens apart, as trained ones do


def recipe_of(kind, **changes):
    task, changes = TASKS[kind], QUICK | changes
    return tiny(**changes) if task is None else dense(task, **changes, data__val_size=12)


def routed_net(recipe):
    """A network whose gates tell tokens apart, as if it were trained."""
    torch.manual_seed(0)
    head = recipe.task.make(recipe.grid).head(recipe.grid)
    net = TaskNet(RouteNet(recipe.architecture(), recipe.gates, execution="auto"), head).eval()
    for gate in net.gates.values():
        for weight in (gate.weight, gate.ema_weight):
            weight.data.mul_(GATE_SCALE)
    return net


def saved_net(recipe, net, folder):
    """The folder of a network with the papers that a run or bundle has."""
    source = make_source(recipe)
    texts = {
        "recipe.yaml": recipe.to_yaml(),
        "preprocess.json": json.dumps(preprocess_to_json(source.preprocess, source.classes)),
    }
    save_bundle(net, folder, Card.of(net), texts=texts)
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    """Task → the folder of a network with gates."""
    place = tmp_path_factory.mktemp("routed")
    return {kind: saved_net(recipe_of(kind), routed_net(recipe_of(kind)), place / kind) for kind in TASKS}


@pytest.fixture
def source(places):
    """The folder of a classifier with gates."""
    return places["classify"]


def middle(net):
    """MACs that gates can keep to, far from those that they take."""
    return 0.5 * (closed_macs(net.architecture, net.gate_spec) + open_macs(net.architecture, net.gate_spec))


@pytest.mark.parametrize("kind", TASKS)
def test_the_network_is_taken_as_it_routes(kind, places, tmp_path, monkeypatch, capsys):
    whole = load_artifact(places[kind])
    taken = extract_routed(places[kind], tmp_path / "routed")
    net, card = load_bundle(tmp_path / "routed")
    assert card == taken.card
    assert (net.architecture, net.gate_spec) == (whole.net.architecture, whole.net.gate_spec)
    images = torch.randn(2, 3, 32, 32)
    assert difference(outputs(whole.net, images), outputs(net, images)) == 0.0
    report = verify(whole.net, net.architecture, net)
    assert report.ok
    assert report.max_difference == 0.0
    assert 0 <= report.packed_difference < 1e-4
    found = evaluate(net, whole.held_out().val)
    assert (taken.score, card.counted_macs) == (found[taken.metric], found["counted_macs"])
    assert not card.static
    assert 0 < card.counted_macs < counted_macs(net, {})
    told = (
        f"{card.counted_macs / 1e6:.4g} of {counted_macs(net, {}) / 1e6:.4g} MMACs on average of {taken.images} "
    )
    assert card.remarks[0].startswith("routed: its gates decide what is computed, for each token")
    assert told in card.remarks[0]
    assert counted_macs(net, load_artifact(tmp_path / "routed").usage) == pytest.approx(card.counted_macs)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "photos" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert len(card.use) == 4
    exec("\n".join(card.use), {})
    assert capsys.readouterr().out.startswith("photos/a.png ")


@pytest.mark.parametrize("kind", TASKS)
def test_another_budget_moves_the_threshold_alone(kind, places, tmp_path):
    whole = load_artifact(places[kind])
    wanted = middle(whole.net)
    taken = extract_routed(whole, tmp_path / "routed", macs=wanted)
    small = load_artifact(tmp_path / "routed")
    assert 0.97 * wanted <= small.card.counted_macs <= wanted
    assert small.card.counted_macs == evaluate(small.net, whole.held_out().val)["counted_macs"]
    assert taken.limits == {"macs": wanted}
    before, after = whole.net.state_dict(), small.net.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    gates = whole.net.gate_spec, small.net.gate_spec
    assert gates[0].open_above != gates[1].threshold
    assert gates[1] == gates[0].model_copy(update={"threshold": gates[1].threshold})
    report = verify(whole.net, small.net.architecture, small.net)
    assert report.ok
    assert report.thresholds == (gates[1].threshold, gates[0].open_above)
    assert small.require_recipe().budget_macs() == round(wanted)
    assert [score.stage for score in small.card.scores] == ["before_extraction", "extracted"]
    assert small.card.scores[1].value == taken.score


def test_verify_finds_a_bundle_that_is_another_network(source, tmp_path):
    whole = load_artifact(source).net
    other = extract_routed(source, tmp_path / "routed", evaluated=False).net
    with torch.no_grad():
        next(iter(other.gates.values())).ema_bias[0].add_(1.0)  # it opens more
    report = verify(whole, other.architecture, other)
    assert not report.ok
    assert report.packed_difference < 1e-4 < report.max_difference
    assert not replace(report, max_difference=0.0, packed_difference=1.0).ok
    assert any(line.startswith("packed ") for line in report.lines())


def test_it_is_evaluated_only_where_that_is_wished(source, tmp_path):
    whole = load_artifact(source).net
    taken = extract_routed(source, tmp_path / "routed", macs=middle(whole), evaluated=False)
    assert (taken.score, taken.usage, taken.card.counted_macs, taken.card.scores) == (None, None, None, ())
    assert taken.net.gate_spec.open_above != whole.gate_spec.open_above
    assert taken.card.remarks == ("routed: its gates decide what is computed, for each token",)
    assert not (tmp_path / "routed" / "usage.json").exists()


def test_at_another_image_size_it_has_the_same_share(source, tmp_path):
    whole = load_artifact(source)
    taken = extract_routed(source, tmp_path / "routed", image_size=24)
    small = load_artifact(tmp_path / "routed")
    assert small.net.spec.image_size == (24, 24)
    assert taken.limits == {"macs": whole.resized(24).recipe.budget_macs()}
    assert taken.card.counted_macs <= taken.limits["macs"]
    assert verify(whole.net, small.net.architecture, small.net).ok


def test_what_it_cannot_be_is_told_before_anything_is_written(source, tmp_path):
    whole, out = load_artifact(source), tmp_path / "no"
    with pytest.raises(BudgetError, match="is impossible; with every gate closed the network still takes"):
        extract_routed(source, out, macs=1000)
    with pytest.raises(BudgetError, match="leaves nothing to save; with every gate open the network takes"):
        extract_routed(source, out, macs=1e12)
    with pytest.raises(SpecError, match="cut: the routed network is taken whole"):
        extract_routed(source, out, tuning=FineTuning(1, most_cut=0.5))
    sandwich = replace(whole, recipe=whole.recipe.override({"train.mode": "sandwich"}))
    with pytest.raises(SpecError, match="routed: a sandwich training teaches no gates"):
        extract_routed(sandwich, out)
    net = whole.net.restrict(Architecture.staircase(whole.net.architecture.grid))
    with pytest.raises(SpecError, match=r"routed: .*classify has no gates"):
        extract_routed(replace(whole, net=net), out)
    capacity = recipe_of("classify", gates__capacity=True)
    fixed = saved_net(capacity, routed_net(capacity), tmp_path / "fixed")
    with pytest.raises(BudgetError, match=r"the gates cannot keep to .* or have no threshold"):
        extract_routed(fixed, out, macs=1.01 * closed_macs(whole.net.architecture, whole.net.gate_spec))
    assert not out.exists()


def test_it_is_trained_on_at_its_budget(source, tmp_path):
    wanted, lines = middle(load_artifact(source).net), []

    class Watch(ExtractionWatch):
        @contextlib.contextmanager
        def training(self):
            yield Listener(None, lines.append)

    taken = extract_routed(source, tmp_path / "routed", macs=wanted, tuning=FineTuning(1), watch=Watch())
    assert any(line.startswith(f"teacher: {source}, ") for line in lines)
    net, card = load_bundle(tmp_path / "routed")
    assert [score.stage for score in card.scores] == ["before_extraction", "extracted", "fine_tuned"]
    assert taken.tuned["target_macs"] == round(wanted)
    assert card.counted_macs == pytest.approx(taken.tuned["counted_macs"])
    assert card.counted_macs == pytest.approx(wanted, rel=0.03)
    assert not net.architecture.is_static
    assert (tmp_path / "routed" / "usage.json").exists()


def test_after_a_fine_tuning_too_it_takes_no_more_than_was_wished(source, tmp_path, monkeypatch):
    wanted, tune, found = middle(load_artifact(source).net), routed.fine_tune, []

    def a_little_above(*args, **named):
        result = tune(*args, **named)
        set_threshold(result.net, -1.0)  # as far as a budget that is met from above can be, and farther
        found.append(evaluate(result.net, load_artifact(source).held_out().val)["counted_macs"])
        return replace(result, metrics=result.metrics | {"counted_macs": found[0]})

    monkeypatch.setattr(routed, "fine_tune", a_little_above)
    taken = extract_routed(source, tmp_path / "routed", macs=wanted, tuning=FineTuning(1))
    assert taken.card.counted_macs <= wanted < found[0]
    assert taken.tuned["calibration"]["macs"] <= taken.tuned["calibration"]["target"] == wanted
    seen = evaluate(load_bundle(tmp_path / "routed").net, load_artifact(source).held_out().val)
    assert seen["counted_macs"] == pytest.approx(taken.card.counted_macs) == taken.tuned["counted_macs"]
    assert seen["accuracy"] == taken.card.scores[-1].value == taken.tuned["accuracy"]


def test_what_cannot_teach_it_is_told_before_it_is_calibrated(source, tmp_path, monkeypatch):
    monkeypatch.setattr(routed, "calibrate_threshold", pytest.fail)
    whole, nobody = load_artifact(source), str(tmp_path / "nobody")
    with pytest.raises(SpecError, match="nobody: does not exist"):
        extract_routed(source, tmp_path / "no", macs=middle(whole.net), tuning=FineTuning(1, nobody))
    require_tuning(whole, FineTuning(1, "self"), gated=True)  # it teaches itself with everything computed
    with pytest.raises(SpecError, match="'self' needs gates"):
        require_tuning(whole, FineTuning(1, "self"))


def test_phases_of_a_run_are_over_when_what_was_taken_is_trained_on(source):
    whole = load_artifact(source)
    phased = whole.recipe.override({"train.phases": [{"seconds": 1.0}], "train.seconds": 2.0})
    tuned = fine_tuned_recipe(replace(whole, recipe=phased), FineTuning(3))
    assert (tuned.train.phases, tuned.train.seconds, tuned.train.epochs) == ((), None, 3)


def test_what_keeps_its_gates_is_trained_on_at_a_quarter_of_the_rates(source):
    whole = load_artifact(source)
    train = whole.recipe.train
    for gated, wished, factor in ((False, None, 1.0), (True, None, 0.25), (True, 2.0, 2.0), (False, 0.001, 0.001)):
        tuned = fine_tuned_recipe(whole, FineTuning(1, lr_factor=wished), gated=gated).train
        assert (tuned.lr, tuned.gate_lr) == pytest.approx((factor * train.lr, factor * train.gate_lr))
        assert tuned.min_lr <= tuned.lr
    for wished in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(SpecError, match=r"lr_factor: .* is not allowed"):
            FineTuning(1, lr_factor=wished)
    with pytest.raises(SpecError, match=r"epochs: 1\.5 was given; give a whole number"):
        FineTuning(1.5)
    with pytest.raises(SpecError, match=r"teacher: 3 was given; give a text"):
        FineTuning(1, teacher=3)


def test_it_is_where_others_begin_and_who_teaches_them(source, tmp_path):
    folder, whole = tmp_path / "routed", load_artifact(source)
    wanted = middle(whole.net)
    extract_routed(whole, folder, macs=wanted)
    small = load_artifact(folder)
    result = train_recipe(small.recipe, tmp_path / "run", init=small.net, asked=())
    assert result.metrics["target_macs"] == round(wanted)
    assert result.net.architecture == small.net.architecture
    taught = make_teacher(
        str(folder), like=small.preprocess, classes=small.classes, size=(32, 32), device=torch.device("cpu")
    )
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(taught(images), small.net(images).logits, atol=1e-6)
    part = extract_bundle(folder, tmp_path / "static", macs=wanted, evaluated=False)  # by its own usage
    assert part.card.static
    assert part.card.macs <= wanted


@pytest.mark.slow  # the export of networks with gates is tested in tests/deploy
def test_it_predicts_and_is_exported_as_its_run_is(source, tmp_path):
    extract_routed(source, tmp_path / "routed", macs=middle(load_artifact(source).net), evaluated=False)
    small = load_artifact(tmp_path / "routed")
    export_artifact(small, tmp_path / "files", ["pt2"])
    images = torch.randn(3, 3, 32, 32)
    file = load_exported(tmp_path / "files" / "model.pt2")
    assert torch.allclose(file(images), small.net(images).logits, atol=1e-5)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    answer = Predictor(tmp_path / "routed", "cpu")(tmp_path / "a.png")
    other = Predictor(tmp_path / "files" / "model.pt2", "cpu")(tmp_path / "a.png")
    assert (answer.labels, answer.scores) == (other.labels, pytest.approx(other.scores, abs=1e-5))
