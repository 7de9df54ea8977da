"""`routespace cost` and `routespace recipes`: they add up, and say what is wrong."""

import json

import pytest
from dense_tiny import dense_net

from routespace import (
    Architecture,
    GateSpec,
    GridSpec,
    Recipe,
    RouteNet,
    RoutingGrid,
    TaskNet,
    architecture_cost,
    load_recipe,
)
from routespace.deploy.bundle import Card, save_bundle
from routespace.deploy.counters import torch_macs
from routespace.deploy.extract import extract
from routespace.grid.resources import RESOURCES, Resource, Terms
from routespace.grid.usage import EdgeUsage, usage_to_json
from routespace.nn.weights import save_net
from routespace.recipes import recipe_names

SMALL = {
    "layers": 3,
    "max_down": 16,
    "widths": [16, 32, 64],
    "heads": [1, 2, 4],
    "mlp_ratios": [4, 4, 4],
    "sr_ratios": [4, 2, 1],
    "image_size": 64,
    "num_classes": 10,
}


@pytest.fixture
def grid_file(tmp_path):
    """A file with the bare fields of a small grid."""
    file = tmp_path / "small.json"
    file.write_text(json.dumps(SMALL))
    return file


def cost_json(cli, *args):
    return json.loads(cli("cost", *args, "--json").assert_fine().out)


def test_parts_add_up(cli, grid_file):
    data = cost_json(cli, grid_file, "--architecture", "staircase", "--by", "rate")
    grid = RoutingGrid(GridSpec.parse(SMALL))
    cost = architecture_cost(Architecture.staircase(grid))
    assert (data["params"], data["macs"], data["bytes"]) == (cost.params, cost.macs, cost.bytes)
    for what in ("params", "macs", "bytes"):
        assert sum(part[what] for part in data["parts"].values()) == data[what]
        assert sum(group[what] for group in data["groups"].values()) == data["parts"]["edges"][what]
    assert set(data["groups"]) == {"4", "8", "16"}


def test_a_further_resource_is_listed_by_its_line_in_the_table_alone(cli, grid_file, monkeypatch):
    energy = Resource("energy", "µJ", lambda edge, gate: Terms(0, edge.fixed_macs / 4, edge.routed_macs / 4, 0.5))
    monkeypatch.setitem(RESOURCES, "energy_uj", energy)
    data = cost_json(cli, grid_file, "--by", "rate", "--architecture", "staircase")
    assert data["energy_uj"] == pytest.approx(data["macs"] / 4, rel=1e-3)
    assert set(data["parts"]["edges"]) == set(data["groups"]["4"]) == {"params", "macs", "bytes", "energy_uj"}
    out = cli("cost", grid_file).assert_fine().out
    assert "energy" in out
    assert "µJ" in out


def test_b2_is_timms(cli):
    data = cost_json(cli, "pvt_v2_b2", "--architecture", "staircase")
    assert (data["macs"], data["params"]) == (4_026_734_592, 25_362_856)


@pytest.mark.parametrize("name", ["digits_tiny", "digits_map", "digits_semantic", "digits_detect"])
def test_a_recipe_costs_what_it_trains(cli, tmp_path, name):
    recipe = load_recipe(name)
    head = recipe.task.make(recipe.grid).head(recipe.grid)
    net = TaskNet(RouteNet(recipe.architecture(), recipe.gates), head)
    save_bundle(net, tmp_path / "net", Card.of(net))
    file = tmp_path / "mine.yaml"
    file.write_text(recipe.to_yaml())
    found = cost_json(cli, name)
    assert found == cost_json(cli, file) == cost_json(cli, tmp_path / "net")
    assert found["params"] == sum(weight.numel() for weight in net.parameters())
    staircase = cost_json(cli, name, "--architecture", "staircase")
    assert staircase["architecture"]["gated"] == 0 < found["architecture"]["gated"]


def test_a_misspelt_subject_is_told_what_is_near(cli):
    cli("cost", "digit_tiny").assert_refused("perhaps digits_tiny", "presets: ", "routespace recipes")
    cli("cost", "dit_b6").assert_refused("perhaps dit_b")
    cli("cost", "nosuch.yaml").assert_refused("nosuch.yaml")


def test_usage_scales_the_macs(cli, grid_file, tmp_path):
    usage = tmp_path / "usage.json"
    name = "l00_r04_transformer"
    usage.write_text(json.dumps({"format": "routespace.usage/1", "edges": {name: {"tokens": 0.0, "images": 0.0}}}))
    whole = cost_json(cli, grid_file, "--by", "edge")
    less = cost_json(cli, grid_file, "--usage", usage)
    grid = RoutingGrid(GridSpec.parse(SMALL))
    assert less["macs"] == whole["macs"] - architecture_cost(Architecture.full(grid)).edges[name].macs


def test_edges_tell_the_parts_of_their_price(cli, grid_file, tmp_path):
    grid = RoutingGrid(GridSpec.parse(SMALL))
    cost = architecture_cost(Architecture.full(grid), gates=GateSpec())
    groups = cost_json(cli, grid_file, "--by", "edge")["groups"]
    assert set(groups) == {name for name, edge in grid.edges.items() if edge.kind != "identity"}
    for name, group in groups.items():
        assert group["fixed_macs"] == cost.edges[name].fixed_macs
        assert group["routed_macs"] == cost.edges[name].routed_macs
        assert group["gate_macs"] == cost.gates[name].macs
        assert group["macs"] == group["fixed_macs"] + group["routed_macs"] + group["gate_macs"]
        assert group["params"] == cost.edges[name].params + cost.gates[name].params
    usage = tmp_path / "usage.json"
    name = "l00_r04_transformer"
    shares = {"tokens": 0.25, "images": 0.5, "asked": 1.0}
    usage.write_text(json.dumps({"format": "routespace.usage/1", "edges": {name: shares}}))
    used = cost_json(cli, grid_file, "--by", "edge", "--usage", usage)["groups"][name]
    assert {key: used[key] for key in ("fixed_macs", "routed_macs", "gate_macs")} == {
        key: groups[name][key] for key in ("fixed_macs", "routed_macs", "gate_macs")
    }
    assert used["macs"] == 0.5 * used["fixed_macs"] + 0.25 * used["routed_macs"] + used["gate_macs"]
    stairs = cost_json(cli, grid_file, "--by", "edge", "--architecture", "staircase")["groups"]
    assert {group["gate_macs"] for group in stairs.values()} == {0}
    assert "fixed_macs" not in cost_json(cli, grid_file, "--by", "kind")["groups"]["transformer"]


def test_architecture_from_a_file(cli, grid_file, tmp_path):
    grid = RoutingGrid(GridSpec.parse(SMALL))
    file = tmp_path / "stairs.json"
    file.write_text(json.dumps(Architecture.staircase(grid).to_json()))
    assert cost_json(cli, grid_file, "--architecture", file) == cost_json(
        cli, grid_file, "--architecture", "staircase"
    )


def test_architecture_of_another_grid(cli, grid_file, tmp_path):
    other = RoutingGrid(GridSpec.parse(SMALL | {"layers": 4}))
    file = tmp_path / "other.json"
    file.write_text(json.dumps(Architecture.full(other).to_json()))
    cli("cost", grid_file, "--architecture", file).assert_refused("architecture", other.hash)


def test_tables(cli, grid_file):
    out = cli("cost", grid_file, "--by", "layer").assert_fine().out
    assert "stem" in out
    assert "total" in out


def test_check_counts_with_torch_and_fvcore(cli, grid_file):
    out = cli("cost", grid_file, "--architecture", "staircase", "--check").assert_fine().out
    assert "torch" in out
    assert "fvcore" in out


@pytest.mark.parametrize("task", ["detect", pytest.param("instance", marks=pytest.mark.slow), "semantic"])
def test_the_check_counts_the_whole_network_of_a_dense_task(task, cli, tmp_path):
    settings = {"channels": 64} if task == "semantic" else {"width": 16}
    net = dense_net(task, gates=GateSpec(source="map"), classes=3, **settings)
    save_bundle(net, tmp_path / "net", Card.of(net))
    outcome = cli("cost", tmp_path / "net", "--json", "--check").assert_fine()
    data = json.loads(outcome.out)
    rows = {line[:24].strip(): line[24:].split() for line in outcome.err.splitlines() if "MACs" in line}
    for row, macs in (("torch", data["backbone"]["macs"]), ("torch, with the head", data["macs"])):
        assert int(rows[row][0].replace(",", "")) == macs
        assert rows[row][2] == "+0"
    assert f"params  analytic {data['params']}, module {data['params']}" in outcome.err


@pytest.mark.parametrize("architecture", ["full", pytest.param("staircase", marks=pytest.mark.slow)])
def test_the_json_is_what_the_check_calls_analytic(architecture, cli, grid_file):
    outcome = cli("cost", grid_file, "--architecture", architecture, "--json", "--check").assert_fine()
    data = json.loads(outcome.out)
    words = next(line for line in outcome.err.splitlines() if line.startswith("analytic")).split()
    assert int(words[1].replace(",", "")) == data["macs"]
    assert f"params  analytic {data['params']}, module {data['params']}" in outcome.err
    assert (data["parts"]["gates"]["macs"] > 0) == (architecture == "full")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({**SMALL, "colour": 1}, ["colour", "unknown field"]),
        ({**SMALL, "max_down": 24}, ["max_down", "power of two"]),
        ({**SMALL, "widths": [16, 32]}, ["widths"]),
        ({**SMALL, "heads": [1, 2, 5]}, ["heads"]),
        ({**SMALL, "embed_layers": []}, ["embed_layers", "output"]),
        ({"format": "routespace.grid/2"}, ["format"]),
        ([1, 2], ["format"]),
    ],
)
def test_bad_grid_files(cli, tmp_path, content, words):
    file = tmp_path / "grid.json"
    file.write_text(json.dumps(content))
    cli("cost", file).assert_refused(*words)


def test_files_that_are_no_json(cli, tmp_path):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    for file in ("a.json", "b.json"):
        cli("cost", tmp_path / file).assert_refused("is not JSON")
    cli("cost", tmp_path / "none.json").assert_refused("neither a preset, a recipe nor a file", "dit_b2")
    cli("cost", tmp_path).assert_refused("has no network")


def test_bad_options(cli, grid_file, tmp_path):
    cli("cost", grid_file, "--by", "colour").assert_refused("by", "layer")
    cli("cost", grid_file, "--architecture", "ful").assert_refused("ful")
    usage = tmp_path / "usage.json"
    for edges, word in (
        ({"l99_r04_transformer": {}}, "l99"),
        ({"l00_r04_transformer": {"tokens": 2}}, "0 to 1"),
        ({"l00_r04_transformer": {"share": 1}}, "share"),
    ):
        usage.write_text(json.dumps({"format": "routespace.usage/1", "edges": edges}))
        cli("cost", grid_file, "--usage", usage).assert_refused(word)


def test_recipes_are_listed(cli):
    out = cli("recipes").assert_fine().out
    for name in recipe_names():
        assert name in out


def test_a_shown_recipe_is_a_recipe(cli, tmp_path):
    shown = cli("recipes", "show", "digits_tiny", "--set", "train.epochs=3").assert_fine().out
    recipe = Recipe.from_yaml(shown)
    assert recipe.train.epochs == 3
    file = tmp_path / "mine.yaml"
    file.write_text(shown)
    assert cli("recipes", "show", file).assert_fine().out == shown


def test_bad_recipes(cli, tmp_path):
    cli("recipes", "show", "nope").assert_refused("nope", "digits_tiny")
    cli("recipes", "print", "digits_tiny").assert_refused("print", "show NAME")
    cli("recipes", "show", "digits_tiny", "--set", "train.epoch=3").assert_refused("train.epoch", "epochs")
    cli("recipes", "show", "digits_tiny", "--set", "train.epochs").assert_refused("train.epochs", "field=value")
    file = tmp_path / "mine.yaml"
    file.write_text("name: [")
    cli("recipes", "show", file).assert_refused("yaml")


@pytest.mark.parametrize(
    "task", [{"kind": "semantic", "classes": 4}, {"kind": "detect", "classes": 3, "width": 32}]
)
def test_a_dense_network_is_told_with_and_without_its_head(cli, tmp_path, task):
    net = dense_net(**task)
    part = Architecture.staircase(net.architecture.grid)
    small = extract(net, part)
    save_bundle(small, tmp_path / "small", Card.of(small))
    data = cost_json(cli, tmp_path / "small")
    assert data["macs"] == torch_macs(small, 32, meta=False).macs
    assert data["backbone"]["macs"] == torch_macs(small.backbone, 32, meta=False).macs
    assert data["params"] == sum(weight.numel() for weight in small.parameters())
    assert data["backbone"]["params"] == sum(weight.numel() for weight in small.backbone.parameters())
    for what in ("params", "macs", "bytes"):
        assert sum(one[what] for one in data["parts"].values()) == data[what]
        assert data["parts"]["head"][what] == data[what] - data["backbone"][what]
    lines = cli("cost", tmp_path / "small").assert_fine().out.splitlines()
    assert [line.split("  ")[0] for line in lines if "backbone" in line or "whole" in line] == [
        "backbone",
        "whole network",
    ]


def test_a_detectors_own_measurement_is_told_of_both(cli, tmp_path):
    net = dense_net("detect", classes=3, width=32)
    save_net(net, tmp_path)
    usage = {name: EdgeUsage(0.5, 1, 1) for name in net.architecture.edges}
    (tmp_path / "usage.json").write_text(json.dumps(usage_to_json(usage, net.architecture.grid)))
    data = cost_json(cli, tmp_path)
    head = data["macs"] - data["backbone"]["macs"]
    assert data["measured"]["macs"] - data["measured_backbone"]["macs"] == head == data["parts"]["head"]["macs"]
    assert data["measured_backbone"]["macs"] < data["backbone"]["macs"]
    assert "the backbone of it" in cli("cost", tmp_path).assert_fine().out


def test_rates_that_are_never_reached_are_told(cli, tmp_path):
    net = dense_net("semantic", classes=4)
    part = Architecture.static(net.spec, ["l00_r04_transformer", "l01_r04_transformer"])
    small = extract(net, part)
    save_bundle(small, tmp_path / "small", Card.of(small))
    assert cost_json(cli, tmp_path / "small")["missing_rates"] == [8]
    assert "it never reaches rates 8" in cli("cost", tmp_path / "small").assert_fine().out
    assert cost_json(cli, tmp_path / "small")["macs"] == torch_macs(small, 32, meta=False).macs
