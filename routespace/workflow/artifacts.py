"""A trained network on disk, run or bundle, loaded together with the recipe that its data comes from.

artifact = load_artifact(Path("runs/first"))       or a bundle's folder
artifact.net, artifact.recipe, artifact.usage
artifact.resized(96)                               the same for smaller images
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from routespace import file_names
from routespace.checked import checked
from routespace.deploy.bundle import Card, load_bundle
from routespace.deploy.extract import resized, resized_spec
from routespace.deploy.folder import is_bundle, net_folder
from routespace.deploy.scores import Score
from routespace.errors import BundleError
from routespace.grid.usage import Usage
from routespace.nn.running import pick_device
from routespace.nn.task_net import TaskNet
from routespace.nn.weights import load_net
from routespace.preprocess import Preprocess, load_preprocess
from routespace.train.data.evaluation import evaluation_loaders
from routespace.train.data.loaders import Loaders
from routespace.train.recipe.data_kinds import kind_of
from routespace.train.recipe.recipe import Recipe
from routespace.train.recipe.resizing import resized_recipe
from routespace.train.run_folder import RunFolder
from routespace.train.tasks.kinds import task_spec_of
from routespace.workflow.history import run_scores
from routespace.workflow.subjects import load_usage


@dataclass(frozen=True)
class Artifact:
    """A trained network on disk.

    Attributes:
        folder: the run or bundle.
        net: its network, in evaluation mode.
        recipe: what it was trained with; None for a bundle that came without.
        card: a bundle's; None for a run.
        usage: what was measured on validation; empty for a static network, None when not measured.
        preprocess, classes: how images go in, and the names of the outputs; None for one of before they were kept.
        scores: how good it and what it came from were found to be.
    """

    folder: Path
    net: TaskNet
    recipe: Recipe | None
    card: Card | None
    usage: Usage | None
    preprocess: Preprocess | None = None
    classes: tuple[str, ...] | None = None
    scores: tuple[Score, ...] = ()
    _held_out: dict[Any, Loaders] = field(default_factory=dict, repr=False, compare=False)

    def require_recipe(self) -> Recipe:
        """The recipe; raises BundleError when there is none."""
        if self.recipe is None:
            raise BundleError(
                f"{self.folder}: has no {file_names.RECIPE}; name the recipe of its data with --recipe"
            )
        return self.recipe

    def held_out(self) -> Loaders:
        """The recipe's images for this network, labelled by the names of its classes.

        Raises:
            BundleError: there is no recipe.
            DataError: no such images, classes that are none of the network's, or another number of them.
            SpecError: data that the network cannot read.
        """
        recipe, spec = self.require_recipe(), self.net.spec
        key = (
            recipe.to_yaml(),
            spec.image_size,
            spec.in_channels,
            spec.num_classes,
            self.preprocess,
            self.classes,
        )
        if key not in self._held_out:  # it is shared with what is cut from this: scenes are made once
            made = evaluation_loaders(recipe, spec, preprocess=self.preprocess, classes=self.classes)
            self._held_out[key] = made
        return self._held_out[key]

    def resized(self, image_size: tuple[int, int] | int) -> Artifact:
        """The same network for images of another size: its weights as they are, images fed at that size.

        The recipe becomes one of that size, where what it gives in pixels of scenes that are made here goes along
        (`digit_px`, `object_px`). Scores stay: each tells the size that it was measured at.

        Args:
            image_size: height and width in pixels, or one number for a square. Its own gives the artifact itself.

        Raises:
            SpecError: a size that the grid or the data does not take, or data whose own fields say how large
                pictures go in.
            BundleError: pictures go in as a whole, and there is no recipe to say how large.
        """
        own, size = self.net.spec.image_size, resized_spec(self.net.spec, image_size).image_size
        if size == own:
            return self
        recipe = self.recipe
        if recipe is not None:
            if recipe.grid.image_size != own:  # a recipe that was given for the data alone
                recipe = recipe.override({"grid.image_size": list(own)})
            recipe = resized_recipe(recipe, size)
        fed = self.preprocess
        if fed is not None:
            sides = size if fed.fit == "crop" else (recipe or self.require_recipe()).preprocess.size
            fed = fed.model_copy(update={"size": sides})
        # Usage is shares of tokens, and what objects take of an image is the same share at any size. So measured
        # shares still rank the edges, and they are no more than an estimate in any case: nothing is promised by
        # them, and whatever is chosen is evaluated at its own size. Coarser tokens cover an object less closely,
        # so that the true shares are somewhat larger on smaller images.
        return replace(self, net=resized(self.net, size), recipe=recipe, card=None, preprocess=fed)

    def images_recipe(self, *, named: bool) -> Recipe:
        """The recipe of the images to evaluate on.

        Args:
            named: the images are named elsewhere, so that a network that tells how they go in needs no recipe.

        Raises:
            BundleError: there is none, and it would be needed.
        """
        told = self.preprocess is not None and bool(self.classes)
        if self.recipe is None and told and not named:
            raise BundleError(
                f"{self.folder}: has no {file_names.RECIPE}; give its images with --data, or their recipe "
                f"with --recipe"
            )
        if self.recipe is not None or not told:
            return self.require_recipe()
        task = task_spec_of(self.net.head)
        return Recipe.parse(
            {
                "name": self.folder.resolve().name.lstrip(".") or "bundle",
                "task": task.model_dump(mode="json"),
                "grid": self.net.spec.model_dump(mode="json"),
                "data": {"kind": kind_of(task.target)},
            },
            families=[self.net.spec.family],
        )


@checked
def load_artifact(folder: Path | str, *, recipe: Recipe | None = None, device: str = "cpu") -> Artifact:
    """The network of a finished run or of a bundle.

    Args:
        folder: a run's or a bundle's.
        recipe: to take instead of the folder's own.
        device: where to: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:1`.

    Raises:
        BundleError: neither a finished run nor a bundle, or a file is damaged.
        SpecError: the folder's recipe cannot be read, or there is no such device.
    """
    folder, place = Path(folder), pick_device(device)
    own = folder / file_names.RECIPE
    if recipe is None and own.exists():
        recipe = Recipe.read(own)
    preprocess, classes = load_preprocess(folder) or (None, None)
    if is_bundle(folder):
        net, card = load_bundle(folder)
        usage = load_usage(folder, net.architecture.grid)
        return Artifact(folder, net.eval().to(place), recipe, card, usage, preprocess, classes, card.scores)
    net = load_net(net_folder(folder)).eval().to(place)
    usage = load_usage(folder, net.architecture.grid)
    scores = run_scores(RunFolder(folder), recipe)
    return Artifact(folder, net, recipe, None, usage, preprocess, classes, scores)


@checked
def load_run(folder: Path | str, *, device: str = "cpu") -> Artifact:
    """A finished run: its network, its recipe and its measured usage.

    Args:
        folder: what `train_recipe` wrote.
        device: where to: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:1`.

    Raises:
        BundleError: no finished run, or a file is damaged; a bundle, which `load_bundle` reads.
    """
    if is_bundle(folder):
        raise BundleError(f"{folder}: is a bundle, not a run; read it with load_bundle")
    return load_artifact(folder, device=device)
