"""Lines of the evidence side by side: what fails, dies or is stopped is told, and the others go on."""

import importlib
import os
import signal
import subprocess
import sys
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


@pytest.mark.slow
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


SCRIPT = """
import sys, time
from functools import partial
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from crew import Crew, Task
from stopping import until_stopped
from test_evidence_crew import trained
def main():
    with Crew(2, Path("logs")) as crew:
        tasks = [Task(str(number), partial(trained, number)) for number in range(4)]
        for ended in crew.run(tasks):
            print(ended, flush=True)
if __name__ == "__main__":
    until_stopped(main)
"""


def trained(number):
    """A training of a minute, which saves its checkpoint when it is stopped."""
    from routespace.train.stopping import StopSignal, TrainingStoppedError

    Path(f"begun{number}").write_text(str(os.getpid()))
    with StopSignal() as stop:
        for _ in range(600):
            time.sleep(0.1)
            if stop.caught is not None:
                Path(f"saved{number}").touch()
                raise TrainingStoppedError("stopped", by=stop.caught)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_script_that_is_stopped_ends_with_its_processes_and_begins_nothing(number, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    command = [sys.executable, "script.py", str(BENCHMARKS)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    process = subprocess.Popen(command, **pipes, env=environment, start_new_session=True)
    while len(list(tmp_path.glob("begun*"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    time.sleep(0.3)
    process.send_signal(number)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (128 + number, "")
    assert err == f"stopped by {number.name}; the same command goes on\n"
    assert sorted(path.name for path in tmp_path.glob("*[0-9]")) == ["begun0", "begun1", "saved0", "saved1"]
    for begun in tmp_path.glob("begun*"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(begun.read_text()), 0)


@pytest.mark.parametrize("script", ["evidence", "tasks"])
def test_a_line_that_is_stopped_is_the_last_one(script, tmp_path, monkeypatch):
    from routespace.train.stopping import TrainingStoppedError

    begun = []

    def stopped(setting, line):
        begun.append(line)
        raise TrainingStoppedError("stopped", by=signal.SIGTERM)

    module = importlib.import_module(script)
    monkeypatch.setattr(module, {"evidence": "trained", "tasks": "one"}[script], stopped)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--rehearse", "--out", str(tmp_path)])
    with pytest.raises(TrainingStoppedError):
        module.main()
    assert len(begun) == 1


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
