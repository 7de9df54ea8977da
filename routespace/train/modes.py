"""From a recipe to the passes that its training makes in each step."""

from __future__ import annotations

from routespace.nn.task_net import TaskNet
from routespace.train.passes import OnePass, Passes, Runner, SelfTaught
from routespace.train.recipe.parts import SELF
from routespace.train.recipe.recipe import Recipe
from routespace.train.sandwich import Sandwich


def make_passes(run: Runner, net: TaskNet, recipe: Recipe, steps: int) -> Passes:
    """The passes of a recipe's mode and teacher.

    Args:
        run: makes a pass.
        net: the network that is trained.
        recipe: its mode, teacher and seed.
        steps: optimiser steps of one epoch.

    Raises:
        SpecError: a network without gates that is to teach itself, or to be trained in parts.
        BudgetError: no part lies in the sandwich's window.
    """
    if recipe.train.mode == "sandwich":
        return Sandwich(run, net, recipe, steps)
    return SelfTaught(run, net) if recipe.train.teacher == SELF else OnePass(run)
