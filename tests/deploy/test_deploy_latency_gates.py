"""Gates in a latency table: what is measured of them, what is predicted with them, and what is said without."""

import json

import pytest
from thinning import thinned

from routespace.deploy.latency.parts import GATES, PartKey, PartTime, part_keys
from routespace.deploy.latency.profiling import ROUTED_KEEPS, profile
from routespace.deploy.latency.table import LatencyTable, load_table, predict, save_table
from routespace.errors import SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.grid.usage import EdgeUsage

FIELDS = {"layers": 2, "max_down": 16, "widths": (8, 16, 24), "heads": (1, 2, 3), "mlp_ratios": (2.0,) * 3,
          "sr_ratios": (4, 2, 1), "image_size": 32, "num_classes": 3}  # fmt: skip
GRID = RoutingGrid(GridSpec.parse(FIELDS))
SUPERNET = Architecture.full(GRID)
QUICK = {"rounds": 3, "subnets": 0, "clock": "cpu"}


@pytest.fixture(scope="module")
def table():
    return profile(GRID, gates=GateSpec(threshold=0.4), **(QUICK | {"subnets": 3}))


def test_each_gate_is_measured_once_and_edges_at_more_shares(table):
    assert {part.key for part in table.parts} == part_keys(GRID, GateSpec())
    gates = part_keys(GRID, GateSpec()) - part_keys(GRID)
    assert gates == {
        *(PartKey("row_gate", rate) for rate in (4, 8, 16)),
        PartKey("column_gate", 4),
        PartKey("column_gate", 8),
    }
    assert all(table.ms(key) > 0 for key in gates)
    assert [keep for keep, _ in table.curve(PartKey("transformer", 4, 1))] == list(ROUTED_KEEPS)
    assert table.gates == GateSpec(threshold=0.4)
    assert GATES not in table.factors  # static subnets tell nothing about gates


KINDS = [
    {"rows": "layer", "columns": "layer", "kind": "sigmoid"},
    {"rows": "window", "columns": "token", "kind": "tanh"},
    {"capacity": True, "keys": "kept"},
    {"selection": "random", "rows": "image"},
    {"selection": "attention", "early_stop": True},
    {"source": "map", "opening": "share", "skipped": "mlp"},
    {"source": "map", "opening": "share", "scout": 2},
]


@pytest.mark.parametrize(*thinned(dtype=["float32", "bfloat16"], gates=KINDS), ids=str)
def test_gates_of_every_kind_are_measured(gates, dtype):
    spec = GateSpec(**gates)
    table = profile(GRID, gates=spec, dtype=dtype, **QUICK)
    whole = spec.rows in ("layer", "image")  # such rows compute whole images: a straight line
    keeps = {"token": list(ROUTED_KEEPS), "window": [0.25, 0.5, 0.75, 1.0]}  # of four windows none is a tenth
    measured = [keep for keep, _ in table.curve(PartKey("transformer", 8, 1))]
    assert measured == ([1.0] if whole else keeps[spec.rows])
    assert predict(table, SUPERNET, gates=spec) > predict(table, SUPERNET.opened())


def test_a_share_below_one_token_is_left_out():
    grid = RoutingGrid(GridSpec.parse(FIELDS | {"image_size": 16}))  # one token at rate 16, four at rate 8
    table = profile(grid, gates=GateSpec(), **QUICK)
    assert [keep for keep, _ in table.curve(PartKey("transformer", 16, 1))] == [1.0]
    assert [keep for keep, _ in table.curve(PartKey("transformer", 8, 1))] == [0.25, 0.5, 0.75, 1.0]


def measured_at(table, key, points):
    """The table with the points of one part replaced, and no factors."""
    parts = [part for part in table.parts if part.key != key]
    parts += [PartTime(**key._asdict(), keep=keep, ms=ms) for keep, ms in points.items()]
    return LatencyTable(**(dict(table) | {"parts": parts, "factors": {}}))


@pytest.mark.parametrize(
    ("points", "found"),
    [
        ({0.1: 4.0, 0.3: 6.0, 1.0: 13.0}, {0.0: 0.0, 0.02: 3.2, 0.1: 4.0, 0.2: 5.0, 0.65: 9.5, 1.0: 13.0}),
        ({0.1: 4.0, 0.2: 3.0, 1.0: 11.0}, {0.0: 0.0, 0.05: 4.0, 0.15: 3.5, 0.6: 7.0}),  # noise of close points
        (
            {0.25: 1.0, 0.5: 4.0, 1.0: 8.0},
            {0.0: 0.0, 0.1: 0.0, 0.2: 0.4, 0.75: 6.0},
        ),  # nobody takes less than none
        ({1.0: 8.0}, {0.0: 0.0, 0.25: 2.0, 1.0: 8.0}),
    ],
    ids=["rising", "noise", "steep", "whole"],
)
def test_few_tokens_take_what_the_least_measured_shares_point_to(table, points, found):
    key = PartKey("transformer", 4, 1)
    told = measured_at(table, key, points)
    assert {keep: told.ms(key, keep) for keep in found} == pytest.approx(found)


def timed(table, gate_ms):
    """The table with every gate at `gate_ms`, and all else at 1 ms a part."""
    parts = [part.model_copy(update={"ms": gate_ms if "gate" in part.kind else 1.0}) for part in table.parts]
    return LatencyTable(**(dict(table) | {"parts": parts, "factors": {}, "offset_ms": 0.0, "subnets": ()}))


@pytest.mark.filterwarnings("error::UserWarning")
def test_each_gated_edge_pays_its_gate_by_what_was_asked(table):
    free, dear = timed(table, 0.0), timed(table, 10.0)
    rows, columns = len(GRID.of_kind("transformer")), len(GRID.of_kind("patch_embed"))
    assert predict(dear, SUPERNET) - predict(free, SUPERNET) == pytest.approx(10 * (rows + columns))
    assert predict(dear, SUPERNET.opened()) == predict(free, SUPERNET.opened())
    depth = Architecture.routed(GRID, "depth")  # rows of the staircase alone
    gated = [name for name in depth.gated_edges if name.endswith("transformer")]
    assert predict(dear, depth) - predict(free, depth) == pytest.approx(10 * len(gated))
    usage = {gated[0]: EdgeUsage(asked=0.25)}
    assert predict(dear, depth) - predict(dear, depth, usage) == pytest.approx(7.5)


def test_an_edge_takes_its_time_for_the_images_that_it_computes(table):
    name = "l00_r04_transformer"

    def added(usage):
        return predict(table, SUPERNET, {name: usage}) - predict(table, SUPERNET, {name: EdgeUsage(0, 0, 1)})

    assert added(EdgeUsage(tokens=0.5)) == pytest.approx(table.ms(PartKey("transformer", 4, 1), 0.5))
    assert added(EdgeUsage(tokens=0.25, images=0.5)) == pytest.approx(
        table.ms(PartKey("transformer", 4, 1), 0.5) / 2
    )
    assert added(EdgeUsage(tokens=0.5, images=0.5)) == pytest.approx(table.ms(PartKey("transformer", 4, 1)) / 2)


def test_what_a_table_cannot_tell_of_gates_is_said(table):
    plain = profile(GRID, **QUICK)
    assert plain.gates is None
    assert [keep for keep, _ in plain.curve(PartKey("transformer", 4, 1))] == [1.0]
    with pytest.warns(UserWarning, match="holds no gates"):
        predict(plain, SUPERNET)
    with pytest.warns(UserWarning, match=r"another kind \(rows, columns\)"):
        predict(table, SUPERNET, gates=GateSpec(rows="layer", columns="layer"))


@pytest.mark.filterwarnings("error::UserWarning")
def test_no_warning_where_there_is_nothing_to_tell(table):
    predict(profile(GRID, **QUICK), SUPERNET.opened())
    predict(table, SUPERNET, gates=GateSpec(threshold=0.7, openness=0.5))  # these take no time


def test_files_with_and_without_gates(table, tmp_path):
    path = tmp_path / "table.json"
    save_table(table, path)
    assert load_table(path, grid=GRID) == table
    data = json.loads(path.read_text())
    # Without the field, as tables were before there were gates in them.
    older = {name: value for name, value in data.items() if name != "gates"}
    older["parts"] = [part for part in data["parts"] if "gate" not in part["kind"]]
    path.write_text(json.dumps(older))
    assert load_table(path).gates is None
    path.write_text(json.dumps(data | {"parts": older["parts"]}))
    with pytest.raises(SpecError, match="column_gate at rate 4 is missing"):
        load_table(path)
    path.write_text(json.dumps(data | {"gates": {"rows": "tokens"}}))
    with pytest.raises(SpecError, match=r"gates\.rows"):
        load_table(path)
