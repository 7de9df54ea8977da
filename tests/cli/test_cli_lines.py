"""What is printed: lines that fit, tables that are not cut, a word now and then, commands that a shell reads."""

import io
import shlex

import pytest
from rich.console import Console

from routespace.cli import render
from routespace.cli.watch import Piece, Watcher, clock, epoch_line, fitting, step_line, watching
from routespace.errors import command_line
from routespace.recipes import recipe_names
from routespace.train.progress import Progress

RECORD = {
    "epoch": 12,
    "loss": 1.5,
    "accuracy": 0.5,
    "train_accuracy": 0.25,
    "counted_ratio": 0.7,
    "expected_ratio": 0.7049,
    "target_ratio": 0.547,
    "images_per_s": 1458.0,
}


def news(step=3, **changes):
    fields = {"stage": "train", "epoch": 12, "epochs": 300, "step": step, "steps": 1251, "loss": 2.297}
    fields |= {
        "score": 0.12,
        "macs_ratio": 1.008,
        "target_ratio": 0.988,
        "images_per_s": 458.0,
        "eta_s": 40_000,
    }
    return Progress(**fields | changes)


def test_what_matters_least_goes_first():
    parts = [Piece("epoch", 0), Piece("loss", 2), Piece("", 9), Piece("left", 1)]
    assert fitting(parts, None) == "epoch  loss  left"
    assert fitting(parts, 17) == "epoch  loss  left"
    assert fitting(parts, 16) == "epoch  left"
    assert fitting(parts, 3) == "epoch"


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_lines_fit_and_keep_the_epoch_and_the_time_left(width):
    line = epoch_line(news(metrics=RECORD), width=width)
    assert len(line) <= width
    assert line.startswith("epoch 12/300")
    assert line.endswith("11:06:40 left")
    line = step_line(news(), width=width)
    assert len(line) <= width
    assert line.startswith("train 12/300")
    assert "11:06:40 left" in line
    assert "1458 images/s" in epoch_line(news(metrics=RECORD))  # a pipe has room for all


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_bar_keeps_its_epoch_bar_and_time_left(width, monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False)
    monkeypatch.setattr(render, "console", lambda: screen)
    with watching() as watcher:
        watcher(news())
        watcher(news(step=4, metrics=RECORD))
    printed = screen.file.getvalue()
    for words in ("train 12/300", "━" * 20, "4/1251", "11:06:40 left", "epoch 12/300"):
        assert words in printed, words
    assert "…" not in printed
    assert ("images/s" in printed.split("epoch")[-1]) == (width == 200)


def test_a_pipe_hears_of_a_long_epoch_every_half_minute():
    said, now = [], [0.0]
    watcher = Watcher(said.append, now=lambda: now[0])
    for step in range(100):
        now[0] = float(step)
        watcher(news(step, eta_s=None))
    assert [line.split("step ")[1].split("/")[0] for line in said] == ["30", "60", "90"]
    watcher(news(100, metrics=RECORD))
    now[0] += 29
    watcher(news(0, metrics=RECORD))
    assert len(said) == 4


def test_some_steps_tell_how_long_an_epoch_takes():
    said = []
    watcher = Watcher(said.append, quiet_s=None)
    per_step = 0.5
    for step in range(1, 20):
        left = 289 * 1251 - step
        watcher(news(step, eta_s=per_step * left))
    assert said == ["an epoch takes about 10:25, the whole training 50:12:45 more"]
    said.clear()
    watcher.begin("", None)
    for step in range(1, 20):
        watcher(news(step, steps=19, epoch=1, epochs=2, eta_s=0.1 * (38 - step)))
    assert not said  # a short epoch tells by itself


def test_a_training_by_the_clock_tells_no_number_of_epochs():
    said = []
    watcher = Watcher(said.append, quiet_s=None)
    for step in range(1, 20):
        watcher(news(step, epochs=None, eta_s=90.0 - step))
    watcher(news(20, epochs=None, eta_s=70.0, metrics=RECORD))
    (line,) = said
    assert line.startswith("epoch 12  ")
    assert line.endswith("1:10 left")
    assert step_line(news(epochs=None)).startswith("train 12  step 3/1251")


def test_the_budget_is_told_apart_from_the_task():
    assert "loss 2.297  " in step_line(news())
    assert "loss 2.000 + budget 0.297  " in step_line(news(budget_loss=0.297))
    assert "loss 1.250 + budget 0.250  " in epoch_line(news(metrics=RECORD | {"budget_loss": 0.25}))
    assert "loss 1.500  " in epoch_line(news(metrics=RECORD | {"budget_loss": 0.0}))


def test_a_target_below_the_budget_is_explained_once():
    said = []
    watcher = Watcher(said.append, budget=0.7, quiet_s=None)
    for epoch, target in enumerate((0.9, 0.7, 0.547, 0.54), start=1):
        watcher(news(metrics=RECORD | {"epoch": epoch, "target_ratio": target}))
    (note,) = (line for line in said if "budget.correct" in line)
    assert said.index(note) == 3
    assert "0.547×" in note
    assert "0.700×" in note
    said.clear()
    watcher.begin("", 0.7)
    for epoch, target in enumerate((0.3, 0.5, 0.7), start=1):  # a schedule from below
        watcher(news(metrics=RECORD | {"epoch": epoch, "target_ratio": target}))
    assert len(said) == 3


def test_clock():
    assert [clock(seconds) for seconds in (None, 5, 65, 3600, 40_000)] == [
        *("–", "0:05", "1:05", "1:00:00", "11:06:40")
    ]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_tables_never_cut_what_people_type(cli, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    out = cli("recipes").assert_fine().out
    listed = [line.split()[0] for line in out.splitlines()[1:] if line.strip() and not line.startswith("1 ×")]
    assert listed == recipe_names()
    assert "…" not in out
    if width >= 80:
        assert max(len(line) for line in out.splitlines() if not line.startswith("1 ×")) <= width


@pytest.mark.parametrize("words", [["a b", "--set", "x={y: [1, 2]}"], ["it's", "$HOME", "ü"]])
def test_printed_commands_are_read_back_by_a_shell(words):
    assert shlex.split(command_line("train", *words)) == ["routespace", "train", *words]
