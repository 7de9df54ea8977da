"""cli/study_view.py and `search`: what people see of a study, while it runs and afterwards."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from tiny_grid import TINY_GRID
from train_photos import photos

from routespace.cli.search import as_asked, varied_anyway
from routespace.cli.study_view import TrialWatch, draw_study, show_study
from routespace.cli.watch import Watcher
from routespace.errors import DataError
from routespace.recipes import load_recipe
from routespace.search import run_study
from routespace.search.candidate import RecipeCandidate
from routespace.search.evaluator import Workplace
from routespace.train.progress import Progress
from routespace.train.recipe.recipe import Recipe

SPACE = {"budget.ratio": [0.5, 0.7, 0.9]}


def recipe(**search: object) -> Recipe:
    data = {"name": "tiny", "grid": TINY_GRID, "data": {"digit_px": [8, 24]}}
    return Recipe.parse(data | {"search": {"space": SPACE, "trials": 2} | search})


def evaluated(candidate: RecipeCandidate, place: Workplace) -> dict[str, float]:
    """The second trial costs 15 % more than its budget."""
    place.report(Progress(stage="train", epoch=1, epochs=4, step=3, steps=10, eta_s=90.0))
    target = candidate.planned["macs"]
    counted = target * (1.15 if place.folder.name == "0001" else 1.0)
    found = {"accuracy": 0.5 + 1e-7 * counted, "latency_ms": 1e-6 * counted, "macs": counted}
    return found | {"counted_macs": counted, "target_macs": target}


def test_a_study_is_never_silent(tmp_path: Path) -> None:
    lines = list[str]()
    run_study(recipe(), tmp_path, evaluator=evaluated, progress=TrialWatch(Watcher(lines.append, quiet_s=0)))
    assert lines[0] == "trial 0 [1/2] starts: budget.ratio=0.5"
    assert lines[1].startswith("trial 0 train 1/4  step 3/10  1:30 left")
    assert lines[2].startswith("trial 0 [1/2] finished: accuracy 5")
    assert "budget missed" not in lines[2]
    assert lines[3].startswith("trial 1 [2/2] starts: ")
    assert "budget missed by +15 %" in lines[-1]


def test_a_missed_budget_is_marked_in_table_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run_study(recipe(), tmp_path / "study", evaluator=evaluated)
    assert [trial.off_budget for trial in record.trials] == [None, pytest.approx(0.15)]
    show_study(record)
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert rows["trial"].split() == ["trial", "accuracy", "macs", "budget", "budget.ratio"]
    assert "met" in rows["0"]
    assert "+15 %" in rows["1"]
    assert "trial 1 (budget +15 %)" in picture(record, tmp_path)
    met = run_study(recipe(), tmp_path / "met", evaluator=evaluated, trials=1)
    show_study(met)
    assert "met" not in capsys.readouterr().out  # no column that says nothing


def picture(record: object, folder: Path) -> str:
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        drawn = draw_study(record, folder / "front.svg")  # type: ignore[arg-type]
    assert drawn is not None
    return drawn.read_text()


def test_the_picture_is_of_the_studys_own_objectives(tmp_path: Path) -> None:
    timed = run_study(recipe(objectives=["latency_ms", "accuracy"]), tmp_path / "a", evaluator=evaluated)
    assert "latency_ms, ms" in picture(timed, tmp_path)
    alone = run_study(recipe(objectives=["accuracy"]), tmp_path / "b", evaluator=evaluated)
    assert draw_study(alone, tmp_path / "none.png") is None


@pytest.mark.parametrize(
    ("search", "trials", "told"),
    [
        (
            {"limits": {"macs": 1}},
            2,
            r"no front: no trial keeps the limits, so none was trained; trial \d comes closest and passes macs",
        ),
        ({"space": {"grid.depths": [[1, 2, 1]]}}, 1, "no front: no trial has finished; the last one: .*depths"),
    ],
)
def test_a_front_without_members_is_no_front(
    cli, tmp_path: Path, search: dict[str, object], trials: int, told: str
) -> None:
    (tmp_path / "tiny.yaml").write_text(json.dumps(recipe(**search).to_data()))
    given = "search", tmp_path / "tiny.yaml", "--trials", trials, "--out", tmp_path / "s"
    cli(*given, "--csv", tmp_path / "tiny.yaml" / "a.csv").assert_refused("tiny.yaml")
    result = cli(*given, "--csv", tmp_path / "trials.csv").assert_fine()
    out = " ".join(result.out.split())
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["pruned"] * len(rows)
    assert all(row["reason"] for row in rows)
    assert re.search(told, out), out
    assert "Pareto front" not in out
    assert "take one" not in out
    assert not (tmp_path / "s/front.png").exists()


def test_a_study_of_failures_is_an_error_and_can_be_repeated(
    cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken data ends it at once; the same command goes on when that is mended."""
    (tmp_path / "tiny.yaml").write_text(json.dumps(recipe().to_data()))
    command = ("search", tmp_path / "tiny.yaml", "--out", tmp_path / "s")

    def broken(*_: object, **__: object) -> dict[str, float]:
        raise DataError("cat.jpg: is no image")

    monkeypatch.setattr("routespace.search.problem.train_candidate", broken)
    cli(*command).assert_refused("every trial would meet this: cat.jpg: is no image")

    def mended(candidate: RecipeCandidate, place: Workplace, **_: object) -> dict[str, float]:
        return evaluated(candidate, place)

    monkeypatch.setattr("routespace.search.problem.train_candidate", mended)
    out = cli(*command, "--no-retry-failed").assert_fine().out
    assert "1 finished, 1 failed" in out
    assert "the same command tries the failed ones again" in out
    out = cli(*command).assert_fine().out
    assert "tiny: 2 finished" in out
    assert f"take one: routespace extract {tmp_path / 's'} --trial " in out


def test_a_search_tells_its_classes_and_refuses_other_ones_before_it_begins(cli, tmp_path):
    photos(tmp_path / "photos", count=12)
    photos(tmp_path / "photos", count=5, split="val")
    few = ("--trials", 1, "--data", tmp_path / "photos", "--set", "train.epochs=1", "--set", "search.overrides={}")
    done = cli("search", "digits_tiny", *few, "--set", "grid.num_classes=4", "--out", tmp_path / "wrong")
    done.assert_refused("grid.num_classes: 4", "3 classes", "grid.num_classes=3")
    small = ("--set", "train.batch_size=4", "--set", "train.warmup_epochs=0")
    space = (
        "--set",
        "search.space={budget.ratio: [0.7]}",
        "--set",
        "grid.layers=2",
        "--set",
        "grid.embed_layers=all",
    )
    out = cli("search", "digits_tiny", *few, *small, *space, "--out", tmp_path / "study").assert_fine().out
    told = "grid.num_classes: 3, as the data has, in place of the recipe's 10\n"
    assert out.startswith(f"{told}3 classes, 51 images (train 36, val 15): ant 17, cat 17, dog 17\n")


def test_what_is_set_and_searched_all_the_same_is_told():
    recipe = load_recipe("digits_tiny").override({"budget.ratio": 0.6})
    first = "budget.ratio: 0.6 was set, and search.space varies it: the first trial has it, the others need not"
    assert varied_anyway(recipe, {"budget.ratio": 0.6, "train.lr": 1e-3}) == [first]
    outside = recipe.override({"budget.ratio": 0.3})
    assert varied_anyway(outside, {"budget.ratio": 0.3})[0].endswith("varies it: no trial need have it")
    assert varied_anyway(recipe, {"search.space": {}, "train.lr": 1e-3}) == []


def test_what_is_set_holds_for_the_trials_too():
    """Where the recipe's search has other values for them, unless that is set, too."""
    recipe = load_recipe("digits_tiny").override({"train.epochs": 1})
    before = recipe.require_search().overrides
    chosen, lines = as_asked(recipe, {"train.epochs": 1, "budget.ratio": 0.6})
    assert chosen.require_search().overrides == {name: before[name] for name in before if name != "train.epochs"}
    assert lines == ["train.epochs: as asked for, in place of the 4 that search.overrides has for trials"]
    assert "data.train_size" not in as_asked(recipe, {"data": {}})[0].require_search().overrides
    assert as_asked(recipe, {"train.epochs": 1, "search.overrides": before}) == (recipe, [])
