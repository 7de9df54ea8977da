"""The command line as it was typed."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from routespace.errors import SpecError, command_line

TYPED = "routespace.typed"  # in a context's meta: its words


def same_command(ctx: typer.Context) -> str:
    """The command that is running, as it was typed, quoted for a shell."""
    return command_line(*ctx.meta[TYPED])


def require_words(typed: Sequence[str]) -> None:
    """Raise SpecError for a word of nothing: as a path it would be the current folder, which nobody meant.

    A script has it of a variable that was not set.
    """
    for before, word in zip(("", *typed), typed, strict=False):
        option, sign, value = word.partition("=")
        attached = bool(sign) and option.startswith("--")
        if not word or (attached and not value):
            name = option if attached else before if before.startswith("-") else "an argument"
            raise SpecError(
                f"{name}: is empty; give a value, or leave it out (a variable of your shell's may be unset)"
            )
