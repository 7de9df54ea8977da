"""Lines of the evidence side by side: what fails, dies or is stopped is told, and the others go on."""

import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _found(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.slow
def test_a_crew_tells_of_each_task_and_stops_in_time(tmp_path):
    from crew import Crew, Task

    tasks = [
        Task("dies", partial(os._exit, 3)),
        Task("fails", partial(int, "x")),
        Task("needs", partial(int, "4"), after=("fails", "good")),
        Task("after", partial(int, "5"), after=("good",)),
        Task("good", partial(int, "6")),
    ]
    with Crew(2, tmp_path) as crew:
        ended = {one.task.name: one for one in crew.run(tasks)}
        order = list(ended)
        late = [Task(str(number), partial(time.sleep, 600)) for number in range(3)]
        start = time.monotonic()
        stopped = [one.error for one in crew.run(late, until=start + 0.5)]
    assert time.monotonic() - start < 30
    assert ended["dies"].error == "its process ended with code 3"
    assert "invalid literal" in ended["fails"].error
    assert ended["needs"].error == "needs fails, which failed"
    assert (ended["after"].result, ended["good"].result) == (5, 6)
    assert order.index("good") < order.index("after")
    assert sorted(stopped) == ["skipped, the time is up", *["stopped, the time is up"] * 2]
    assert "ValueError" in (tmp_path / "fails.log").read_text()


def test_a_training_that_was_stopped_has_a_line_of_its_own(tmp_path, capsys):
    from evidence_lines.arenas import rehearsal
    from evidence_lines.lines import Setting
    from evidence_lines.table import show, unfinished

    from routespace.train.run import train_recipe
    from routespace.train.stopping import TrainingStoppedError

    setting = Setting(rehearsal(), 0, 0.6, tmp_path, beside=True)
    assert unfinished(setting, "routed") is None

    def stop(news):
        if (news.phase, news.epoch, news.step) == (2, 3, 1):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(TrainingStoppedError):
        train_recipe(setting.recipe, setting.folder("routed"), progress=stop)
    row = unfinished(setting, "routed")
    assert row["unfinished"] == [6, 22]
    assert row["macs"] > 0
    show([row])
    assert "routed 0.6, seed 0: unfinished, step 6 of 22" in capsys.readouterr().out


def test_a_longer_arena_has_more_of_the_same_steps():
    from evidence_lines.arenas import digits_gpu, sparse

    for arena in (digits_gpu(), sparse()):
        given, longer = arena.recipe(0), replace(arena, length=1.37).recipe(0)
        for number in (0, 1):
            once, more = given.phase(number), longer.phase(number)
            assert more.train == once.train
            assert more.data.train_size % more.train.batch == 0
            assert more.data.train_size == pytest.approx(1.37 * once.data.train_size, rel=0.01)


def test_most_macs_of_the_sparse_arena_can_be_routed():
    from evidence_lines.arenas import sparse

    from routespace.train.shares import RowShares

    recipe = sparse().recipe(0)
    architecture, target = recipe.architecture(), recipe.budget_macs()
    shares = RowShares.of(recipe, architecture, target)
    assert sum(shares.routed.values()) > 0.75 * recipe.base_macs()
    assert 0.1 < min(shares.final.values()) < max(shares.final.values()) < 0.5
