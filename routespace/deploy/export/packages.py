"""Packages that formats need, and what is told of their errors. No torch: it is asked first."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from routespace.errors import MissingDependencyError

INSTALL = 'pip install "routespace[export]"'


def require(packages: Sequence[str], what: str) -> None:
    """Import packages.

    Args:
        packages: that a format needs.
        what: they are needed for.

    Raises:
        MissingDependencyError: with the install command, when one is not there.
        KeyboardInterrupt: Ctrl-C while they were imported, which libraries take for a missing part of theirs.
    """
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError as error:
            pass_interrupts(error)
            raise MissingDependencyError(f"{what} needs {name}; install it with: {INSTALL}") from error


def pass_interrupts(error: BaseException) -> None:
    """Raise KeyboardInterrupt where an error is what a library made of one."""
    seen: Any = error
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        seen = seen.__cause__ or seen.__context__


def first_line(error: Exception) -> str:
    """The first line of what an exception says, or its name."""
    return f"{next((line for line in str(error).splitlines() if line.strip()), type(error).__name__):.200}"
