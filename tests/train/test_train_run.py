import json
import os
import signal

import pytest
import torch
from lasting import lasting
from train_tiny import tiny

from routespace.errors import BundleError, RoutespaceError, SpecError
from routespace.grid.graph import RoutingGrid
from routespace.grid.usage import usage_from_json
from routespace.nn.families.compiled import compiled
from routespace.nn.task_net import TaskNet
from routespace.nn.weights import load_net
from routespace.train.data.loaders import make_loaders
from routespace.train.evaluate import Sampling, evaluate
from routespace.train.progress import Progress
from routespace.train.run import train_recipe
from routespace.train.stopping import TrainingStoppedError

TIMES = ("seconds", "images_per_s")


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def same_weights(a: TaskNet, b: TaskNet) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "a"
    seen = []
    return train_recipe(tiny(), out, progress=seen.append), seen


def test_what_a_run_folder_holds(finished):
    result, seen = finished
    folder = result.folder
    assert {path.name for path in folder.iterdir()} == {
        "recipe.yaml", "architecture.json", "preprocess.json", "metrics.jsonl", "checkpoint", "net", "usage.json",
        "result.json",
    }  # fmt: skip
    assert json.loads((folder / "result.json").read_text()) == result.metrics
    assert [record["epoch"] for record in records(folder)] == [1, 2]
    measured = json.loads((folder / "usage.json").read_text())
    assert measured["grid"] == tiny().grid.hash
    usage = usage_from_json(measured, RoutingGrid(tiny().grid))
    assert set(usage) <= set(result.net.architecture.edges)
    again = load_net(folder / "net")
    assert same_weights(again, result.net)
    assert again.gate_spec.threshold == result.metrics["calibration"]["threshold"]
    assert {progress.stage for progress in seen} == {"train", "validate", "calibrate", "evaluate"}
    assert all(isinstance(progress, Progress) for progress in seen)
    found = evaluate(again, make_loaders(tiny()).val)
    for key in ("accuracy", "counted_macs", "expected_macs"):
        assert found[key] == pytest.approx(result.metrics[key], rel=1e-6)


def test_evaluate_agrees_with_plain_counting(finished):
    net = finished[0].net
    loader = make_loaders(tiny()).test
    found = evaluate(net, loader, expected=False)
    with torch.no_grad():
        right = [(net(images).logits.argmax(1) == labels).float() for images, labels in loader]
    assert found["accuracy"] == pytest.approx(float(torch.cat(right).mean()))
    assert found["images"] == 32
    assert found["expected_macs"] is None
    routes = torch.cat([net(images).routes["l00_r04_transformer"].kept.float().mean(1) for images, _ in loader])
    assert found["usage"]["l00_r04_transformer"]["tokens"] == pytest.approx(float(routes.mean()), abs=1e-6)


EXTRAS = {
    "train__ema_decay": 0.9,
    "train__mixup": 0.5,
    "budget__multiplier_lr": 0.1,
    "budget__control": 0.5,
    "gates__rows": "layer",
}


@pytest.mark.parametrize(
    ("changes", "step"),
    [*(pytest.param({}, n, marks=pytest.mark.slow) for n in (2, 4)), (EXTRAS, 7), ({"routing": "static"}, 5)],
)
def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path, changes, step):
    recipe = tiny(**changes)
    whole = train_recipe(recipe, tmp_path / "whole")
    done = 0

    def stop(progress: Progress) -> None:
        nonlocal done
        done += progress.stage == "train"
        if done == step and progress.stage == "train":
            os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "stopped"
    with pytest.raises(TrainingStoppedError, match=r"SIGTERM: .*--resume"):
        train_recipe(recipe, out, progress=stop)
    assert not (out / "result.json").exists()
    torch.manual_seed(999)  # whatever state the new process starts in
    resumed = train_recipe(recipe, out, resume=True)
    assert same_weights(whole.net, resumed.net)
    assert records(tmp_path / "whole") == records(out)
    assert lasting(whole.metrics) == lasting(resumed.metrics)


def test_the_same_seed_gives_the_same_run_and_another_does_not(finished, tmp_path):
    assert same_weights(finished[0].net, train_recipe(tiny(), tmp_path / "b").net)
    assert not same_weights(finished[0].net, train_recipe(tiny(seed=1), tmp_path / "c").net)


def test_existing_folders_are_not_overwritten(finished, tmp_path):
    folder = finished[0].folder
    before = (folder / "result.json").read_bytes()
    with pytest.raises(BundleError, match="finished run"):
        train_recipe(tiny(), folder)
    assert train_recipe(tiny(), folder, resume=True).metrics == finished[0].metrics
    with pytest.raises(BundleError, match=r"\(train\.epochs: 2 → 3\); go on from its network, on a schedule"):
        train_recipe(tiny(train__epochs=3), folder, resume=True)
    assert (folder / "result.json").read_bytes() == before
    (tmp_path / "x").write_text("mine")
    for out in (tmp_path, tmp_path / "x"):
        with pytest.raises(BundleError, match="--out"):
            train_recipe(tiny(), out)
    with pytest.raises(BundleError, match="no run to resume"):
        train_recipe(tiny(), tmp_path / "nothing", resume=True)
    with pytest.raises(BundleError, match="cannot be written"):
        train_recipe(tiny(), tmp_path / "x" / "below")


def test_a_damaged_checkpoint_is_refused(tmp_path):
    out = tmp_path / "run"

    def stop(progress: Progress) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingStoppedError):
        train_recipe(tiny(), out, progress=stop)
    path = out / "checkpoint" / "state.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BundleError, match="checkpoint"):
        train_recipe(tiny(), out, resume=True)


def test_nothing_is_left_behind_when_a_recipe_cannot_run(tmp_path):
    out = tmp_path / "run"
    for changes in ({"data__kind": "folder"}, {"budget__ratio": 0.001}, {"data__train_size": 5}):
        with pytest.raises(RoutespaceError):
            train_recipe(tiny(**changes), out)
        assert not out.exists()
    if not torch.cuda.is_available():
        with pytest.raises(SpecError, match=r"train.device"):
            train_recipe(tiny(train__device="cuda"), out)


def test_a_diverging_run_says_so(tmp_path):
    message = r"the loss became nan in epoch 1, step 2 of 4: .* lower train\.lr \(now 1e\+20\)"
    with pytest.raises(RoutespaceError, match=message):
        train_recipe(
            tiny(train__lr=1e20, train__clip_grad=None, train__min_lr=0, train__warmup_epochs=0), tmp_path / "run"
        )


def test_fine_tuning_starts_from_the_given_network(finished, tmp_path):
    start = finished[0].net.restrict(tiny(routing="static").architecture())
    recipe = tiny(train__epochs=0)
    result = train_recipe(recipe, tmp_path / "zero", init=start)
    assert result.net.architecture == start.architecture
    assert same_weights(result.net, TaskNet.restrict(finished[0].net, start.architecture))
    assert result.metrics["target_macs"] is None
    assert result.metrics["expected_ratio"] == result.metrics["counted_ratio"]
    tuned = train_recipe(tiny(train__epochs=1), tmp_path / "one", init=start)
    assert not same_weights(tuned.net, result.net)
    assert train_recipe(tiny(train__epochs=1), tmp_path / "one", resume=True).metrics == tuned.metrics
    routed = train_recipe(tiny(train__epochs=1), tmp_path / "routed", init=finished[0].net)
    assert routed.metrics["calibration"]["met"]


def test_bf16_and_every_kind_of_gate_train(tmp_path):
    for i, changes in enumerate(
        [
            {"train__precision": "bf16", "gates__kind": "tanh"},
            {"gates__kind": "sigmoid", "gates__relaxation": "soft", "train__execution": "packed"},
            {"gates__rows": "layer", "gates__columns": "token"}
            | {"train__cutmix": 1.0, "train__label_smoothing": 0.1, "train__drop_path": 0.2},
            {"routing": "none"},
        ]
    ):
        result = train_recipe(tiny(train__epochs=1, data__train_size=32, **changes), tmp_path / str(i))
        assert result.metrics["counted_macs"] > 0, changes


@pytest.mark.slow
def test_compiled_blocks_train_alike(tmp_path, monkeypatch):
    steps, found = [], {}
    monkeypatch.setattr(
        "routespace.nn.families.pvt_v2_block.compiled", lambda *args: (steps.append(1), compiled(*args))[1]
    )
    for on in (False, True):
        recipe = tiny(train__compile=on, train__execution="packed", train__epochs=1)
        result = train_recipe(recipe, tmp_path / str(on))
        found[on] = result.metrics
        assert bool(steps) == on
        assert not result.net.compiled
    assert found[True]["loss"] == pytest.approx(found[False]["loss"], rel=0.02)
    assert found[True]["counted_macs"] == pytest.approx(found[False]["counted_macs"], rel=0.02)


def test_a_family_without_compiled_steps_says_so(tmp_path):
    grid = {"family": "swin_v2", "size": "t", "layers": 2, "max_down": 8, "image_size": 32, "num_classes": 10}
    recipe = tiny(train__compile=True).override({"grid": grid})
    with pytest.raises(SpecError, match="swin_v2"):
        train_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_staircase_start_is_the_plain_network(tmp_path):
    """While the gates are held, only the staircase learns; afterwards the gates decide."""
    costs = {}

    def watch(progress: Progress) -> None:
        if progress.stage == "train":
            costs[progress.epoch, progress.step] = progress.macs_ratio

    recipe = tiny(train__start="staircase", budget__open_frac=0.5, budget__warmup_frac=0.5, gates__openness=0.97)
    train_recipe(recipe, tmp_path / "run", progress=watch)
    held = [costs[1, step] for step in range(1, 5)]
    assert max(held) == min(held) == pytest.approx(1.0, abs=0.05)  # the rest is the price of the gates
    assert len({costs[2, step] for step in range(1, 5)}) > 1
    opened = train_recipe(tiny(budget__open_frac=0.5), tmp_path / "open", progress=watch)
    assert costs[1, 4] == costs[1, 1] > 1.5
    assert opened.metrics["calibration"]["met"]


def test_temperature_and_noise_follow_their_schedules(tmp_path):
    gates = {"temperature": 4.0, "final_temperature": 1.0, "noise": 1.0, "final_noise": 0.0}
    result = train_recipe(tiny(gates=gates), tmp_path / "run")
    last = [3 / 8, 7 / 8]  # progress at the last step of each epoch: four steps, two epochs
    found = [record["temperature"] for record in records(tmp_path / "run")]
    assert found == pytest.approx([4.0 * 0.25**progress for progress in last])
    assert result.net.deciding.noise == pytest.approx(1 - last[1])


def test_expected_and_counted_agree_where_the_noise_has_ended(finished):
    """The gates' noise ends at 0, so the decisions that the loss saw are those of inference."""
    metrics = finished[0].metrics
    assert metrics["expected_macs"] == pytest.approx(metrics["counted_macs"], rel=0.01)
    noisy = finished[0].net
    spec = noisy.gate_spec
    with noisy.deciding_as(gates=spec.model_copy(update={"final_noise": 1.0})):
        found = evaluate(noisy, make_loaders(tiny()).val)
    assert found["counted_macs"] == metrics["counted_macs"]
    assert found["expected_macs"] != metrics["expected_macs"]


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_every_epoch_reports_both_costs_of_the_validation_images(tmp_path, noise):
    """Without noise, and with gates that decide by the weights that learn, the loss sees what inference pays."""
    changes = {"gates.noise": noise, "gates.final_noise": noise, "gates.openness": 0.6, "gates.ema_decay": 0.0}
    result = train_recipe(tiny(budget__calibrate=False).override(changes), tmp_path / "run")
    lines = records(tmp_path / "run")
    assert len(lines) == 2
    for line in lines:
        assert line["train_expected_ratio"] != line["expected_ratio"]  # of other images
        assert (line["expected_ratio"] == line["counted_ratio"]) == (noise == 0.0)
    assert lines[-1]["counted_ratio"] == result.metrics["counted_ratio"]
    assert lines[-1]["expected_ratio"] == pytest.approx(result.metrics["expected_ratio"], rel=1e-6)


def test_expected_costs_are_of_the_live_gates_and_leave_no_trace(finished):
    net, loader = finished[0].net, make_loaders(tiny()).val
    before = net.deciding, torch.get_rng_state(), net.training
    calm = evaluate(net, loader, sampling=Sampling(1.0, 0.0))
    loud = evaluate(net, loader, sampling=Sampling(1.0, 3.0))
    assert loud["expected_macs"] != calm["expected_macs"]
    assert loud == {**calm, "expected_macs": loud["expected_macs"], "images_per_s": loud["images_per_s"]}
    assert (net.deciding, net.training) == (before[0], before[2])
    assert torch.equal(torch.get_rng_state(), before[1])
    gate = net.gates["l00_r04_transformer"]
    bias = gate.bias.detach().clone()
    with torch.no_grad():
        gate.bias.copy_(torch.tensor([-50.0, 50.0]))
    shut = evaluate(net, loader, sampling=Sampling(1.0, 0.0))
    with torch.no_grad():
        gate.bias.copy_(bias)
    assert shut["counted_macs"] == calm["counted_macs"]
    assert shut["expected_macs"] < calm["expected_macs"]
