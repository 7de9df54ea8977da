"""The exceptions of routespace, what any exception says as one line, warnings, and commands to type next.

    RoutespaceError            everything that a user can cause; the command line prints it as one line
    ├── SpecError (ValueError)     a field of a spec, recipe or file that is not allowed
    ├── GridError (ValueError)     a grid or architecture that cannot exist
    ├── BudgetError (ValueError)   limits that nothing in the grid satisfies
    ├── DataError                  missing, empty or corrupt data
    ├── BundleError                a bundle, run folder or checkpoint that cannot be used
    └── MissingDependencyError     an optional package is not installed

Each message says what was given, what is allowed and what to do next.
"""

import re
import shlex
import sys
import warnings

PACKAGE = __name__.partition(".")[0]
WORKER_TRACEBACK = "Original Traceback"  # torch's, before what an exception in a worker process said


class RoutespaceError(Exception):
    """Base of every error that a user's input can cause."""


class SpecError(RoutespaceError, ValueError):
    """A field of a spec, a recipe or a file is unknown or outside what is allowed."""


class GridError(RoutespaceError, ValueError):
    """A grid or an architecture cannot exist, or an architecture belongs to another grid."""


class BudgetError(RoutespaceError, ValueError):
    """No architecture of the grid satisfies the limits; the message names the least possible."""


class DataError(RoutespaceError):
    """Data is missing, empty or corrupt."""


class BundleError(RoutespaceError):
    """A bundle, run folder or checkpoint is missing, truncated or made for something else."""


class MissingDependencyError(RoutespaceError):
    """An optional package is needed; the message gives the install command."""


class RoutespaceWarning(UserWarning):
    """What somebody should know of what was given; the command line prints it as one line, whoever called."""


def reason(error: BaseException) -> str:
    """What an exception says, as one line.

    An error of a process that loads images arrives with that process's traceback as its text; the last line of it
    is what was said there.
    """
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if WORKER_TRACEBACK in text:
        return re.sub(r"^[\w.]+: ", "", lines[-1])
    return " ".join(lines)


def warn(text: str) -> None:
    """A RoutespaceWarning about what a user gave, at the line of the user's own that led here, however deep."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == PACKAGE:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, RoutespaceWarning, stacklevel=level)


def command_line(*words: object) -> str:
    """A command of ours to print, quoted so that a shell reads it back word by word."""
    return shlex.join(["routespace", *map(str, words)])
