"""Latency tables: what is refused, what is predicted, and a short measurement."""

import json
import math
import random
from itertools import product

import numpy as np
import pytest
import torch

from routespace.deploy.latency.fit import fit_factors
from routespace.deploy.latency.parts import edge_key, part_keys
from routespace.deploy.latency.profiling import median_ms, profile
from routespace.deploy.latency.table import LatencyTable, load_table, mismatches, predict, save_table, table_prices
from routespace.errors import BundleError, GridError, SpecError
from routespace.grid.architecture import Architecture
from routespace.grid.gate_spec import GateSpec
from routespace.grid.graph import RoutingGrid
from routespace.grid.sample import sample_static
from routespace.grid.select import select
from routespace.grid.spec import GridSpec
from routespace.grid.usage import EdgeUsage
from routespace.nn.families.pvt_v2_block import PvtBlock
from routespace.nn.families.swin_v2 import SwinBlock
from routespace.nn.task_net import TaskNet

FIELDS = {"layers": 3, "max_down": 16, "depths": (1, 2, 1), "widths": (8, 16, 24), "heads": (1, 2, 3),
          "mlp_ratios": (2.0,) * 3, "sr_ratios": (4, 2, 1), "image_size": 32, "num_classes": 3}  # fmt: skip
GRID = RoutingGrid(GridSpec.parse(FIELDS))


@pytest.fixture(scope="module")
def table():
    return profile(GRID, rounds=3, subnets=6, keeps=(0.5,), clock="cpu")


@pytest.fixture
def saved(table, tmp_path):
    save_table(table, tmp_path / "table.json")
    return tmp_path / "table.json"


def test_every_part_is_measured_once(table):
    assert {part.key for part in table.parts} == part_keys(GRID)
    assert all(part.ms > 0 for part in table.parts)
    halves = [part for part in table.parts if part.keep == 0.5]
    assert {part.kind for part in halves} == {"transformer"}
    assert len(table.subnets) == 6
    assert table.device.versions["torch"] == torch.__version__


@pytest.mark.filterwarnings("error::UserWarning")
def test_round_trip_without_a_warning_on_the_same_machine(table, saved):
    assert load_table(saved, grid=GRID) == table
    assert mismatches(table) == []


@pytest.mark.filterwarnings("error::UserWarning")
def test_other_threads_are_no_mismatch_but_in_the_table(table, saved):
    assert table.device.threads == 1
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if before == 1 else 1)
        assert load_table(saved).device.threads == 1
    finally:
        torch.set_num_threads(before)
    data = json.loads(saved.read_text())
    data["device"]["threads"] = 64
    saved.write_text(json.dumps(data))
    assert load_table(saved).device.threads == 64


def test_another_device_or_version_warns(table, saved):
    data = json.loads(saved.read_text())
    data["device"]["name"] = "Abacus 3"
    data["device"]["versions"]["torch"] = "1.0"
    saved.write_text(json.dumps(data))
    with pytest.warns(UserWarning, match="may not hold here") as caught:
        load_table(saved)
    messages = [str(warning.message) for warning in caught]
    assert any("Abacus 3" in message for message in messages)
    assert any("torch: the table is of 1.0" in message for message in messages)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depths": 1}, "latency table: it is of grid"),
        ({"image_size": 64}, "latency table: it was measured on images of 32x32 px, not of 64x64 px"),
    ],
)
def test_another_grid_is_refused(table, saved, changes, words):
    other = RoutingGrid(GridSpec.parse(FIELDS | changes))
    for call in (
        lambda: load_table(saved, grid=other),
        lambda: predict(table, Architecture.full(other)),
        lambda: table_prices(table, other),
    ):
        with pytest.raises(GridError, match=words):
            call()


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "fast", None])
def test_a_bad_time_is_one_line(saved, value):
    data = json.loads(saved.read_text())
    data["parts"][2]["ms"] = value
    saved.write_text(json.dumps(data))
    with pytest.raises(SpecError, match=r"parts\.2\.ms") as caught:
        load_table(saved)
    assert "\n" not in str(caught.value)


def test_a_missing_part_a_changed_spec_and_other_files_are_refused(saved, tmp_path):
    data = json.loads(saved.read_text())
    embeds = [part for part in data["parts"] if part["kind"] != "patch_embed"]
    twice = next(part for part in data["parts"] if (part["depth"], part["keep"]) == (2, 0.5)) | {"ms": 7.0}
    for change, message in (
        ({"parts": embeds}, "patch_embed at rate 4 is missing"),
        (
            {"parts": [*data["parts"], twice]},
            r"^\S+: parts: transformer at rate 4 with 2 blocks, keep 0.5 is there 2",
        ),
        ({"grid": "0" * 12}, "not the hash"),
        ({"colour": "red"}, "colour: unknown field"),
        ({"batch": 0}, "batch"),
    ):
        saved.write_text(json.dumps(data | change))
        with pytest.raises(SpecError, match=message) as caught:
            load_table(saved)
        assert "\n" not in str(caught.value)
    for content in ("", "[]", "{}", "[" * 100_000):
        saved.write_text(content)
        with pytest.raises(SpecError):
            load_table(saved)
    with pytest.raises(SpecError, match="cannot be read"):
        load_table(tmp_path / "nowhere.json")


def test_a_table_that_cannot_be_written(table, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot be written"):
        save_table(table, tmp_path / "file" / "table.json")


def synthetic(table, seed=0):
    """The table with times of our own choice, so that sums are known."""
    rng = random.Random(seed)
    parts = tuple(part.model_copy(update={"ms": rng.uniform(1, 2) * part.keep}) for part in table.parts)
    return LatencyTable(**(dict(table) | {"parts": parts, "factors": {}, "offset_ms": 0.0, "subnets": ()}))


def test_prediction_is_the_sum_of_the_parts(table):
    table = synthetic(table)
    names = ["l00_r04_transformer", "l01_r04_patch_embed", "l01_r04_transformer", "l02_r04_patch_embed",
             "l01_r08_transformer", "l02_r08_patch_embed", "l02_r16_identity"]  # fmt: skip
    architecture = Architecture.static(GRID.spec, names)
    time = {(p.kind, p.rate, p.depth): p.ms for p in table.parts if p.keep == 1}
    expected = sum(
        time[key]
        for key in (
            ("stem", 0, 0), ("transformer", 4, 1), ("patch_embed", 4, 0), ("transformer", 4, 2),
            ("patch_embed", 4, 0), ("transformer", 8, 2), ("merge", 8, 0), ("patch_embed", 8, 0),
            ("output", 16, 0), ("head", 0, 0),
        )
    )  # fmt: skip
    assert predict(table, architecture) == pytest.approx(expected)
    half = next(p.ms for p in table.parts if (p.kind, p.rate, p.depth, p.keep) == ("transformer", 4, 1, 0.5))
    whole = time["transformer", 4, 1]
    less = max(0.0, half - max(0.0, whole - half) / 2)  # the line from 1 to 0.5 goes on to 0.25
    for keep, ms in ((0.0, 0.0), (0.25, less), (0.5, half), (0.75, (half + whole) / 2)):
        routed = predict(table, architecture, {names[0]: EdgeUsage(tokens=keep)})
        assert routed == pytest.approx(expected - whole + ms)


def test_prices_for_select_bound_the_prediction(table):
    prices = table_prices(table, GRID)
    cheapest, dearest = (
        select(GRID, {name: sign * price for name, price in prices.edges.items()}) for sign in (-1, 1)
    )
    limit = (predict(table, cheapest) + predict(table, dearest)) / 2
    worth = dict.fromkeys(GRID.edges, 1.0)
    found = select(GRID, worth, limits={"latency_ms": limit}, measured={"latency_ms": prices})
    assert predict(table, found) <= limit + 1e-9


def test_calibration_finds_the_factors_that_made_the_times(table):
    plain = synthetic(table)
    factors = {"transformer_r04": 1.15, "transformer_r08": 0.9, "patch_embed_r04": 1.05}
    truth = plain.model_copy(update={"factors": factors, "offset_ms": 0.5})
    known, fresh = sample_static(GRID, 30, seed=0), sample_static(GRID, 40, seed=1)
    found = fit_factors(plain, {a: predict(truth, a) for a in known})
    errors = [abs(predict(found, a) / predict(truth, a) - 1) for a in fresh]
    before = [abs(predict(plain, a) / predict(truth, a) - 1) for a in fresh]
    assert max(errors) < 0.02
    assert np.median(errors) < 0.2 * np.median(before)
    assert fit_factors(plain, {}) == plain


def test_measuring_counts_calls_and_cancels_a_slow_round():
    calls = []
    works = [lambda: calls.append("a"), lambda: calls.append("b")]
    times = median_ms(works, rounds=3, clock="wall", device=torch.device("cpu"))
    assert len(times) == 2
    assert all(time >= 0 for time in times)
    assert calls.count("a") > 3


SWIN = RoutingGrid(GridSpec.parse(FIELDS | {"family": "swin_v2", "sr_ratios": None, "window": (8, 4, 2)}))


KINDS = list(product(["pvt_v2", "swin_v2"], ["float32", "bfloat16"], [1, 2]))
QUICK = ("pvt_v2", "float32", 1), ("swin_v2", "float32", 2)  # a table in bfloat16 is made below


@pytest.mark.parametrize(
    ("family", "dtype", "batch"),
    [pytest.param(*kind, marks=[] if kind in QUICK else pytest.mark.slow) for kind in KINDS],
)
def test_profile_of_every_kind_is_a_table_that_predicts(family, dtype, batch, tmp_path):
    grid = GRID if family == "pvt_v2" else SWIN
    keeps = (0.25, 0.5, 1.0)
    table = profile(grid, dtype=dtype, batch=batch, keeps=keeps, rounds=3, subnets=4, clock="cpu")
    assert (table.dtype, table.batch, table.device.threads, len(table.subnets)) == (dtype, batch, 1, 4)
    assert {part.key for part in table.parts} == part_keys(grid)
    for key in part_keys(grid):
        points = [keep for keep, _ in table.curve(key)]
        assert points == (list(keeps) if key.kind == "transformer" else [1.0])
    assert all(part.ms > 0 for part in table.parts)
    save_table(table, tmp_path / "table.json")
    assert load_table(tmp_path / "table.json", grid=grid) == table
    full, stairs = Architecture.full(grid).opened(), Architecture.staircase(grid)
    assert 0 < predict(table, stairs) < predict(table, full)
    half = dict.fromkeys(grid.edges, EdgeUsage(tokens=0.5))
    assert predict(table, full, half) > 0


@pytest.mark.parametrize(
    "gates", [pytest.param(None, marks=pytest.mark.slow), GateSpec()], ids=["static", "gated"]
)
@pytest.mark.filterwarnings("error::UserWarning")
def test_a_table_is_of_the_device_that_was_asked_for(gates, device, tmp_path):
    table = profile(GRID, device=device, gates=gates, rounds=3, subnets=3, dtype="bfloat16")
    assert table.device.kind == device.type
    assert table.device.threads == (1 if device.type == "cpu" else 0)
    assert all(part.ms > 0 for part in table.parts)
    save_table(table, tmp_path / "table.json")
    assert load_table(tmp_path / "table.json", grid=GRID) == table


def test_shifted_windows_are_measured_where_a_network_has_them(monkeypatch):
    """With one block a column, every second column has shifted windows alone."""
    grid = RoutingGrid(GridSpec.parse(FIELDS | {"family": "swin_v2", "sr_ratios": None, "window": 4, "depths": 1,
                                                "image_size": 64}))  # fmt: skip
    net, seen = TaskNet.classifier(Architecture.full(grid)), []
    for name, edge in grid.edges.items():
        if edge.kind == "transformer":
            assert edge_key(grid.spec, edge).phase == net.edges[name].blocks[0].shifted == edge.layer % 2
    real = SwinBlock.forward
    monkeypatch.setattr(
        SwinBlock, "forward", lambda self, *x, **y: seen.append(self.shifted) or real(self, *x, **y)
    )
    table = profile(grid, rounds=3, subnets=0, clock="cpu")
    assert {part.key for part in table.parts} == part_keys(grid)
    assert {key.phase for key in part_keys(grid) if key.kind == "transformer"} == {0, 1}
    assert set(seen) == {False, True}
    slow = [part.model_copy(update={"ms": 100.0 if part.phase else 1.0}) for part in table.parts]
    times = table_prices(table.model_copy(update={"parts": tuple(slow), "factors": {}}), grid).edges
    assert {ms for name, ms in times.items() if name.startswith("l01") and name.endswith("transformer")} == {100.0}
    assert all(ms < 100 for name, ms in times.items() if not name.startswith("l01"))


def test_compiled_parts_are_the_blocks_that_a_network_compiles(monkeypatch):
    compiled = []
    monkeypatch.setattr(PvtBlock, "forward", lambda self, x, *_, **__: compiled.append(self.compiled) or x)
    profile(GRID, compiled=True, rounds=3, subnets=1, clock="cpu")
    assert compiled
    assert all(compiled)
    with pytest.raises(SpecError, match="no compiled steps"):
        profile(SWIN, compiled=True, rounds=3, subnets=1, clock="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": 9999}, r"threads: 9999 are more than the \d+ cores of this machine"),
        ({"device": "abacus"}, "device: 'abacus'"),
        ({"device": "cuda:99"}, "device: 'cuda:99' is not there"),
        ({"batch": 0}, "batch 0"),
        ({"rounds": 1}, "rounds 1"),
        ({"keeps": (0.0,)}, "keeps"),
        ({"clock": "cpu", "threads": 2}, "clock"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(SpecError, match=message):
        profile(GRID, **arguments)
