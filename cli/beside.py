"""A command of routespace in a process of its own, beside this one; what it says is in a file.

    with Beside(["train", "digits_tiny", "--out", "runs/other"], log=Path("runs/other.log")) as other:
        ...                                   # whatever takes as long
        other.wait()

A block that ends early, by an error or Ctrl-C, asks the command to stop: a training saves its checkpoint.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from routespace.errors import RoutespaceError, command_line

GRACE_S = 20.0  # from being asked to stop until it is ended: a checkpoint is written in that time
ONE_THREAD = "OMP_NUM_THREADS", "1"  # of the environment: the other cores are the others'


class Beside:
    """A command that runs while a block does.

    Args:
        words: the command and its arguments, without the program's name.
        log: a file for what it says; an older one is replaced.

    Attributes:
        text: the command as one types it.
    """

    def __init__(self, words: Sequence[object], *, log: Path) -> None:
        self._words, self._log = [str(word) for word in words], log
        self._file: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.text = command_line(*words)

    def __enter__(self) -> Beside:
        self._file = self._log.open("w", encoding="utf-8")
        program = [sys.executable, "-m", "routespace.cli", *self._words]
        environment = dict([ONE_THREAD]) | os.environ | {"PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            program,
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=0 if os.name == "posix" else None,  # Ctrl-C is this process's, which asks once
        )
        return self

    def wait(self) -> None:
        """Wait for its end.

        Raises:
            RoutespaceError: it failed; with the last line that it said, and where all of them are.
        """
        if self._process is None or self._process.wait() == 0:
            return
        said = self._log.read_text(encoding="utf-8").split("\n")
        last = next((line for line in reversed(said) if line.strip()), f"code {self._process.returncode}")
        raise RoutespaceError(f"{self.text}: {last.removeprefix('error: ')} (all that it said: {self._log})")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._file is not None:
            self._file.close()
