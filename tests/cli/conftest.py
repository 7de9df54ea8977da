"""Running the command line inside the test process or without torch, and what a good error looks like."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image
from typer.testing import CliRunner

from routespace.cli.app import app


class Outcome:
    """What a command printed, and how it ended."""

    def __init__(self, result) -> None:
        self.code = result.exit_code
        self.out = result.stdout
        self.err = result.stderr
        self.exception = result.exception

    def assert_refused(self, *words: str) -> None:
        """One line on stderr that holds all `words`, exit code 2, no traceback."""
        assert self.code == 2, (self.code, self.out, self.err, self.exception)
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        assert "Traceback" not in self.out + self.err
        for word in words:
            assert word in lines[0], (word, lines[0])

    def assert_fine(self) -> "Outcome":
        """Exit code 0."""
        if self.code != 0 and self.exception is not None:
            raise AssertionError((self.out, self.err)) from self.exception
        assert self.code == 0, (self.out, self.err)
        return self


@pytest.fixture
def cli(monkeypatch) -> Callable[..., Outcome]:
    """`cli("build", "--layers", 4)` runs a command in a terminal of 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")

    def invoke(*args: object) -> Outcome:
        return Outcome(CliRunner().invoke(app, [str(arg) for arg in args]))

    return invoke


class Ended(NamedTuple):
    """How a command ended in a process of its own, what it printed, and whether it loaded torch."""

    code: int
    out: str
    err: str
    torch: bool


# Has loaded what most commands load, which is all but torch, and gives each command a process of its own.
FORKS = """
import contextlib, io, json, os, sys, traceback
from typer.main import get_command
from routespace.cli.app import app

program = get_command(app)  # takes as long as many a command
TORCH = 100  # is added to the exit code
for words in (["recipes", "show", "digits_tiny"], ["build", "--preset", "dit_b0"]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        program(words)

def run(words, folder, *modules):
    os.chdir(folder)
    sys.path[:0] = modules
    for number, (name, flags) in enumerate(FILES):
        os.dup2(os.open(name, flags), number)
    try:
        program(words)
        return 0
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1

written = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
FILES = (os.devnull, os.O_RDONLY), (sys.argv[1], written), (sys.argv[2], written)
for line in sys.stdin:
    child = os.fork()
    if not child:
        code = run(*json.loads(line))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code + TORCH * ("torch" in sys.modules))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def alone(tmp_path_factory) -> Iterator[Callable[..., Ended]]:
    """`alone(folder, "evaluate", "nosuch")` runs a command in a folder, in a process that has not loaded torch.

    With `modules=path` it finds modules there.
    """
    out, err = (tmp_path_factory.mktemp("alone") / name for name in ("out", "err"))
    command = [sys.executable, "-c", FORKS, str(out), str(err)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:

        def run(folder: Path, *words: object, modules: Path | None = None) -> Ended:
            folders = [str(path) for path in (folder, modules) if path is not None]
            server.stdin.write(json.dumps([[str(word) for word in words], *folders]) + "\n")
            server.stdin.flush()
            torch, code = divmod(int(server.stdout.readline()), 100)
            return Ended(code, out.read_text(), err.read_text(), bool(torch))

        yield run


@pytest.fixture
def pictures(tmp_path):
    """A folder of images of two classes, one of which cannot be read."""
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for number in range(20):
                Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / f"{number:02d}.png")
    broken = tmp_path / "data" / "train" / "cat" / "03.png"
    broken.write_bytes(broken.read_bytes()[:40])
    return tmp_path / "data"
