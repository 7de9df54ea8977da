"""What a training starts from: the recipe's own architecture, a given network, or where a run stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from routespace.errors import BundleError, SpecError, command_line
from routespace.files import read_json, write_json, write_text
from routespace.grid.architecture import Architecture
from routespace.grid.spec import content_hash
from routespace.nn.route_net import RouteNet
from routespace.nn.routing.gates import Gate, initial_bias
from routespace.nn.task_net import HEAD, TaskNet
from routespace.train.balance import as_balanced
from routespace.train.budget import check_budget
from routespace.train.checkpoint import save_checkpoint
from routespace.train.data.kept import keep
from routespace.train.data.source import Source, count_classes
from routespace.train.fine_tune import OF_CLASSIFIERS, Fitted, fit_to, keep_fitted, same_network
from routespace.train.pretrained import load_pretrained
from routespace.train.recipe.effects import require_effect
from routespace.train.recipe.parts import AUTO, TIMM
from routespace.train.recipe.recipe import Recipe
from routespace.train.run_folder import GIVEN, WANTED, RunFolder, without_places
from routespace.train.shares import RowShares
from routespace.train.tasks.base import Task

MOST_SHOWN = 3  # differing fields in one message


@dataclass(frozen=True)
class Start:
    """What is trained.

    Attributes:
        recipe, architecture: of the training; those of a given network where there is one.
        given: digest of the network whose weights it starts from; None for fresh ones.
        lines: what of the recipe the given network has changed.
        goes_on: a checkpoint has the weights.
        earlier: JSON data on what was measured of a given network.
    """

    recipe: Recipe
    architecture: Architecture
    given: str | None = None
    lines: tuple[str, ...] = ()
    goes_on: bool = False
    earlier: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, recipe: Recipe, init: TaskNet | None, *, asked: Collection[str] | None = None) -> Start:
        """Of a new run, from a network where one is given; `asked` as in `fit_to`."""
        if init is None:
            return cls(recipe, recipe.architecture())
        fitted = fine_tuning(recipe, init, asked)
        require_effect(fitted.recipe, asked or (), open_to=("routing",))  # of which the network has its own
        return cls(fitted.recipe, fitted.architecture, weights_digest(init), fitted.lines)

    @classmethod
    def resumed(
        cls, run: RunFolder, recipe: Recipe, init: TaskNet | None, *, asked: Collection[str] | None = None
    ) -> Start:
        """Of the run in a folder, which must be of this recipe, and of this network where one is given.

        Raises:
            BundleError: there is none, it is of another recipe or network, or it lost where it stood.
        """
        if not run.is_run:
            raise BundleError(f"{run.path}: no run to resume; leave --resume out, or give the folder of one")
        saved = _saved_recipe(run)
        if recipe.train.batch_size == AUTO:  # chosen once, whatever this machine would take
            recipe = recipe.override({"train.batch_size": saved.train.batch_size})
        recipe = as_balanced(recipe, saved)
        data = read_json(run.architecture_path, wanted=WANTED)
        trained, given = Architecture.from_json(data), data.get(GIVEN) or None
        wanted = cls(keep_fitted(recipe, saved, asked), trained) if given else cls(recipe, recipe.architecture())
        _refuse_others(run, saved, wanted.recipe)
        other = init is not None and not (same_network(init, trained) and given in (weights_digest(init), True))
        if trained != wanted.architecture or other:
            raise BundleError(
                f"{run.path}: was started from another network; leave --from out to go on with it, or choose "
                f"another --out"
            )
        if given and not run.is_finished and not run.checkpoint_path.exists():
            raise BundleError(
                f"{run.path}: was started from a given network, and its checkpoint is missing; start it again "
                f"with --from and another --out"
            )
        digest = given if isinstance(given, str) else None
        return cls(wanted.recipe, trained, digest, goes_on=run.checkpoint_path.exists())


def fine_tuning(recipe: Recipe, init: TaskNet, asked: Collection[str] | None) -> Fitted:
    """What becomes of a recipe whose training starts from a network; see `fit_to`.

    Raises:
        SpecError: a field that was asked for and cannot hold.
        DataError: the data, which tells the number of classes, is missing or damaged.
    """
    field = recipe.task.classes_field
    counts = asked is not None and not {field.partition(".")[0], field} & set(asked)
    return fit_to(recipe, init, asked=asked, classes=count_classes(recipe) if counts else None)


def _saved_recipe(run: RunFolder) -> Recipe:
    try:
        return run.read_recipe()
    except SpecError as error:
        raise BundleError(str(error)) from error


def _refuse_others(run: RunFolder, saved: Recipe, wanted: Recipe) -> None:
    """Raise BundleError where the recipes differ: which fields, both values, and how to go on."""
    changes = list(changed_fields(without_places(saved), without_places(wanted)))
    if not changes:
        return
    found = [f"{name}: {before!s:.60} → {now!s:.60}" for name, before, now in changes]
    more = f"; and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
    settings = [word for name, _, now in changes for word in ("--set", f"{name}={_as_typed(now)}")]
    way = command_line("train", run.path, "--from", run.path, *settings, "--out", f"{run.path}-more")
    hint = f"go on from its network, on a schedule that begins anew: {way}"
    if not run.is_finished:
        hint = f"resume it without changes ({hint} once it is finished), or choose another --out"
    raise BundleError(f"{run.path}: is a run of another recipe ({'; '.join(found[:MOST_SHOWN])}{more}); {hint}")


def run_key(recipe: Recipe) -> str:
    """Equal for recipes of which one may go on with the other's checkpoint."""
    return content_hash(without_places(recipe))


def _as_typed(value: Any) -> str:
    """A value as `--set` reads it."""
    return value if isinstance(value, str) else json.dumps(value)


def changed_fields(
    old: Mapping[str, Any], new: Mapping[str, Any], section: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(train.epochs, before, now) for each field in which the data of two recipes differ."""
    for name in dict.fromkeys((*old, *new)):
        before, now = old.get(name), new.get(name)
        if before == now:
            continue
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from changed_fields(before, now, f"{section}{name}.")
        else:
            yield f"{section}{name}", before, now


def weights_digest(net: nn.Module) -> str:
    """Sixteen hex digits of a network's weights and buffers, equal for equal ones."""
    found = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def start_folder(run: RunFolder, start: Start, source: Source, state: dict[str, Any]) -> None:
    """Make a run's folder: where it stands before its first step, and last the recipe, which makes it a run."""
    save_checkpoint(run.checkpoint_path, state)
    write_json(run.architecture_path, start.architecture.to_json() | {GIVEN: start.given or False})
    keep(source, run)
    if start.earlier:
        write_json(run.earlier_path, {"scores": list(start.earlier)})
    write_text(run.recipe_path, start.recipe.to_yaml())


def make_net(start: Start, task: Task, init: TaskNet | None, *, tell: Callable[[str], None]) -> TaskNet:
    """The network that is trained, on the CPU; with its first weights, of which it tells, if it does not go on."""
    recipe, train = start.recipe, start.recipe.train
    torch.manual_seed(recipe.seed)
    backbone = RouteNet(start.architecture, recipe.gates, execution=train.execution, drop_path=train.drop_path)
    net = TaskNet(backbone, task.head(recipe.grid))
    if not start.goes_on:
        for line in (*start.lines, *net.head.lines(), *_few_tokens(start)):
            tell(line)
        _first_weights(net, recipe, init, tell)
    net.set_grad_checkpointing(train.grad_checkpointing)
    return net.compile_blocks(train.compile)


def _few_tokens(start: Start) -> tuple[str, ...]:
    """What to tell of a budget that leaves next to no tokens to gates that open a share."""
    shares = RowShares.of(start.recipe, start.architecture, check_budget(start.recipe, start.architecture))
    return () if shares is None else shares.lines()


def _first_weights(net: TaskNet, recipe: Recipe, init: TaskNet | None, tell: Callable[[str], None]) -> None:
    """Give a new network the weights that training starts from, and tell of them."""
    if init is not None:
        fresh = {f"{HEAD}{name}": tensor for name, tensor in net.head.state_dict().items()}
        given = init.state_dict()
        fits = {name: tensor.shape for name, tensor in fresh.items()} == {
            name: tensor.shape for name, tensor in given.items() if name.startswith(HEAD)
        }
        backbone = {name: tensor for name, tensor in given.items() if not name.startswith(HEAD)}
        net.load_state_dict(given if fits else backbone | fresh)
        if not fits and recipe.task.classes_field != OF_CLASSIFIERS:  # whose own line has told it
            tell(f"head: new, for {recipe.num_classes} classes; all but its head is kept of the given network")
        return
    source = recipe.train.weights
    if source is not None:
        if source.startswith(TIMM):
            tell(f"weights: looking for {source} on this machine, and then on the hub")
        tell(load_pretrained(net, source))
    if recipe.train.start == "staircase":
        open_staircase(net, Architecture.staircase(net.architecture.grid))


@torch.no_grad()
def open_staircase(net: TaskNet, path: Architecture) -> None:
    """Set the gates' biases: edges of `path` open with the spec's openness, all others with 1 − openness."""
    spec = net.gate_spec
    closed = initial_bias(spec, 1 - spec.openness)
    for name, module in net.gates.items():
        assert isinstance(module, Gate)
        if module.learned and name not in path.edges:
            module.bias.copy_(closed)
            module.update_ema(0.0)
