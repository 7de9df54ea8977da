"""The option `--family-module` of every command, and how options are added to commands.

    app.command("cost")(allowing_families(cost.run))     adds --family-module

The function is given another signature, which is what typer reads.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

Command = Callable[..., None]

FAMILY_MODULE = Annotated[
    list[str] | None,
    typer.Option(
        "--family-module",
        metavar="MODULE:FAMILY",
        help="Allow a block family of your own, by the Python name of its Family; this runs its code. Repeatable.",
    ),
]


def allowing_families(run: Command) -> Command:
    """A command with the option `--family-module`: what it reads may name these families."""

    @functools.wraps(run)
    def command(family_module: list[str] | None = None, **options: Any) -> None:
        if not family_module:
            return run(**options)
        from routespace.grid.families.lookup import allow_families, import_family

        with allow_families(*map(import_family, family_module)):
            return run(**options)

    return with_options(command, run, {"family_module": FAMILY_MODULE})


def with_options(command: Command, run: Command, options: Mapping[str, Any], *, first: bool = False) -> Command:
    """A command with the signature of another and more options, all of them None when not given.

    Args:
        command: what is called.
        run: its signature is taken, without the `**fields` in which the options arrive.
        options: name → annotation.
        first: the options stand before those of `run` in the help.
    """
    signature = inspect.signature(run, eval_str=True)
    kept = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in options.items()
    ]
    named = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in kept]  # typer calls by name
    parameters = [*more, *named] if first else [*named, *more]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # read by inspect
    return command
