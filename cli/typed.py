"""The command line as it was typed."""

from __future__ import annotations

import typer

from routespace.errors import command_line

TYPED = "routespace.typed"  # in a context's meta: its words


def same_command(ctx: typer.Context) -> str:
    """The command that is running, as it was typed, quoted for a shell."""
    return command_line(*ctx.meta[TYPED])
