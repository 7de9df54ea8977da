"""Pictures: every format, every kind of architecture, nothing half-written."""

import os
import subprocess
import sys

import matplotlib
import matplotlib.image
import numpy as np
import pytest
import torch
from PIL import Image

from routespace.draw.answers import colour_of, drawn_objects, drawn_pixels
from routespace.draw.fonts import boxes_in, font_for, fonts_for
from routespace.draw.front import Point, draw_front, front_points
from routespace.draw.grid import draw_grid, used_share
from routespace.draw.tokens import TokenRow, computed_share, draw_rows, draw_tokens, fitted, token_rows
from routespace.errors import BundleError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.grid.usage import EdgeUsage
from routespace.nn.routing.routes import Routes
from routespace.nn.task_net import TaskNet

GRID = RoutingGrid(GridSpec(layers=3, max_down=16, image_size=64))


def usage_of(architecture):
    return {n: EdgeUsage(0.37, 0.5, 0.8) for n in architecture.edges if not n.endswith("identity")}


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_formats_are_deterministic(tmp_path, ending):
    full = Architecture.full(GRID)
    salt = matplotlib.rcParams["svg.hashsalt"]
    assert salt is None  # nobody has set it for us
    files = [draw_grid(full, usage_of(full), path=tmp_path / f"{i}.{ending}") for i in (1, 2)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert matplotlib.rcParams["svg.hashsalt"] is salt
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"1.{ending}", f"2.{ending}"]


def test_numbers_stand_on_few_edges_only(tmp_path):
    full = Architecture.full(GRID)
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        text = draw_grid(full, usage_of(full), path=tmp_path / "few.svg").read_text()
        large = Architecture.full(RoutingGrid(GridSpec(layers=12)))
        many = draw_grid(large, usage_of(large), path=tmp_path / "many.svg").read_text()
    decided = sum(not name.endswith("identity") for name in full.edges)
    assert text.count(">37<") == decided
    assert many.count(">37<") == 0
    assert "dashed: gated" in text


def test_static_and_pruned(tmp_path):
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        stairs = Architecture.staircase(GRID)
        text = draw_grid(stairs, path=tmp_path / "net.svg", title="My network").read_text()
    assert "My network" in text
    assert "pruned" in text
    assert "dashed" not in text


def test_a_picture_has_pixels(tmp_path):
    image = matplotlib.image.imread(draw_grid(Architecture.full(GRID), path=tmp_path / "a.png"))
    assert image.shape[0] > 300
    assert image[..., :3].std() > 0.05


def test_shares_of_a_row_add_up_to_what_came_by():
    full = Architecture.full(GRID)
    usage = usage_of(full)
    transformer = GRID.edges["l00_r04_transformer"]
    identity = GRID.edges[transformer.partner]
    assert used_share(transformer, usage) + used_share(identity, usage) == pytest.approx(0.8)
    assert used_share(identity, None) == 1


def test_pareto_is_what_nothing_beats():
    points = [Point("a", 1, 0.5), Point("b", 2, 0.4), Point("c", 2, 0.7), Point("d", 3, 0.7), Point("e", 4, 0.9)]
    front = front_points(points)
    beaten = {
        p.label
        for p in points
        if any(q.cost <= p.cost and q.score >= p.score and (q.cost, q.score) != (p.cost, p.score)
               for q in points)
    }  # fmt: skip
    assert {p.label for p in front} == {p.label for p in points} - beaten == {"a", "c", "e"}


def test_front_names_its_points(tmp_path):
    points = [Point(f"trial {i}", 1e6 * (i + 1), 0.1 * i) for i in range(5)] + [Point("bad", 9e6, 0.05)]
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        text = draw_front(points, path=tmp_path / "f.svg", references=[Point("plain", 2e6, 0.3)]).read_text()
    assert "MMACs" in text
    assert "trial 4" in text
    assert "plain" in text
    assert ">bad<" not in text


def test_bad_input(tmp_path):
    full = Architecture.full(GRID)
    with pytest.raises(SpecError, match=r"allowed: \.png"):
        draw_grid(full, path=tmp_path / "a.gif")
    with pytest.raises(SpecError, match="usage: 'nowhere'"):
        draw_grid(full, {"nowhere": EdgeUsage()}, path=tmp_path / "a.png")
    with pytest.raises(SpecError, match="none to draw"):
        draw_front([], path=tmp_path / "a.png")
    with pytest.raises(SpecError, match="'x' has"):
        draw_front([Point("x", float("nan"), 0.5)], path=tmp_path / "a.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot be written"):
        draw_grid(full, path=tmp_path / "file" / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def routed_pass(batch=3, size=(64, 72)):
    torch.manual_seed(0)
    net = TaskNet.classifier(Architecture.routed(GRID, "depth")).eval()
    images = torch.rand(batch, 3, *size)
    with torch.no_grad():
        return net.architecture, images, net(images, routes=Routes.random(net, images, keep=0.5)).routes


def test_the_share_of_computed_tokens_is_the_routes_own():
    architecture, images, routes = routed_pass()
    for rate in architecture.spec.rates:
        names = [n for n in architecture.edges if n.endswith(f"r{rate:02d}_transformer")]
        hw = (-(-images.shape[2] // rate), -(-images.shape[3] // rate))
        share = computed_share(architecture, routes, rate, hw)
        assert share.shape == (3, *hw)
        kept = sum(routes[name].kept.float().reshape(3, *hw) for name in names) / len(names)
        assert np.array_equal(share, kept.double().numpy())
    name = "l00_r04_transformer"  # the only one at its rate on this path
    without = Routes({n: r for n, r in routes.items() if n != name})
    assert (computed_share(architecture, without, 4, (16, 18)) == 1).all()  # it computed everything


def test_tokens_are_drawn_and_bad_input_is_refused(tmp_path):
    architecture, images, routes = routed_pass()
    path = draw_tokens(architecture, images, routes, path=tmp_path / "tokens.png", labels=["a", "b", "c"])
    assert matplotlib.image.imread(path).shape[0] > 300
    with pytest.raises(SpecError, match="every token"):
        draw_tokens(architecture, images, Routes({}), path=tmp_path / "no.png")
    with pytest.raises(SpecError, match="same batch"):
        draw_tokens(architecture, images[:2], routes, path=tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()


@pytest.mark.parametrize("channels", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_grey_and_transparent_images_are_drawn_as_they_are_seen(tmp_path, channels):
    architecture, images, routes = routed_pass()
    images = torch.full_like(images[:, :1], 0.25).repeat(1, channels, 1, 1)
    label = "$\\nosuch$ at 5"
    path = draw_tokens(architecture, images, routes, path=tmp_path / "tokens.svg", labels=[label])
    assert label in path.read_text()
    picture = matplotlib.image.imread(draw_tokens(architecture, images, routes, path=tmp_path / "tokens.png"))
    seen = 0.25 if channels == 1 else 0.25 * 0.25 + 0.75  # a quarter of it covers white
    assert (np.abs(picture[..., :3] - seen) < 0.01).all(-1).sum() > 30_000  # the first column is the images


@pytest.mark.slow
def test_another_process_draws_the_same_file(tmp_path):
    code = (
        "import sys; from routespace import Architecture, GridSpec, RoutingGrid\n"
        "from routespace.draw.grid import draw_grid\n"
        "draw_grid(Architecture.full(RoutingGrid(GridSpec(layers=3, max_down=16))), path=sys.argv[1])\n"
    )
    pictures = [tmp_path / f"{seed}.svg" for seed in (1, 2)]
    for seed, picture in enumerate(pictures):
        subprocess.run(
            [sys.executable, "-c", code, str(picture)], env=os.environ | {"PYTHONHASHSEED": str(seed)}, check=True
        )
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_names_of_any_script_are_legible_and_quiet(tmp_path, recwarn, caplog):
    """A font that has no letters of a script draws one and the same box for each of them."""
    assert font_for("Кошка").family == "DejaVu Sans"
    usual, second = fonts_for("𝒜")  # matplotlib brings another font with that
    assert usual.family == "DejaVu Sans"
    assert font_for("𝒜") == second
    assert boxes_in(["ant", "Кошка 𝒜", "e\u0301", "\U000f1234\u200d"]) == "𝒜\U000f1234"  # a text has one font here
    assert boxes_in(["Кошка 𝒜", "\U000f1234"], several=True) == "\U000f1234"
    shares, picture = {4: np.ones((2, 2))}, np.zeros((8, 8, 3))
    names = ("𝒜", "𝒞", "狗", "ﾾ")
    drawn = [draw_rows([TokenRow(picture, shares, name)], path=tmp_path / "a.png").read_bytes() for name in names]
    assert drawn[0] != drawn[1]
    box = np.array([[0, 0, 40, 30]])
    words = [drawn_objects(Image.new("RGB", (64, 48)), box, [word], [0]) for word in ("Кошка", "Мышка")]
    assert words[0].tobytes() != words[1].tobytes()
    assert not recwarn.list
    assert not caplog.records


@pytest.mark.parametrize("size", [(64, 48), (6, 300), (300, 6), (1, 1)])
def test_names_of_pixel_classes_are_below_each_other_whole_however_long(size):
    """None covers another or runs out of the picture, be it as narrow as it likes."""
    there, names = np.zeros((size[1], size[0]), np.uint8), {2: "a name " * 40 + "here", 5: "water", 9: "sky"}

    def grounds(explained):
        """How many pixels below the picture are of each class's colour, and rows of pixels below it."""
        whole = drawn_pixels(Image.new("RGB", size), there, explained)
        below = np.asarray(whole)[size[1] * max(1, -(-480 // max(size))) :]
        return {number: (below == colour_of(number)).all(-1).sum() for number in explained}, len(below)

    together, rows = grounds(names)
    alone = [grounds({number: name}) for number, name in names.items()]
    assert together == {number: count for part, _ in alone for number, count in part.items()}
    assert rows == sum(height for _, height in alone)
    assert min(together.values()) > 100


@pytest.mark.parametrize("size", [(64, 48), (6, 300)])
def test_the_score_stands_behind_a_long_name(size):
    box = np.array([[0, 20, 5, 40]])
    drawn = [drawn_objects(Image.new("RGB", size), box, ["name " * 40 + score], [0]) for score in ("12%", "98%")]
    assert drawn[0].tobytes() != drawn[1].tobytes()
    assert drawn[0].size == drawn[1].size


def test_a_mask_colours_what_it_covers_and_no_more():
    mask = np.zeros((1, 48, 64), bool)
    mask[0, 10:20, 30:50] = True
    box = np.array([[0, 0, 1, 1]])
    picture, bare = Image.new("RGB", (64, 48), "white"), np.zeros((1, 48, 64), bool)
    with_mask, without = (np.asarray(drawn_objects(picture, box, [""], [0], one)) for one in (mask, bare))
    changed = (with_mask != without).any(-1)
    assert np.array_equal(changed, mask[0].repeat(8, 0).repeat(8, 1))
    mixed = 0.55 * 255 + 0.45 * np.array(colour_of(0))
    assert np.abs(with_mask[changed] - mixed).max() <= 1


def test_images_of_several_sizes_are_rows_of_one_picture(tmp_path):
    found = [routed_pass(1, (64, 72)), routed_pass(2, (32, 96))]
    rows = [row for passed in found for row in token_rows(*passed, labels=["first"])]
    assert [row.picture.shape for row in rows] == [(64, 72, 3), (32, 96, 3), (32, 96, 3)]
    assert [row.label for row in rows] == ["first", "first", ""]
    for rate, share in rows[2].shares.items():
        architecture, _, routes = found[1]
        assert np.array_equal(
            share, computed_share(architecture, routes, rate, (-(-32 // rate), -(-96 // rate)))[1]
        )
    whole = draw_rows(rows, path=tmp_path / "tokens.png")
    alone = draw_rows(rows[:1], path=tmp_path / "alone.png")
    assert matplotlib.image.imread(whole).shape[0] > 2 * matplotlib.image.imread(alone).shape[0]


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        ("7 → 1", "7 → 1"),
        ("twenty-four characters ab", "twenty-four…haracters ab"),
        ("animals-cats-lion → animals-bear", "animals-cats-lion\n→ animals-bear"),
        (
            "animals-birds-chicken_profile → animals-mammals-european-bear",
            "animals-bir…cken_profile\n→ animals-m…uropean-bear",
        ),
        ("", ""),
    ],
)
def test_long_names_do_not_reach_into_the_next_picture(label, wanted):
    assert fitted(label) == wanted
    assert all(len(line) <= 24 for line in fitted(label).splitlines())
