"""search/opening.py: what is refused leaves nothing, and says which field it is and what to do next."""

from __future__ import annotations

import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from fake_evaluator import FakeEvaluator, recipe

from routespace.deploy.study_place import TURN_FILE, require_study_place
from routespace.errors import BundleError, RoutespaceError, SpecError
from routespace.files import ASKED
from routespace.search import load_study, run_study
from routespace.search.candidate import RecipeCandidate
from routespace.search.evaluator import Workplace


@pytest.mark.parametrize("storage", ["foo://x", "sqlite://", "broken.db", "other.txt"])
def test_a_refused_study_leaves_no_folder(tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("broken.db", "other.txt"):
        (tmp_path / name).write_text("this is no database and no journal\n" * 100)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RoutespaceError, match="storage: "):
        run_study(recipe(), tmp_path / "new/study", storage=storage, evaluator=FakeEvaluator())
    assert sorted(tmp_path.rglob("*")) == before


def test_what_was_there_stays_when_a_study_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "empty"
    out.mkdir()
    with pytest.raises(SpecError, match="is a folder; give a file in it"):
        run_study(recipe(), out, storage=str(tmp_path), evaluator=FakeEvaluator())
    assert list(out.iterdir()) == []


def test_nothing_is_written_beside_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match="exists, is not empty and holds no study; choose another --out"):
        run_study(recipe(), tmp_path, evaluator=FakeEvaluator())
    with pytest.raises(BundleError, match=r"thesis\.tex: is a file; choose another --out"):
        run_study(recipe(), tmp_path / "thesis.tex", evaluator=FakeEvaluator())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    # Beside a study there may be anything: a table, a picture of the front.
    study = run_study(recipe(), tmp_path / "study", evaluator=FakeEvaluator(), trials=1)
    (study.out / "notes.txt").write_text("")
    assert run_study(recipe(), study.out, evaluator=FakeEvaluator(), trials=2).count("finished") == 2


def test_workers_that_begin_at_once_do_not_take_each_other_for_strangers(tmp_path: Path) -> None:
    """What one makes for a moment is seen by another that asks whether the folder may hold a study."""
    (tmp_path / f"{ASKED}abc").mkdir()
    require_study_place(tmp_path, None)
    (tmp_path / TURN_FILE).touch()  # the last that a refused study takes away
    require_study_place(tmp_path, None)
    assert not (tmp_path / "new").exists()
    with ThreadPoolExecutor(8) as pool:
        for asked in [pool.submit(require_study_place, tmp_path / f"new/{i // 8}", None) for i in range(200)]:
            asked.result()
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of one trial, which refuses to go on with other recipes and stays what it is."""
    folder = tmp_path_factory.mktemp("begun")
    run_study(recipe(), folder, evaluator=FakeEvaluator(), trials=1)
    return folder


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train.lr": 0.5}, "train.lr was 0.001, now is 0.5"),
        ({"search.overrides": {"train.epochs": 2}}, "search.overrides.train.epochs was not given, now is 2"),
        (
            {"search.limits": {"macs": "9M", "params": 7}},
            "search.limits.macs was not given, now is 9000000, search.limits.params was not given, now is 7",
        ),
        (
            {"search.space": {"budget.ratio": [0.5, 1.0]}},
            "search.space.budget.ratio was {'low': 0.5, 'high': 1.3,",
        ),
        ({"search.objectives": ["accuracy"]}, "search.objectives was ['accuracy', 'macs'], now is ['accuracy']"),
    ],
)
def test_another_recipe_is_told_by_its_fields(begun: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match="'tiny' is of another recipe") as caught:
        run_study(recipe().override(changes), begun, evaluator=FakeEvaluator())
    assert told in str(caught.value)
    assert "…" not in str(caught.value)


def test_longer_training_is_told_the_way_on(tmp_path: Path) -> None:
    out = tmp_path / "my study"
    run_study(recipe(overrides={"train.epochs": 2}), out, evaluator=FakeEvaluator(), trials=1)
    with pytest.raises(SpecError, match="to train one trial so: ") as caught:
        run_study(recipe(overrides={"train.epochs": 6}), out, evaluator=FakeEvaluator())
    command = shlex.split(str(caught.value).partition("to train one trial so: ")[2])
    recipe_file = str(out / "trials/NUMBER/recipe.yaml")
    assert command == ["routespace", "train", recipe_file, "--set", "train.epochs=6", "--out", "DIR"]


def test_what_optuna_and_its_dashboard_are_told(tmp_path: Path) -> None:
    """Names of the objectives; and the limits before training: a trial without counts as one that keeps them."""
    during = list[dict[str, float]]()

    def look(candidate: RecipeCandidate, place: Workplace) -> dict[str, float]:
        found = optuna.load_study(study_name="tiny", storage=f"sqlite:///{tmp_path / 'study.db'}")
        during.append(dict(found.trials[-1].constraints))
        return {"accuracy": 0.5, "macs": 900.0}

    study = run_study(recipe(limits={"macs": "9M"}), tmp_path, evaluator=look, trials=1)
    assert list(during[0].values()) == [pytest.approx(study.trials[0].planned["macs"] / 9e6 - 1)]
    theirs = optuna.load_study(study_name="tiny", storage=study.storage)
    assert theirs.metric_names == ["accuracy", "macs"]
    assert theirs.trials[0].constraints["macs"] == pytest.approx(1e-4 - 1)
    assert load_study(tmp_path) == study
