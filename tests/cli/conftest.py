"""Running the command line inside the test process, and what a good error looks like."""

from collections.abc import Callable

import pytest
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
