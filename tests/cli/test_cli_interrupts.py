"""Ctrl-C or SIGTERM at any moment: one line, exit code 130 or 143, no traceback, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import psutil
import pytest
from PIL import Image
from tiny_grid import TINY_GRID

from routespace import Architecture, Card, GridSpec, RoutingGrid, TaskNet, save_bundle

INTERRUPTED, TERMINATED = 130, 143
FIRST = "routespace.cli.interrupts"  # before it, Python itself is starting
SOON_S = 0.02


def assert_interrupted(process, *, words=""):
    out, err = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED, (out, err)
    (line,) = err.splitlines()
    assert line.startswith("error: interrupted")
    assert words in line
    assert "Traceback" not in out


def run_python(code, *args):
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


MOMENTS = [
    *(("train", module) for module in (FIRST, "torch._C")),
    *(pytest.param("train", module, marks=pytest.mark.slow) for module in ("typer", "numpy", "timm.layers")),
    ("search", "numpy"),
    *(
        pytest.param("search", module, marks=pytest.mark.slow)
        for module in (FIRST, "typer", "torch._C", "timm.layers")
    ),
]


@pytest.mark.parametrize(("command", "module"), MOMENTS)
def test_while_a_command_starts(command, module, tmp_path):
    interrupt_after(module, [command, "digits_tiny", "--out", "s"], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 2])
@pytest.mark.parametrize(
    "module", ["torch.onnx._internal.exporter._core", "onnxscript.function_libs.torch_lib.ops"]
)
def test_while_a_network_is_exported(module, seconds, tmp_path):
    net = TaskNet.classifier(Architecture.staircase(RoutingGrid(GridSpec.parse(TINY_GRID))))
    save_bundle(net, tmp_path / "bundle", Card.of(net))
    interrupt_after(module, ["export", "bundle", "-o", "out"], tmp_path, seconds=seconds)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def interrupt_after(module, args, folder, *, seconds=SOON_S):
    """Run a command; interrupt it some time after it has imported a module, and see how it ends."""
    command = [sys.executable, "-X", "importtime", "-m", "routespace.cli", *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
    process = subprocess.Popen(command, **pipes)
    for line in process.stderr:
        if line.split("|")[-1].strip() == module:
            break
    process.stderr.readline()  # once the next module is there, signals are surely handled, however busy it is here
    time.sleep(seconds)
    if process.poll() is not None:
        pytest.skip("the command was quicker")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED, err
    (line,) = (line for line in err.splitlines() if not line.startswith("import time:"))
    assert line.startswith("error: interrupted")
    assert out == ""


# A command whose work is `{body}`, as the program runs it.
COMMAND = """
import contextlib, signal, sys, time
sys.path.insert(0, sys.argv[1])
from routespace.cli.interrupts import start
interrupts = start()
from routespace.cli import app, cost
from routespace.errors import RoutespaceError
def work(subject: str):
    try:
{body}
    finally:
        print("tidied up", flush=True)
app.app.command("work")(work)
sys.argv[1:] = ["work", "x"]
app.run(interrupts)
"""
INTERRUPT = "signal.raise_signal(signal.SIGINT)"


def run_work(folder, *lines):
    body = "\n".join(f"        {line}" for line in lines)
    return run_python(COMMAND.replace("{body}", body), folder)


def test_while_a_command_works(tmp_path):
    process = run_work(tmp_path, INTERRUPT, "print('not reached')")
    out, _ = process.communicate(timeout=60)
    assert out == "tidied up\n"
    assert_interrupted(run_work(tmp_path, INTERRUPT))


def test_batch_systems_end_it_in_the_same_way(tmp_path):
    process = run_work(tmp_path, "signal.raise_signal(signal.SIGTERM)", "print('not reached')")
    out, err = process.communicate(timeout=60)
    assert (out, err) == ("tidied up\n", "error: interrupted\n")
    assert process.returncode == TERMINATED


def test_batch_systems_end_a_training_in_the_same_way(tmp_path):
    lines = [
        "from routespace.train.stopping import StopSignal, TrainingStoppedError",
        "with StopSignal() as stop:",
        "    signal.raise_signal(signal.SIGTERM)",
        "try:",
        "    raise TrainingStoppedError('stopped', by=stop.caught)",
        "except TrainingStoppedError as error:",
        "    raise KeyboardInterrupt('interrupted; nothing was saved') from error",
    ]
    process = run_work(tmp_path, *lines)
    out, err = process.communicate(timeout=60)
    assert (out, err) == ("tidied up\n", "error: interrupted; nothing was saved\n")
    assert process.returncode == TERMINATED


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_imports_ends_at_once(number, tmp_path):
    lines = [
        "from routespace.cli.interrupts import imports",
        "with imports():",
        f"    signal.raise_signal({number})",
    ]
    process = run_work(tmp_path, *lines, "    time.sleep(30)")
    out, err = process.communicate(timeout=60)
    assert (out, err) == ("", "error: interrupted\n")
    assert process.returncode == 128 + number


def test_a_process_that_reads_pictures_ends_at_once_when_it_is_told_to(tmp_path):
    lines = [
        "import multiprocessing",
        "fork = multiprocessing.get_context('fork')",
        "begun = fork.Event()",
        "def read():",
        "    begun.set()",
        "    time.sleep(60)",
        "reader = fork.Process(target=read)",
        "reader.start()",
        "begun.wait(30)",
        "reader.terminate()",
        "reader.join(30)",
        "print('ended by', reader.exitcode)",
    ]
    out, err = run_work(tmp_path, *lines).communicate(timeout=60)
    assert (out, err) == (f"ended by {-signal.SIGTERM}\ntidied up\n", "")


def test_what_a_library_makes_of_it_is_still_the_interrupt(tmp_path):
    turned = ["try:", f"    {INTERRUPT}", "except KeyboardInterrupt:", "    raise RoutespaceError('needs onnx')"]
    assert_interrupted(run_work(tmp_path, *turned))
    crashed = [*turned[:3], "    raise RecursionError('too deep')"]
    assert_interrupted(run_work(tmp_path, *crashed))


def test_an_import_that_hides_it_is_waited_for(tmp_path):
    hidden = f"import signal\ntry:\n    {INTERRUPT}\nexcept BaseException:\n    pass\n"
    (tmp_path / "hides_it.py").write_text(hidden)
    assert_interrupted(run_work(tmp_path, "import hides_it", "time.sleep(30)"))


def test_a_destructor_that_hides_it_is_not_the_end_of_it(tmp_path):
    lines = ["class Hides:", f"    def __del__(self): {INTERRUPT}", "Hides()", "time.sleep(30)"]
    assert_interrupted(run_work(tmp_path, *lines))


def test_the_second_one_ends_at_once(tmp_path):
    lines = ["try:", f"    {INTERRUPT}", "finally:", f"    {INTERRUPT}", "    time.sleep(30)"]
    process = run_work(tmp_path, *lines)
    out, _ = process.communicate(timeout=60)
    assert out == ""
    assert process.returncode == INTERRUPTED


def test_a_message_says_how_to_go_on(tmp_path):
    process = run_work(tmp_path, "raise KeyboardInterrupt('interrupted; the same command goes on')")
    assert_interrupted(process, words="goes on")


def test_libraries_keep_their_warnings_to_themselves(tmp_path):
    (tmp_path / "loud.py").write_text("import warnings\nwarnings.warn('about itself', UserWarning)\n")
    ours = {"__name__": "routespace.made_up"}  # called by the line below, which is none of ours, as click's is not
    warns = "from routespace.errors import warn; warn(\\'ours\\\\nin two lines\\')"
    body = ["import loud", f"exec('{warns}', {ours!r})"]
    process = run_work(tmp_path, *body)
    _, err = process.communicate(timeout=60)
    assert err == "warning: ours in two lines\n"
    assert process.returncode == 0


@pytest.mark.parametrize(
    "cpu_s", [pytest.param(0.0, marks=pytest.mark.slow), 0.5], ids=["as they start", "while they read"]
)
def test_processes_that_read_pictures_leave_ctrl_c_to_their_command(cpu_s, tmp_path):
    (tmp_path / "photos/ant").mkdir(parents=True)
    first = tmp_path / "photos/ant/0.png"
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)
    Image.fromarray(noise).save(first, compress_level=1)
    for number in range(1, 2000):  # hundredths of a second each: they are read until somebody interrupts
        os.link(first, first.with_name(f"{number}.png"))
    command = [sys.executable, "-m", "routespace.cli", "data", "check", "photos", "--workers", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    process = subprocess.Popen(command, **pipes, start_new_session=True)
    while len(readers := readers_of(process)) < 2 or any(used < cpu_s for used in readers):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert_interrupted(process)


def readers_of(process):
    """The processor seconds that each process has used that was started to read."""
    used = []
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(child.cmdline()):
                used.append(child.cpu_times().user)
    return used
