"""What is said of gates that choose nothing and of trainings that learn nothing."""

import json

from train_tiny import tiny

from routespace.cli.watch import Watcher
from routespace.train.progress import Progress
from routespace.train.remarks import gate_remarks, loss_remarks
from routespace.train.run import train_recipe

ROUTED = {"a": 300.0, "b": 100.0, "c": 100.0}


def used(**tokens):
    return {name: {"tokens": share, "images": 1.0, "asked": 1.0} for name, share in tokens.items()}


def test_nothing_is_said_of_gates_that_choose():
    assert gate_remarks(used(a=0.3, b=0.5, c=0.98), ROUTED, counted=500, target=500) == []
    assert gate_remarks({}, ROUTED) == []  # all computed, and nobody asked for less


def test_gates_that_choose_nothing_are_named():
    shut, opened = gate_remarks(used(a=0.5, b=0.001, c=1.0), ROUTED, counted=500, target=500)
    assert shut == "gates: b is shut for nearly every token"
    assert opened == "gates: c is open for nearly every token"
    told = {"a": 0.2, "b": 0.5, "c": 1.0}  # c is to be open
    assert gate_remarks(used(a=0.2, b=0.5, c=1.0), ROUTED, shares=told, counted=500, target=500) == []
    names = {f"row{i}": 1.0 for i in range(5)}
    (line,) = gate_remarks(used(**dict.fromkeys(names, 0.0)), names)
    assert line == "gates: row0, row1, row2 and 2 more are shut for nearly every token"


def test_a_budget_that_shut_blocks_meet_is_told():
    usage = used(a=0.0, b=0.9, c=0.9)
    *_, line = gate_remarks(usage, ROUTED, counted=400, target=400)
    assert line.startswith("budget: it is met by shutting 1 of 3 blocks (94% of what is saved)")
    assert len(gate_remarks(usage, ROUTED, counted=500, target=400)) == 1  # it is not met
    assert len(gate_remarks(used(a=0.2, b=0.0, c=0.2), ROUTED, counted=400, target=400)) == 1  # others save more


def test_a_loss_of_guessing_is_told_when_it_should_be_better():
    assert loss_remarks(2.302, 2.3026, 0.1) == []
    assert loss_remarks(2.2, 2.3026, 0.9) == []
    assert loss_remarks(9.9, None, 0.9) == []
    (line,) = loss_remarks(2.3, 2.3026, 0.5)
    assert line.startswith("training: its loss of 2.300 is that of guessing (2.303), nothing is learned")
    assert loss_remarks(2.3, 2.3026, 0.5, accuracy=0.15) == [line]
    assert loss_remarks(2.3, 2.3026, 0.5, accuracy=0.4) == []  # the mean of an epoch of few steps comes behind


def test_a_run_tells_them_in_its_records_and_its_result(tmp_path):
    """A rate of learning of nothing, and gates that begin shut and stay so."""
    still = tiny(train__lr=1e-12, train__gate_lr=1e-12, train__min_lr=0.0, gates__openness=0.001, gates__noise=0.0,
                 budget__weight=0.0, budget__calibrate=False, routing="depth", budget__ratio=0.9)  # fmt: skip
    result = train_recipe(still, tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    kinds = [remark.partition(":")[0] for remark in records[-1]["remarks"]]
    assert kinds == ["training", "gates", "budget"]
    assert [remark.partition(":")[0] for remark in result.metrics["remarks"]] == kinds


def test_the_command_line_says_each_remark_once():
    lines: list[str] = []
    watcher = Watcher(lines.append, label="x: ")
    record = {"loss": 1.0, "accuracy": 0.5, "images_per_s": 1.0, "counted_ratio": 1.0}
    for epoch, remarks in enumerate((["gates: b"], ["gates: b"], [], ["gates: b", "budget: c"]), 1):
        watcher(Progress("train", epochs=4, metrics=record | {"epoch": epoch, "remarks": remarks}))
    assert [line for line in lines if "epoch" not in line] == ["x: gates: b", "x: gates: b", "x: budget: c"]
    assert len(lines) == 7
