"""The options that depend on block families: `--family-module` of every command, and one for each parameter.

    app.command("cost")(allowing_families(cost.run))     adds --family-module
    @family_parameters                                   adds --sr-ratios and --window, which arrive in **own
    def run(layers: …, **own: str | None) -> None: …

Both give a function another signature, which is what typer reads.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from routespace.grid.presets import FAMILIES

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

    return _with_options(command, run, {"family_module": FAMILY_MODULE})


def family_parameters(run: Command) -> Command:
    """A command with an option for each parameter of a built-in family, in place of its `**own`."""
    options = {
        name: Annotated[str | None, typer.Option(help=f"{parameter.help} ({family}).")]
        for family in FAMILIES.values()
        for name, parameter in family.parameters.items()
    }
    return _with_options(run, run, options)


def single_numbers() -> set[str]:
    """The parameters of built-in families for which one number may stand for all rates."""
    every = (item for family in FAMILIES.values() for item in family.parameters.items())
    return {name for name, parameter in every if parameter.one_for_all}


def _with_options(command: Command, run: Command, options: Mapping[str, Any]) -> Command:
    """`command` with the signature of `run` and more options, all of them None when not given."""
    signature = inspect.signature(run, eval_str=True)
    kept = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in options.items()
    ]
    command.__signature__ = signature.replace(parameters=[*kept, *more])  # type: ignore[attr-defined]  # read by inspect
    return command
