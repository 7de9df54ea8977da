"""RunFolder: a run on disk, as a value that knows where everything is. No other file spells its names.

preprocess.json      how images go in, and the class names in the order of the outputs
data.json            names of the images that it began with, where they are not rendered
earlier.json         what was measured of a network that it started from, if anything was
recipe.yaml          the recipe, every field; written last of what a training starts with
architecture.json    what is trained: the recipe's architecture, or that of the network it started from
checkpoint/state.pt  weights, optimiser, generators: where --resume goes on; from before the first step on
metrics.jsonl        a line per epoch
net/                 the final network: model.safetensors and network.json, threshold calibrated
usage.json           share of each edge that ran on the validation images
result.json          final numbers; a folder that has it is a finished run

Asking needs no torch: a folder that cannot be used is told before anything is loaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from routespace import file_names
from routespace.errors import BundleError
from routespace.files import read_json, read_text, require_place
from routespace.grid.architecture import Architecture
from routespace.grid.usage import EdgeUsage, usage_from_json
from routespace.train.recipe.data_kinds import LOCATIONS
from routespace.train.recipe.identity import ELSEWHERE, without_train_places
from routespace.train.recipe.parts import LATER, TrainSpec
from routespace.train.recipe.recipe import Recipe
from routespace.values import Value

if TYPE_CHECKING:
    from routespace.nn.task_net import TaskNet

FORMAT = "routespace.run/1"
GIVEN = "given"  # in architecture.json: digest of the network that the training started from, or false
WANTED = "the folder of a run"


@dataclass(frozen=True)
class RunFolder:
    """A run on disk, finished or not.

    Args:
        path: of the folder.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def recipe_path(self) -> Path:
        """The recipe; a folder that has it is a run."""
        return self.path / file_names.RECIPE

    @property
    def architecture_path(self) -> Path:
        """What is trained, and whether a given network was the start."""
        return self.path / file_names.ARCHITECTURE

    @property
    def preprocess_path(self) -> Path:
        """How images go in, and what comes out."""
        return self.path / file_names.PREPROCESS

    @property
    def data_path(self) -> Path:
        """Which images it began with."""
        return self.path / file_names.DATA

    @property
    def earlier_path(self) -> Path:
        """What was measured of the network that it started from."""
        return self.path / file_names.EARLIER

    @property
    def checkpoint_path(self) -> Path:
        """Where training stands."""
        return self.path / file_names.CHECKPOINT / "state.pt"

    @property
    def metrics_path(self) -> Path:
        """A line per epoch."""
        return self.path / file_names.METRICS

    @property
    def net_path(self) -> Path:
        """The folder of the final network."""
        return self.path / file_names.NET

    @property
    def usage_path(self) -> Path:
        """What the final network used on validation."""
        return self.path / file_names.USAGE

    @property
    def result_path(self) -> Path:
        """The final numbers."""
        return self.path / file_names.RESULT

    @property
    def is_run(self) -> bool:
        """Whether a training began here."""
        return self.recipe_path.is_file()

    @property
    def is_finished(self) -> bool:
        """Whether it came to its end."""
        return self.result_path.is_file()

    def read_recipe(self) -> Recipe:
        """The recipe; raises SpecError, naming the file, when it cannot be read."""
        return Recipe.read(self.recipe_path)

    def read_architecture(self) -> Architecture:
        """What is trained; raises BundleError or SpecError."""
        return Architecture.from_json(read_json(self.architecture_path, wanted=WANTED))

    def read_given(self) -> bool:
        """Whether the training started from a given network; raises BundleError."""
        return bool(read_json(self.architecture_path, wanted=WANTED).get(GIVEN))

    def read_metrics(self) -> list[dict[str, Any]]:
        """One dict per finished epoch; empty before the first. Raises BundleError when the file is damaged."""
        if not self.metrics_path.exists():
            return []
        try:
            return [json.loads(line) for line in read_text(self.metrics_path, wanted=WANTED).splitlines()]
        except ValueError as error:
            raise BundleError(f"{self.metrics_path}: a line is not JSON ({error}); the file is damaged") from error

    def read_usage(self) -> dict[str, EdgeUsage]:
        """Edge name → shares on the validation images; raises BundleError or SpecError."""
        grid = self.read_architecture().grid
        return usage_from_json(read_json(self.usage_path, wanted="the folder of a finished run"), grid)

    def read_result(self) -> dict[str, Any]:
        """The final numbers; raises BundleError when the run is not finished."""
        result: dict[str, Any] = read_json(self.result_path, wanted="the folder of a finished run")
        return result

    def load_net(self) -> TaskNet:
        """The final network, on the CPU, in evaluation mode; raises BundleError."""
        from routespace.nn.weights import load_net

        return load_net(self.net_path).eval()

    def refuse_existing(self) -> None:
        """Raise BundleError unless a training may begin here: nothing is overwritten silently.

        It may where there is nothing, or only what a training that was killed while it began has left.
        """
        if self.is_finished:
            raise BundleError(f"{self.path}: is a finished run; choose another --out, or remove it")
        if not self.path.exists():
            require_place(self.path)
        elif not self.path.is_dir():
            raise BundleError(f"{self.path}: is a file; choose another --out")
        elif any(self.path.iterdir()) and not self._is_leftover():
            hint = "go on with --resume, or " if self.is_run else ""
            raise BundleError(f"{self.path}: exists and is not empty; {hint}choose another --out")

    def _is_leftover(self) -> bool:
        """Whether all there is was written before the recipe, which makes a folder a run."""
        begun = {self.checkpoint_path.parent, self.architecture_path, self.preprocess_path, self.data_path}
        begun.add(self.earlier_path)
        return not self.is_run and all(path in begun or path.name.startswith(".") for path in self.path.iterdir())


def without_places(recipe: Recipe) -> dict[str, Any]:
    """The recipe's fields as they are wherever it is trained: data, weights and teacher may have been moved.

    What else is `ELSEWHERE` is as it comes: a run may go on in less memory, or be saved less often.
    """
    data = without_train_places(recipe.to_data())
    specs: dict[str, type[Value]] = {"data": type(recipe.data), "train": TrainSpec}
    for section, spec in specs.items():
        fresh = {name: field.default for name, field in spec.model_fields.items() if name in ELSEWHERE[section]}
        left_out = {*LOCATIONS, *(name for name in LATER.get(section, ()) if name in fresh)}
        data[section] = {
            name: fresh.get(name, value) for name, value in data[section].items() if name not in left_out
        }
    return data
