"""`routespace build`: the numbers against counting by hand, and the drawing."""

import json

import networkx as nx
import pytest

from routespace import Architecture, GridSpec, RoutingGrid, architecture_cost, file_names, load_recipe
from routespace.cli.render import big, draw, giga, log10


def build_json(cli, *args):
    return json.loads(cli("build", *args, "--json").assert_fine().out)


def test_the_grid_of_the_design(cli):
    data = build_json(cli, "--layers", 24, "--max-down", 32, "--outputs", "pyramid")
    assert data["layers"] == 24
    assert data["rates"] == [4, 8, 16, 32]
    assert data["nodes"] == 100
    assert data["edges"] == {"transformer": 96, "identity": 96, "patch_embed": 75}


def test_b2_staircase_macs_are_timms(cli):
    data = build_json(cli, "--preset", "pvt_v2_b2")
    assert data["macs"]["staircase"] == 4_026_734_592  # PVTv2-b2 at 224², by torch's counter


def test_numbers_agree_with_the_library(cli):
    shape = {"widths": (16, 32, 64), "heads": (1, 2, 4), "mlp_ratios": (4, 4, 2), "sr_ratios": (4, 2, 1)}
    grid = RoutingGrid(GridSpec(layers=3, max_down=16, **shape))
    options = []
    for name, values in shape.items():
        options += [f"--{name.replace('_', '-')}", ",".join(map(str, values))]
    data = build_json(cli, "--layers", 3, "--max-down", 16, *options)
    assert data["hash"] == grid.hash
    assert data["params"] == architecture_cost(Architecture.full(grid)).params
    assert data["macs"]["full"] == architecture_cost(Architecture.full(grid)).macs
    assert data["macs"]["min"] <= data["macs"]["median"] <= data["macs"]["max"]
    paths = sum(1 for node in grid.outputs for _ in nx.all_simple_edge_paths(grid.graph, grid.stem, node))
    assert data["paths"] == paths


def test_window_is_one_side_or_one_per_rate(cli):
    spec = GridSpec.preset("swin_v2_t", window=(16, 8, 8, 4))
    assert build_json(cli, "--preset", "swin_v2_t", "--window", "16,8,8,4")["hash"] == spec.hash
    assert build_json(cli, "--preset", "swin_v2_t", "--window", 8)["hash"] == GridSpec.preset("swin_v2_t").hash


def test_the_drawing_tells_the_gates_apart(cli):
    data = build_json(cli, "--layers", 3, "--max-down", 16)
    out = cli("build", "--layers", 3, "--max-down", 16).assert_fine().out
    assert f"full {giga(data['macs']['full'])} (and {giga(data['gates']['macs'])} in gates)" in out


def test_unused_nodes_are_counted(cli):
    data = build_json(cli, "--layers", 4, "--embed-layers", "1,2,3")
    assert data["nodes"] + data["removed_nodes"] == 5 * 4
    assert data["removed_nodes"] > 0


def test_written_grid_is_read_back(cli, tmp_path):
    file = tmp_path / "new" / "grid.json"
    first = build_json(cli, "--preset", "dit_b1", "--image-size", "64x96", "-o", file)
    assert RoutingGrid.from_json(json.loads(file.read_text())).hash == first["hash"]
    assert [path.name for path in file.parent.iterdir()] == ["grid.json"]
    cost = json.loads(cli("cost", file, "--json").assert_fine().out)
    stairs = json.loads(cli("cost", file, "--architecture", "staircase", "--json").assert_fine().out)
    assert stairs["macs"] == first["macs"]["staircase"]
    # `build` tells the gates apart, `cost` prices the full grid with them.
    assert first["gates"]["macs"] > 0
    for what, plain in (("params", first["params"]), ("macs", first["macs"]["full"])):
        assert cost[what] == plain + first["gates"][what]
        assert cost["parts"]["gates"][what] == first["gates"][what]


def test_budget_that_can_be_met(cli):
    assert build_json(cli, "--preset", "dit_b0", "--macs", "1.2G")["satisfiable"] is True
    assert "satisfiable" in cli("build", "--preset", "dit_b0", "--macs", "1.2G").assert_fine().out


def test_budget_above_the_dearest_is_satisfiable(cli):
    most = build_json(cli, "--preset", "dit_b0")["macs"]["max"]
    assert build_json(cli, "--preset", "dit_b0", "--macs", 2 * most)["satisfiable"] is True
    out = cli("build", "--preset", "dit_b0", "--macs", 2 * most).assert_fine().out
    assert "satisfiable (nothing static costs more)" in out


def test_budget_that_cannot_be_met_names_the_least(cli, tmp_path):
    least = build_json(cli, "--preset", "dit_b0")["macs"]["min"]
    file = tmp_path / "grid.json"
    result = cli("build", "--preset", "dit_b0", "--macs", "1K", "-o", file)
    result.assert_refused("macs", str(least))
    assert "not satisfiable" in result.out
    assert not file.exists()
    cli("build", "--preset", "dit_b0", "--macs", least).assert_fine()


def test_drawing_fits_the_terminal(cli, monkeypatch):
    for layers, columns in ((4, 80), (24, 80), (24, 100), (60, 100)):
        monkeypatch.setenv("COLUMNS", str(columns))
        out = cli("build", "--layers", layers).assert_fine().out
        assert max(map(len, out.splitlines())) <= columns


def test_drawing_of_a_small_grid(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    grid = RoutingGrid(GridSpec(layers=2, max_down=8, image_size=32))
    assert draw(grid).splitlines() == [
        "1/4  ●════════●════════●",
        "     ┃        ┃        ┃",
        "1/8  ●════════●════════▣",
    ]
    stairs = Architecture.staircase(grid)
    assert draw(grid, stairs).splitlines() == [
        "1/4  ●━━━━━━━━●        ·",
        "              ┃",
        "1/8  ·        ●━━━━━━━━▣",
    ]


@pytest.mark.parametrize(("count", "text"), [(7, "7"), (54962, "54 962"), (54962159616, "5.50e10")])
def test_counts_are_short(count, text):
    assert big(count) == text


def test_log10_of_huge_counts():
    assert log10(10**5000) == pytest.approx(5000)
    assert giga(4_026_734_592) == "4.027 G"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--max-down", 32], ["layers"]),
        (["--layers", "many"], ["layers"]),
        (["--layers", 0], ["layers"]),
        (["--layers", 4, "--max-down", 24], ["max_down", "power of two"]),
        (["--layers", 4, "--max-down", 64], ["widths", "5 rates"]),
        (["--layers", 4, "--widths", "16,32"], ["widths", "2 numbers", "4"]),
        (["--layers", 4, "--widths", "16,x"], ["widths", "numbers"]),
        (["--layers", 4, "--family", "swin_v2", "--window", "8,8"], ["window", "2 numbers", "4"]),
        (["--layers", 4, "--family", "swin_v2", "--window", "wide"], ["window", "numbers"]),
        (["--layers", 4, "--family", "swin_v2", "--window", "0"], ["window", "from 1 up"]),
        (["--layers", 4, "--window", "8,8,8,4"], ["window", "pvt_v2", "swin_v2"]),
        (["--layers", 4, "--size", "b1", "--heads", "1,2,5,7"], ["heads"]),
        (["--layers", 4, "--embed-layers", ","], ["embed_layers"]),
        (["--layers", 4, "--embed-layers", "9"], ["embed_layers", "0 to 4"]),
        (["--layers", 4, "--depths", "1,2"], ["depths", "4 layers"]),
        (["--layers", 4, "--image-size", "16"], ["image_size", "32"]),
        (["--layers", 4, "--image-size", "big"], ["image_size", "160x256"]),
        (["--layers", 4, "--outputs", "all"], ["outputs", "pyramid"]),
        (["--layers", 4, "--family", "resnet"], ["family", "pvt_v2"]),
        (["--layers", 4, "--size", "b9"], ["size", "b0"]),
        (["--preset", "dit_b9"], ["preset", "dit_b2"]),
        (["--preset", "dit_b2", "--macs", "12 apples"], ["macs", "12M"]),
        (["--colour", "red"], ["--colour"]),
    ],
)
def test_bad_input_is_one_line(cli, args, words):
    result = cli("build", *args)
    result.assert_refused(*words)


def test_memory_of_training_is_told(cli):
    words = ("build", "--layers", "2", "--max-down", "8", "--size", "b0", "--image-size", "64", "--memory")
    told = json.loads(cli(*words, "--json").assert_fine().out)["memory"]
    assert told["weights"] == pytest.approx(told["gradients"], rel=0.01)
    assert told["optimiser"] == 2 * told["gradients"]
    assert told["largest_batch"] * told["per_image"] < told["free"]
    printed = cli(*words).assert_fine().out
    assert "for each image of a batch" in printed
    assert "are free here, for batches of up to" in printed


def test_the_grid_of_a_recipe_is_built_and_changed(cli):
    recipe = load_recipe("digits_tiny")
    assert build_json(cli, "digits_tiny")["hash"] == recipe.grid.hash
    other = recipe.override({"grid.image_size": 96})
    assert build_json(cli, "digits_tiny", "--image-size", 96)["hash"] == other.grid.hash
    assert "size: digits_tiny is a whole grid already" in cli("build", "digits_tiny", "--size", "b1").err


def test_pictures_in_a_folder_do_not_hide_the_recipe_of_its_name(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    assert build_json(cli, "photos")["hash"] == load_recipe("photos").grid.hash
    (tmp_path / "photos" / file_names.RECIPE).touch()
    assert "photos: the run is not finished" in cli("build", "photos").err
