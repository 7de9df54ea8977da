"""train_recipe(recipe, out): from a recipe to a run folder, whose files `run_folder.py` describes.

Everything that can be refused is refused before anything is written. From then on a run that is killed, at
whatever moment, goes on from its checkpoint, and gives what it would have given.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, set_seed

from routespace.checked import checked
from routespace.errors import SpecError
from routespace.files import undone, write_text
from routespace.grid.architecture import Architecture
from routespace.grid.families.lookup import allow_families
from routespace.nn.module import unwrap
from routespace.nn.task_net import TaskNet
from routespace.train.balance import balanced
from routespace.train.batch import settled_batch
from routespace.train.budget import check_budget
from routespace.train.checkpoint import random_state, set_random_state
from routespace.train.data.kept import look_at
from routespace.train.data.loaders import Loaders, ProcessShare
from routespace.train.data.scenes.on_device import loaders_for
from routespace.train.data.source import located
from routespace.train.finish import finish
from routespace.train.loop import Trainer
from routespace.train.phases import Phase, phase_loaders, phase_teachers, prepared
from routespace.train.processes import check_processes, together
from routespace.train.progress import Progress
from routespace.train.recipe.parts import TrainSpec
from routespace.train.recipe.phases import phase_text
from routespace.train.recipe.recipe import Recipe
from routespace.train.recording import waiting_line
from routespace.train.run_folder import RunFolder
from routespace.train.run_lock import held, refuse_held
from routespace.train.run_state import load_state, save_state, state_of, write_metrics
from routespace.train.start import Start, make_net, start_folder
from routespace.train.stopping import StopSignal
from routespace.train.teaching import check_teaching

Report = Callable[[Progress], None]
STATES = (AcceleratorState, PartialState, GradientState)  # accelerate's, shared by a whole process


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: where it lies.
        metrics: the content of result.json.
        net: the final network, on the CPU, in eval mode.
    """

    folder: Path
    metrics: dict[str, Any]
    net: TaskNet


@checked
def train_recipe(
    recipe: Recipe,
    out: Path | str,
    *,
    init: TaskNet | None = None,
    resume: bool = False,
    progress: Report | None = None,
    tell: Callable[[str], None] | None = None,
    asked: Collection[str] | None = None,
    earlier: Iterable[Mapping[str, Any]] = (),
    loaders: type[Loaders] | None = None,
) -> RunResult:
    """Train a recipe into a run folder.

    Random generators and accelerate's state are left as they were.

    Args:
        recipe: what to train.
        out: the folder; it must be empty or not exist, unless `resume`.
        init: a network to fine-tune, in a wrapper such as torch.compile's or not. It keeps its architecture and
            its gates' threshold. The recipe's grid must be the network's but for the image size, which holds, and
            the number of classes, for another of which the head is new. The recipe's gates hold as far as the
            network's weights allow. `budget.open_frac` and `train.start`, which are of new gates, do not count.
        resume: go on with the run in `out`, exactly where its checkpoint stands; a finished run is returned as
            it is. The recipe may be of another device, other places of the data, more or fewer loader processes
            and checkpoints, and with or without `train.grad_checkpointing`.
        progress: called with a Progress after each step.
        tell: called with lines on what is about to be trained: classes and images, and where it starts from.
        asked: with `init`, the dotted fields that must hold, such as those of `--set`; the network decides all
            others of grid and gates, and the data the number of classes. None: all hold, as told above.
        earlier: with `init`, JSON data on what was measured of it (a card's `scores`), which the run keeps for the
            card of what it becomes.
        loaders: the kind that makes batches of the images; None for `loaders_for`: scenes that a classifier is
            trained on are composed on the GPU where there is one.

    Raises:
        BundleError: `out` holds something else, cannot be written, is a run of another recipe, or another process
            trains in it.
        BudgetError: a budget below the least possible.
        DataError, SpecError, GridError: the recipe's data, device or architecture; a field that does not go with
            `init`; pretrained weights that are not there.
        DivergedError: the loss is no number any more.
        TrainingStoppedError: SIGTERM or SIGINT came; the checkpoint is saved.
        PeerError: another process of the training raised one of these.
    """
    run, recipe = RunFolder(Path(out)), located(recipe)
    init = None if init is None else unwrap(init, wanted=TaskNet)
    with _as_before(), allow_families(recipe.grid.family, *([] if init is None else [init.spec.family])):
        accelerator = _accelerator(recipe.train)
        with together():
            if accelerator.is_main_process:
                refuse_held(run.path)
            if accelerator.is_main_process and not resume:
                run.refuse_existing()
            if resume:
                start = Start.resumed(run, recipe, init, asked=asked)
            else:
                start = replace(Start.of(recipe, init, asked=asked), earlier=tuple(earlier))
            if resume and run.is_finished:
                return RunResult(run.path, run.read_result(), run.load_net())
            report: Report = progress if progress is not None else lambda _: None
            trainer = _trainer(
                run, start, init=init, accelerator=accelerator, report=report, tell=tell, kind=loaders
            )
        with _alone(run, first=accelerator.is_main_process, resume=resume):
            _begin(trainer, run, replace(start, recipe=trainer.recipe), resume=resume)
            with StopSignal() as stop:
                trainer.fit(stop, lambda: save_state(trainer, run))
            return RunResult(run.path, *finish(trainer, run))


@contextlib.contextmanager
def _alone(run: RunFolder, *, first: bool, resume: bool) -> Iterator[None]:
    """A block in which no other training writes the folder; failing before its first checkpoint, it leaves none.

    Args:
        run: the folder.
        first: this process writes it, of those that train together.
        resume: there is something in it already.

    Raises:
        BundleError: another training has begun there.
        PeerError: the first process met that.
    """
    with contextlib.ExitStack() as stack:
        with together():
            if first:
                stack.enter_context(held(run.path))
            if first and not resume:
                run.refuse_existing()
                # Before the first checkpoint after the start's there is nothing worth keeping.
                stack.enter_context(undone(run.path, unless=run.metrics_path))
        yield


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """A block after which this process's generators and accelerate's shared states are what they were."""
    generators = random_state()
    states = [dict(state._shared_state) for state in STATES]
    try:
        yield
    finally:
        set_random_state(generators)
        for state, before in zip(STATES, states, strict=True):
            state._shared_state.clear()
            state._shared_state.update(before)


def require_device(spec: TrainSpec) -> None:
    """Raise SpecError for a device that this machine does not have, or whose time the clock does not see."""
    cuda = torch.cuda.is_available()
    if spec.device == "cuda" and not cuda:
        raise SpecError("train.device: 'cuda' is not there on this machine; give 'auto' or 'cpu'")
    if spec.clock == "processor" and cuda and spec.device != "cpu":
        raise SpecError(
            "train.clock: 'processor' does not see what an accelerator takes; give wall, or train.device=cpu"
        )


def _accelerator(spec: TrainSpec) -> Accelerator:
    require_device(spec)
    for state in STATES:  # an earlier run of this process may have had others
        state._shared_state.clear()
    return Accelerator(
        cpu=spec.device == "cpu" or not torch.cuda.is_available(),
        mixed_precision=spec.precision,
        kwargs_handlers=[DistributedDataParallelKwargs()],
    )


def _trainer(
    run: RunFolder,
    start: Start,
    *,
    init: TaskNet | None,
    accelerator: Accelerator,
    report: Report,
    tell: Callable[[str], None] | None,
    kind: type[Loaders] | None,
) -> Trainer:
    """All that a training needs, made before anything is written: what cannot be trained is refused here."""
    recipe, first = start.recipe, accelerator.is_main_process
    check_budget(recipe, start.architecture)  # before data is looked for
    recipe.base_macs()
    gated = start.given is None and not start.architecture.is_static
    check_teaching(recipe.phase(len(recipe.train.phases)), gated=gated)
    share = ProcessShare(accelerator.process_index, accelerator.num_processes)
    loaders = phase_loaders(recipe, share, kind or loaders_for(recipe, accelerator.device))
    if first:
        look_at(loaders[-1].source, run, tell or (lambda _: None))
    say = tell if first else None
    recipe = balanced(recipe, loaders[-1].source)
    teachers = phase_teachers(recipe, loaders, accelerator.device)  # before the free memory is looked at
    recipe = _settled(recipe, start.architecture, accelerator, loaders=loaders, tell=say)
    check_processes(recipe, accelerator.num_processes)
    phases = prepared(recipe, start.architecture, loaders, teachers)
    if say is not None:
        _introduce(recipe, phases, accelerator.device, say)
    net = make_net(start, phases[-1].task, init, tell=say or (lambda _: None)).to(accelerator.device)
    unread = net.head.reads(net.spec) != net.architecture.output_rates
    accelerator.ddp_handler.find_unused_parameters = unread or not start.architecture.is_static
    return Trainer(recipe, net, phases, accelerator=accelerator, report=report)


def _settled(
    recipe: Recipe,
    architecture: Architecture,
    accelerator: Accelerator,
    *,
    loaders: Sequence[Loaders],
    tell: Callable[[str], None] | None,
) -> Recipe:
    """The recipe with a batch size that fits its largest phase; `loaders` are those of each."""
    number = max(range(len(loaders)), key=lambda phase: math.prod(loaders[phase].largest))
    largest, size = recipe.phase(number), loaders[number].largest
    sized = Architecture(largest.grid, dict(architecture.edges))
    images = min(own.images for own in loaders)
    found = settled_batch(largest, sized, accelerator, images=images, size=size, tell=tell).train.batch_size
    return recipe if found == recipe.train.batch_size else recipe.override({"train.batch_size": found})


def _introduce(recipe: Recipe, phases: Sequence[Phase], device: torch.device, say: Callable[[str], None]) -> None:
    """Tell of the teacher, of the sizes that meet in a step, of what a GPU waits for, and of several phases."""
    sizes = phases[-1].loaders.batches.groups(epoch=0)
    if sizes is not None:
        say(f"data: the {recipe.train.batch} pictures of a step are of {sizes:.1f} sizes on average (data.group)")
    teacher = phases[-1].teacher
    if teacher is not None:
        say(teacher.line)
    if len(phases) > 1:
        specs = (*recipe.train.phases, None)
        for number, (spec, phase) in enumerate(zip(specs, phases, strict=True), 1):
            gated = not phase.architecture.is_static
            text = phase_text(spec, recipe.train, phase.recipe.grid.image_size, gated=gated)
            say(f"phase {number} of {len(phases)}: {text}")
    waits = waiting_line(phases[-1].recipe, phases[-1].architecture, device)
    if waits is not None:
        say(waits)


def _begin(trainer: Trainer, run: RunFolder, start: Start, *, resume: bool) -> None:
    """Make the folder, or go on from its checkpoint."""
    accelerator, seed = trainer.accelerator, trainer.recipe.seed
    set_seed((seed * 1009 + 1 + accelerator.process_index) % 2**32)  # noise: each process its own
    state = state_of(trainer)  # every process gives its part
    with together():
        if resume and run.checkpoint_path.exists():
            load_state(trainer, run)
        elif accelerator.is_main_process:
            start_folder(run, start, trainer.course.phases[-1].loaders.source, state)
        if resume and accelerator.is_main_process:
            write_text(run.recipe_path, start.recipe.to_yaml())  # it may tell of data that was moved
            if trainer.records:  # a run may have been killed between its checkpoint and these
                write_metrics(trainer, run)
