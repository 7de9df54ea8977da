"""Recipes and families: lists follow a smaller grid, plain counterparts of named sizes, families of one's own."""

import sys
from pathlib import Path

import pytest
import torch
from train_tiny import TINY

from routespace import train_recipe
from routespace.deploy.bundle import Card, load_bundle, save_bundle
from routespace.deploy.latency.table import load_table, save_table
from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.families.lookup import allow_families
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.route_net import RouteNet
from routespace.recipes import load_recipe
from routespace.train.plain import plain_recipe
from routespace.train.recipe.recipe import Recipe

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
SWIN = {"layers": 4, "family": "swin_v2", "image_size": 128, "num_classes": 10}


@pytest.fixture
def vit(monkeypatch):
    """The family of the documents, which is not built in."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from vit_family import VIT

    return VIT


def recipe_of(grid: dict, **more: object) -> Recipe:
    return Recipe.parse(TINY | {"grid": grid} | more)


@pytest.mark.parametrize(
    ("grid", "changes", "wanted"),
    [
        (SWIN | {"window": [8, 8, 4, 4]}, {"grid.max_down": 16}, {"window": (8, 8, 4)}),
        (SWIN | {"window": 8}, {"grid.max_down": 16}, {"window": 8}),
        ({"layers": 4, "sr_ratios": [8, 4, 2, 1]}, {"grid.max_down": 16}, {"sr_ratios": (8, 4, 2)}),
        ({"layers": 4, "depths": [3, 4, 6, 3]}, {"grid.layers": 3}, {"depths": (3, 4, 6)}),
        ({"layers": 4, "depths": [3, 4, 6, 3]}, {"grid.layers": 2, "grid.max_down": 8}, {"depths": (3, 4)}),
        ({"layers": 4, "depths": [3, 4, 6, 3]}, {"grid.layers": 2, "grid.depths": [1, 2]}, {"depths": (1, 2)}),
        ({"layers": 4, "depths": 2}, {"grid.layers": 3}, {"depths": 2}),
        ({"layers": 4, "embed_layers": [0, 1, 2, 4]}, {"grid.layers": 3}, {"embed_layers": (0, 1, 2)}),
        ({"layers": 4}, {"grid.preset": "dit_b2", "grid.layers": 3}, {"depths": (3, 4, 6)}),
        ({"layers": 4}, {"grid": {"preset": "dit_b2", "num_classes": 10}, "grid.layers": 3},
         {"depths": (3, 4, 6), "embed_layers": (0, 1, 2, 3)}),
    ],
)  # fmt: skip
def test_lists_follow_a_smaller_grid(grid, changes, wanted):
    spec = recipe_of({"image_size": 64, "num_classes": 10} | grid).override(changes).grid
    found = {**{name: getattr(spec, name) for name in ("depths", "embed_layers")}, **spec.given}
    assert {name: found[name] for name in wanted} == wanted
    assert RoutingGrid(spec)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid.layers": 5}, "grid.depths: 4 numbers for 5 layers"),  # nobody knows the fifth
        ({"grid.max_down": 64, "grid.image_size": 64}, "grid.widths: 4 numbers in the size for 5 rates"),
        ({"grid.window": [4, 4]}, "grid.window: 2 numbers given for 4 rates"),
        ({"grid.sr_ratios": [1, 1, 1, 1]}, "grid.sr_ratios: family swin_v2 has none"),
        ({"grid.wimdow": 4}, "grid.wimdow: unknown field; perhaps window; allowed: layers"),
        ({"grid.layers": 0}, "grid.layers: 0 is not allowed; give at least 1"),
    ],
)
def test_what_cannot_follow_is_one_line(changes, words):
    with pytest.raises(SpecError) as caught:
        recipe_of(SWIN | {"depths": [1, 2, 1, 1], "window": [8, 8, 4, 4]}).override(changes)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    "grid",
    [
        {"layers": 4, "size": "b0", "image_size": 64, "num_classes": 10},
        {"preset": "dit_b2", "image_size": 64, "num_classes": 10},
        SWIN | {"size": "t"},
        SWIN | {"image_size": 32},  # maps that are smaller than the size's own window
        SWIN | {"window": [8, 4, 4, 4]},
        TINY["grid"],
    ],
)
def test_the_plain_counterpart_of_a_grid_meets_its_macs(grid):
    recipe = recipe_of(grid, data={"digit_px": [16, 30]})
    wanted = 0.6 * architecture_cost(Architecture.staircase(RoutingGrid(recipe.grid))).macs
    plain = plain_recipe(recipe, wanted)
    cost = architecture_cost(plain.architecture()).macs
    assert cost == pytest.approx(wanted, rel=0.2 if recipe.grid.layers == 2 else 0.03)
    assert plain.routing == "static"
    assert plain.grid.shape.heads == recipe.grid.shape.heads
    assert plain.grid.shape.own == recipe.grid.shape.own


def test_the_familys_plain_network_as_a_base_keeps_its_window():
    def base(**grid: object) -> int:
        fields = SWIN | {"size": "t", "image_size": 256} | grid
        return recipe_of(fields, budget={"of": "base", "ratio": 0.5}).base_macs()

    def plain(window: int) -> int:
        spec = GridSpec.preset("swin_v2_t", num_classes=10, window=window)
        return architecture_cost(Architecture.staircase(RoutingGrid(spec))).macs

    assert base() == plain(8)
    assert base(window=16) == base(window=16, max_down=16) == plain(16)
    assert base(window=[8, 8, 4], max_down=16) == plain(8)  # a list of the grid's own rates says nothing of it


@pytest.mark.parametrize("max_down", [8, 16])
@pytest.mark.parametrize("side", [16, 28])
def test_images_that_are_too_small_for_a_map_are_refused(max_down, side):
    """A key reduction of eight tokens needs a map of eight; torch's convolution died of it."""
    full = Architecture.full(RoutingGrid(GridSpec(layers=3, size="b0", max_down=max_down, num_classes=3)))
    for execution in ("dense", "packed", "auto"):
        net = RouteNet(full, execution=execution)
        for shape in ((1, 3, side, side), (1, 3, 64, side), (1, 3, side, 64)):
            with pytest.raises(
                SpecError, match=r"images: .* does not fit; give \(B, 3, H, W\) with H and W of at least 29"
            ):
                net(torch.zeros(shape))
    with torch.no_grad():
        net(torch.zeros(1, 3, 29, 64))


def test_every_family_runs_at_its_least_image(vit):
    for family in ("pvt_v2", "swin_v2", vit):
        for max_down in (4, 8, 32):
            grid = RoutingGrid(GridSpec(layers=3, family=family, max_down=max_down, image_size=64))
            side = grid.spec.least_image_px
            path = Architecture.staircase(grid) if max_down < 32 else Architecture.full(grid)
            with torch.no_grad():
                RouteNet(path).eval()(torch.zeros(1, 3, side, side))


def test_a_recipe_of_ones_own_family(vit, tmp_path):
    grid = TINY["grid"] | {"family": vit, "sr_ratios": None, "widths": [8, 16]}
    recipe = Recipe.parse(TINY | {"grid": grid}).override({"train.epochs": 1})
    assert recipe.to_data()["grid"]["family"] == "vit"
    text = recipe.to_yaml()
    with pytest.raises(SpecError, match=r"grid.family: 'vit' is not known"):
        Recipe.from_yaml(text)
    assert Recipe.from_yaml(text, families=[vit]) == Recipe.parse(recipe.to_data(), families=[vit]) == recipe
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=r"recipe.yaml: grid.family: 'vit' is not known"):
        load_recipe(path)
    assert load_recipe(path, ["train.epochs=2"], families=[vit]).train.epochs == 2
    assert recipe.override({"grid.widths": [16, 32]}).grid.family is vit
    assert plain_recipe(recipe, 3e5).grid.family == vit


def test_a_run_and_a_bundle_of_ones_own_family(vit, tmp_path):
    grid = TINY["grid"] | {"family": vit, "sr_ratios": None}
    recipe = Recipe.parse(TINY | {"grid": grid}).override({"train.epochs": 1})
    result = train_recipe(recipe, tmp_path / "run")
    again = train_recipe(recipe, tmp_path / "run", resume=True)
    assert again.net.architecture == result.net.architecture
    tuned = train_recipe(recipe.override({"train.epochs": 0}), tmp_path / "tuned", init=result.net)
    assert tuned.net.spec.family == vit
    save_bundle(result.net, tmp_path / "bundle", Card.of(result.net))
    with pytest.raises(Exception, match=r"network.json: family: 'vit' is not known"):
        load_bundle(tmp_path / "bundle")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        loaded = load_bundle(tmp_path / "bundle", families=[vit]).net
        assert torch.equal(loaded(images).logits, again.net(images).logits)
    with allow_families(vit):
        assert load_bundle(tmp_path / "bundle").net.spec.family == vit


def test_a_table_of_ones_own_family(vit, tmp_path):
    from routespace.deploy.latency.profiling import profile

    grid = RoutingGrid(GridSpec(layers=2, max_down=8, family=vit, image_size=32))
    save_table(profile(grid, rounds=3, subnets=0), tmp_path / "table.json")
    with pytest.raises(SpecError, match=r"spec.family: 'vit' is not known"):
        load_table(tmp_path / "table.json")
    assert load_table(tmp_path / "table.json", grid=grid).spec == grid.spec
    assert load_table(tmp_path / "table.json", families=[vit]).spec == grid.spec


def test_a_usage_file_names_edges_alone(tmp_path):
    from routespace.grid.usage import usage_from_json

    grid = RoutingGrid(GridSpec(layers=2, max_down=8, size="b0"))
    name = next(iter(grid.edges))
    with pytest.raises(SpecError):
        usage_from_json({"format": "routespace.usage/1", "edges": {name: "this:s"}}, grid)
    assert "this" not in sys.modules
