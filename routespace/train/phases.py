"""A phase of a training, made ready: its recipe, images, task, teacher and budget.

    loaders = phase_loaders(recipe, share)
    phases = prepared(recipe, architecture, loaders, phase_teachers(recipe, loaders, device))

Everything that can be refused is refused here, before anything is written. A training without
`train.phases` has one phase.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import cast

import torch

from routespace.errors import DataError
from routespace.grid.architecture import Architecture
from routespace.train.budget import check_budget
from routespace.train.data.loaders import Loaders, ProcessShare, make_loaders
from routespace.train.own_images import OwnImages, own_images
from routespace.train.recipe.phases import PhaseClock
from routespace.train.recipe.recipe import Recipe
from routespace.train.shares import RowShares
from routespace.train.tasks.base import Task
from routespace.train.teacher import Teacher, teacher_of


@dataclass(frozen=True)
class Phase:
    """What a phase trains with.

    Attributes:
        recipe: plain, of its own stretch.
        clock: how far the gates' schedules are in it.
        architecture: what is trained, priced at its image size.
        loaders: of its images.
        task: what is learned.
        target_macs: its budget, of an image of the network's size; None without one.
        teacher: of soft labels from outside the network, or None.
        own_images: what the teacher sees, where it is not what the network sees.
    """

    recipe: Recipe
    clock: PhaseClock
    architecture: Architecture
    loaders: Loaders
    task: Task
    target_macs: int | None = None
    teacher: Teacher | None = None
    own_images: OwnImages | None = None

    def set_epoch(self, epoch: int, step: int) -> None:
        """Choose the images that come next: those of an epoch, from a step of it on."""
        self.loaders.set_epoch(epoch, step)
        if self.own_images is not None:
            self.own_images.set_epoch(epoch, step)


def phase_loaders(recipe: Recipe, share: ProcessShare, kind: type[Loaders] = Loaders) -> list[Loaders]:
    """The images of each phase of a recipe, the recipe's own last.

    Raises:
        DataError: data that is missing or does not fit, nothing to validate with, or other classes than the
            recipe's own.
    """
    made = [make_loaders(recipe.phase(number), share, kind=kind) for number in range(len(recipe.train.phases) + 1)]
    for number, loaders in enumerate(made, 1):
        where = f"train.phases: number {number}: " if number < len(made) else ""
        if not len(cast(Sized, loaders.source.val())):
            raise DataError(f"{where}data: there are no images to validate with; give some")
        if loaders.source.classes != made[-1].source.classes:
            raise DataError(f"{where}its data has other classes than the recipe's own; all phases have the same")
    return made


def phase_teachers(recipe: Recipe, loaders: Sequence[Loaders], device: torch.device) -> list[Teacher | None]:
    """The teacher of each phase, where it has one from outside, on the device.

    Raises:
        SpecError: a teacher that does not fit.
    """
    return [teacher_of(recipe.phase(number), own.source, device) for number, own in enumerate(loaders)]


def prepared(
    recipe: Recipe,
    architecture: Architecture,
    loaders: Sequence[Loaders],
    teachers: Sequence[Teacher | None],
) -> tuple[Phase, ...]:
    """Every phase of a recipe, ready to be trained.

    Args:
        recipe: the whole one.
        architecture: what is trained.
        loaders: those of `phase_loaders`.
        teachers: those of `phase_teachers`.

    Raises:
        BudgetError: gates that cannot meet the budget.
        SpecError: images that cannot be made at the teacher's size.
    """
    phases, target = [], check_budget(recipe, architecture)
    for number, (own, teacher) in enumerate(zip(loaders, teachers, strict=True)):
        plain = recipe.phase(number)
        sized = Architecture(plain.grid, dict(architecture.edges))
        clock, images = PhaseClock.of(recipe.train, number), own.of(plain)
        phase = Phase(
            plain,
            clock,
            sized,
            images,
            task=plain.task.make(plain.grid, plain.train),
            target_macs=None if clock.held else target,
            teacher=teacher,
            own_images=own_images(plain, images, teacher),
        )
        if not clock.held:
            RowShares.of(plain, sized, check_budget(plain, sized))  # refuses what it cannot meet
        phases.append(phase)
    return tuple(phases)
