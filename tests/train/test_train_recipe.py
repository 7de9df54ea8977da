import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from train_tiny import TINY, tiny

from routespace.errors import RoutespaceError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.graph import RoutingGrid
from routespace.nn.task_net import TaskNet
from routespace.recipes import load_recipe, recipe_names
from routespace.train.recipe.recipe import Recipe, parse_assignments

# PAPER, table 1: PVTv2's GMACs and DiT's, which are the reached ratios
PAPER_GMACS = {"b1": (2.1, 2.0), "b2": (4.0, 3.8), "b3": (6.9, 6.8), "b4": (10.1, 9.9), "b5": (11.7, 10.3)}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_survives_yaml_and_has_an_architecture(name):
    recipe = load_recipe(name)
    again = Recipe.from_yaml(recipe.to_yaml())
    assert again == recipe
    assert again.hash == recipe.hash
    assert yaml.safe_load(recipe.to_yaml())["name"] == recipe.name == name  # PyYAML reads it too
    assert recipe.architecture().edges


def test_the_hash_is_that_of_before_the_latest_fields():
    """What was begun by an earlier version goes on: a field that is left as it comes changes no hash."""
    detector = load_recipe("digits_detect")
    assert "beyond" not in detector.to_data()["task"]  # nor had its hash
    assert detector.override({"task.beyond": "backbone"}).hash != detector.hash
    assert load_recipe("digits_tiny").hash == "e263a3697b9b"  # as it was when gates had neither scout nor path
    mapped = tiny(gates__source="map", routing="depth")
    assert (
        mapped.override({"gates.scout": 2}).hash != mapped.hash != mapped.override({"gates.skipped": "mlp"}).hash
    )


def test_the_recipes_that_the_docs_name_are_there():
    wanted = {
        "digits_tiny",
        "digits_small",
        "digits_routed",
        "digits_map",
        "digits_sparse",
        "digits_detect",
        "digits_instance",
        "digits_semantic",
        "photos",
    }
    wanted |= {f"dit_b{size}_imagenet" for size in range(1, 6)} | {f"dit_swinv2_{size}_imagenet" for size in "tsb"}
    wanted |= {f"dit_b{size}_ade20k_semfpn" for size in range(1, 5)} | {"dit_swinv2_t_ade20k_upernet"}
    wanted |= {f"dit_{name}_coco_retinanet_1x" for name in ("b2", "swinv2_t")}
    wanted |= {f"dit_b{size}_coco_maskrcnn_{times}x" for size in range(1, 5) for times in (1, 3)}
    wanted |= {"dit_swinv2_t_coco_maskrcnn_3x"}
    assert wanted == set(recipe_names())


@pytest.mark.parametrize("name", [name for name in recipe_names() if "coco" in name or "ade20k" in name])
def test_dense_recipes_are_the_papers(name):
    recipe = load_recipe(name)
    assert recipe.grid.outputs == "pyramid"
    assert recipe.grid.num_classes == 0
    assert recipe.num_classes == (80 if "coco" in name else 150)
    assert recipe.train.batch_size == 16
    assert recipe.train.epochs == {"1x": 12, "3x": 36}.get(name[-2:], recipe.train.epochs)
    assert recipe.grid.image_size == ((800, 1333) if "coco" in name else (512, 512))
    backbone = architecture_cost(Architecture.staircase(RoutingGrid(recipe.grid)))
    assert backbone.head.macs == 0  # what a budget counts


@pytest.mark.parametrize("size", PAPER_GMACS)
def test_imagenet_recipes_aim_at_the_papers_macs(size):
    recipe = load_recipe(f"dit_{size}_imagenet")
    base, reached = PAPER_GMACS[size]
    assert round(recipe.base_macs() / 1e9, 1) == base
    assert recipe.budget_macs() / 1e9 == pytest.approx(reached, abs=0.11)  # two roundings to a tenth


@pytest.mark.parametrize("name", ["dit_b1_imagenet", "dit_b5_imagenet", "dit_swinv2_t_imagenet"])
def test_imagenet_networks_can_be_built(name):
    recipe = load_recipe(name)
    with torch.device("meta"):
        net = TaskNet.classifier(recipe.architecture(), recipe.gates, drop_path=recipe.train.drop_path)
    cost = architecture_cost(net.architecture, gates=recipe.gates)
    assert sum(parameter.numel() for parameter in net.parameters()) == cost.params


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.epoch": 5}, ["train.epoch", "unknown", "epochs"]),
        ({"foo": 1}, ["foo", "unknown", "grid"]),
        ({"train.lr": -1}, ["train.lr", "greater than 0", "-1"]),
        ({"train.lr": float("nan")}, ["train.lr"]),
        ({"train.min_lr": 1}, ["train.min_lr", "lr"]),
        ({"train.min_lr": 1e-3, "train.gate_lr": 1e-4}, ["train.min_lr", "gate_lr 0.0001"]),
        ({"train.clip_grad": True}, ["train.clip_grad", "True", "a number"]),
        ({"train.epochs": False}, ["train.epochs", "False", "a whole number"]),
        ({"data.digit_px": [True, 30]}, ["data.digit_px", "True", "a whole number"]),
        ({"gates.scout_square": True}, ["gates.scout_square", "True"]),
        ({"task": [1]}, ["task", "[1]", "semantic"]),
        ({"task.kind": {"a": 1}}, ["task", "{'a': 1}", "semantic"]),
        ({"data.train_size": 10**30}, ["data.train_size", "at most"]),
        ({"train.epochs": 10**30}, ["train.epochs", "at most"]),
        ({"train.seconds": 1e300}, ["train.seconds", "at most"]),
        ({"train.sandwich_parts": 10**20}, ["train.sandwich_parts", "at most"]),
        ({"grid.depths": 10**12}, ["grid.depths", "at most 1000"]),
        ({"gates.temperature": 1e-300}, ["gates.temperature", "at least 0.001"]),
        ({"train.epochs": 8, "train.warmup_epochs": 50}, ["train.warmup_epochs", "50", "8 epochs"]),
        ({"train.precision": "fp8"}, ["train.precision", "bf16"]),
        ({"train": {"epochz": 1}}, ["train.epochz", "epochs"]),
        ({"train.mixup": 0.5, "train.batch_size": 15}, ["train.batch_size", "15"]),
        ({"grid.max_down": 5}, ["grid.max_down", "power of two"]),
        ({"grid.layers": 0}, ["grid.layers", "1"]),
        ({"grid.widths": [8]}, ["grid.widths", "2"]),
        ({"grid.heads": [1, 3]}, ["grid.heads", "divide"]),
        ({"grid.preset": "dit_b9"}, ["grid.preset", "dit_b5"]),
        ({"grid.num_classes": 7}, ["num_classes", "10"]),
        ({"gates.rows": "tokn"}, ["gates.rows", "window"]),
        ({"budget.macs": "12Q"}, ["budget.macs", "12Q", "12M"]),
        ({"budget.macs": -5}, ["budget.macs"]),
        ({"budget.of": "base"}, ["budget.of", "size"]),
        ({"budget.warmup_frac": 0.6, "budget.schedule": "linear"}, ["budget.settle_frac", "0.6"]),
        ({"data.digit_px": [10, 80]}, ["data.digit_px", "32"]),
        ({"split": [1, 1]}, ["split", "static"]),
        ({"search.space": {"foo.bar": [1]}}, ["search.space", "foo.bar"]),
        ({"search.space": {"train.lr": []}}, ["search.space", "train.lr"]),
        ({"search.space": {"train.lr": {"low": 2, "high": 1}}}, ["search.space", "low"]),
        ({"search.space": {}, "search.limits": {"watts": 1}}, ["search.limits", "macs"]),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(changes, words):
    with pytest.raises(SpecError) as caught:
        Recipe.parse(TINY).override(changes)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- 1",
        "name: [",
        "name: x\nname: y\ngrid: {layers: 2}",
        "name: x",
        "a: &a [*a]",
        "\t",
        "5",
        "!!python/x",
    ],
)
def test_what_is_no_recipe_is_refused(text):
    with pytest.raises(SpecError):
        Recipe.from_yaml(text)


def test_unknown_recipes_and_files_name_the_known(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("nosuch", tmp_path / "bad.yaml", "a\0b"):
        with pytest.raises(SpecError, match="digits_tiny"):
            load_recipe(name)
    with pytest.raises(SpecError, match="is a folder without"):
        load_recipe(tmp_path)


def test_overrides_reach_recipes_by_name_path_and_run_folder(tmp_path):
    (tmp_path / "recipe.yaml").write_text(tiny().to_yaml())
    for where in (tmp_path, tmp_path / "recipe.yaml"):
        assert load_recipe(where, ["train.epochs=7", "data.digit_px=[16, 20]"]) == tiny(
            train__epochs=7, data__digit_px=[16, 20]
        )


def test_assignments_are_typed_as_yaml_1_2():
    assert parse_assignments(["a=1e-3", "b=no", "c=true", "d=[1, x]", "e=", "f=0x1", "g='5'"]) == {
        "a": 1e-3, "b": "no", "c": True, "d": [1, "x"], "e": None, "f": "0x1", "g": "5",
    }  # fmt: skip
    numbers = parse_assignments(["a=0100", "b=-010", "c=+08", "d=[007, 0012]", "e=00.5"])
    assert numbers == {"a": 100, "b": -10, "c": 8, "d": [7, 12], "e": 0.5}  # no octal, as 1.1 has it
    with pytest.raises(SpecError, match="no assignment"):
        parse_assignments(["train.epochs"])
    with pytest.raises(SpecError, match=r"train.lr"):
        parse_assignments(["train.lr=[1,"])


def test_a_lower_max_down_keeps_the_finest_widths():
    recipe = tiny(grid__max_down=4)
    assert (recipe.grid.shape.widths, recipe.grid.shape.heads) == ((8,), (1,))
    with pytest.raises(SpecError, match="widths"):
        tiny(grid__max_down=4, grid__widths=[8, 16])  # given along with it: not touched


def test_a_preset_keeps_image_and_classes():
    recipe = tiny(grid__preset="dit_b0", grid__image_size=64)
    assert (recipe.grid.size, recipe.grid.layers, recipe.grid.num_classes) == ("b0", 4, 10)
    assert recipe.grid.image_size == (64, 64)


def test_budgets_in_three_ways():
    stairs = architecture_cost(Architecture.staircase(RoutingGrid(tiny().grid))).macs
    assert tiny().budget_macs() == round(0.8 * stairs)
    assert tiny(budget__macs="0.25M").budget_macs() == 250_000
    assert tiny(budget__ratio=None).budget_macs() is None
    assert tiny(routing="static").budget_macs() is None
    assert tiny(budget__of="full").base_macs() > stairs
    b2 = Recipe.parse(
        {"name": "x", "grid": {"layers": 16, "size": "b2"}, "budget": {"of": "base"}, "data": {"kind": "folder"}}
    )
    assert b2.base_macs() == 4_026_734_592  # timm's pvt_v2_b2 at 224 px


@pytest.mark.parametrize("routing", ["both", "depth", "scale", "none", "static"])
def test_routing_chooses_the_architecture(routing):
    architecture = tiny(routing=routing).architecture()
    assert architecture.is_static == (routing in ("static", "none"))
    assert tiny(routing="static", split=[2, 0]).architecture().open_edges[0] == "l00_r04_transformer"


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(
    ["name", "seed", "grid", "grid.layers", "grid.preset", "grid.widths", "grid.max_down", "routing", "split",
     "gates", "gates.window", "budget", "budget.macs", "data.digit_px", "data.root", "train.epochs", "train",
     "search", "search.space", "search.overrides", "x", "..", ""]
)  # fmt: skip


@settings(max_examples=25)
@example({"grid.max_down": 8, "grid": {}})
@example({"grid.max_down": 8, "grid": None})
@given(st.dictionaries(fields, junk, max_size=3))
def test_only_our_errors_come_out(changes):
    try:
        recipe = Recipe.parse(TINY).override(changes)
    except RoutespaceError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe
