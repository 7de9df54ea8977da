"""A bundle: a folder with a network (`model.safetensors`, `network.json`) and `card.json`, its papers.

    save_bundle(net, folder, Card.of(net, scores=scores))         whole or not at all
    load_bundle(folder)                                           → Bundle(net, card), every file checked

The card holds the SHA-256 of the other two files, so a truncated, changed or swapped one is noticed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator

from routespace import file_names
from routespace.checked import checked
from routespace.deploy.folder import is_bundle, is_series, require_bundle_place, series_hint
from routespace.deploy.scores import Score, older_scores
from routespace.errors import BundleError, SpecError, command_line
from routespace.files import read_json, replaced_folder, write_json, write_text
from routespace.grid.families.base import Family
from routespace.nn.cost import network_cost
from routespace.nn.heads.base import Head, Maps, listed
from routespace.nn.heads.classify import Classifier
from routespace.nn.heads.kinds import HEADS
from routespace.nn.module import unwrap
from routespace.nn.route_net import RouteNet
from routespace.nn.task_net import AnyNet, TaskNet, as_task_net
from routespace.nn.weights import check_loads, load_net, save_net
from routespace.values import Value
from routespace.versions import versions_of

CHUNK_BYTES = 1 << 20
ANSWERING = tuple(kind for kind in HEADS if kind != Maps.kind)  # heads whose outputs say something of a picture
Amount = Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _versions() -> dict[str, str]:
    return versions_of("routespace") | {"torch": str(torch.__version__)}


class Provenance(Value):
    """Where a network comes from.

    Args:
        recipe, recipe_hash: name and content hash of the recipe it was trained with.
        run: the run (or study and trial) it was taken from.
        parent: hash of the architecture it was extracted from.
        versions: package → version that wrote the bundle.
        date: when, UTC, ISO 8601.
    """

    recipe: str | None = None
    recipe_hash: str | None = None
    run: str | None = None
    parent: str | None = None
    versions: dict[str, str] = Field(default_factory=_versions)
    date: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class Card(Value):
    """What is known about a bundle's network. `Card.of` fills in what the network itself tells.

    Args:
        grid, architecture: content hashes.
        static: nothing is gated.
        costs: resource (`params`, `macs`, …: the table in `grid/resources.py`) → what one image of the spec's size
            takes with everything computed, gates included.
        counted_macs: of a routed network, what one image takes on average of validation images, of all that a
            budget counts.
        scores: how good it was found to be, at each stage of its life, and on which images.
        remarks: that it is routed; what its head does without, such as maps of rates that it never reaches.
        provenance: where it comes from.
        use: four lines of Python, to be run beside the bundle's folder; `save_bundle` fills them in.
        files: file name → SHA-256; `save_bundle` fills it in.
    """

    format: Literal["routespace.card/4"] = "routespace.card/4"
    grid: str
    architecture: str
    static: bool
    costs: Mapping[str, Amount]
    counted_macs: Amount | None = None
    scores: tuple[Score, ...] = ()
    remarks: tuple[str, ...] = ()
    provenance: Provenance = Field(default_factory=Provenance)
    use: tuple[str, ...] = ()
    files: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_older(cls, data: Any) -> Any:
        """Cards used to name two resources (1), and two accuracies (1 and 2), as fields of their own; and what is
        counted of a routed network as expected (1 to 3).
        """
        older = [f"routespace.card/{number}" for number in (1, 2, 3)]
        if not isinstance(data, dict) or data.get("format") not in older:
            return data
        found = dict(data)
        if data["format"] == older[0]:
            found["costs"] = {name: found.pop(name) for name in ("macs", "params") if name in found}
        if data["format"] in older[:2]:
            found["scores"] = older_scores(found)
        return found | {"format": "routespace.card/4", "counted_macs": found.pop("expected_macs", None)}

    @model_validator(mode="after")
    def _check(self) -> Self:
        missing = [name for name in ("params", "macs") if name not in self.costs]
        if missing:
            raise ValueError(f"costs.{missing[0]}: missing; it must be given")
        return self

    @property
    def macs(self) -> int:
        """Multiply-adds of one image with everything computed."""
        return int(self.costs["macs"])

    @property
    def params(self) -> int:
        """Learned numbers."""
        return int(self.costs["params"])

    @classmethod
    @checked
    def of(
        cls,
        net: AnyNet,
        *,
        scores: Iterable[Score] = (),
        counted_macs: float | None = None,
        provenance: Provenance | None = None,
    ) -> Self:
        """The card of a network, wrapped or not: hashes, MACs and parameters are its own."""
        net = unwrap(net, wanted=(TaskNet, RouteNet))
        cost = network_cost(net)
        return cls(
            grid=net.spec.hash,
            architecture=net.architecture.hash,
            static=net.architecture.is_static,
            costs={**cost.totals, "params": sum(parameter.numel() for parameter in net.parameters())},
            counted_macs=counted_macs,
            scores=tuple(scores),
            remarks=_remarks(net),
            provenance=provenance or Provenance(),
        )


def _remarks(net: AnyNet) -> tuple[str, ...]:
    """What a network does without, a line each."""
    told = net.head.lines() if isinstance(net, TaskNet) and isinstance(net.head, Head) else ()
    if told or not net.architecture.missing_rates:
        return told
    return (f"architecture: it never reaches rates {listed(net.architecture.missing_rates)}",)


class Bundle(NamedTuple):
    """A network and its card."""

    net: TaskNet
    card: Card


@checked
def save_bundle(
    net: AnyNet,
    folder: Path | str,
    card: Card,
    *,
    overwrite: bool = False,
    texts: Mapping[str, str] | None = None,
) -> Card:
    """Write a bundle: everything is made next to the target and moved there in one step.

    Args:
        net: the network, or a wrapper of one such as torch.compile's.
        folder: where to; it is made, and must not exist, be empty, or be a bundle to overwrite.
        card: of this network.
        overwrite: replace an existing bundle. Never replaces a folder that is not one.
        texts: file name → content, of what shall lie beside the network: its recipe, for example.

    Returns:
        The card as written, with the files' checksums.

    Raises:
        BundleError: the folder exists, cannot be written, the disk is full, the card is another network's, or the
            network could not be loaded again, as it was changed in a way that its architecture does not tell.
        SpecError: the module is no RouteNet, nor one in a wrapper such as torch.compile's.
    """
    net = as_task_net(unwrap(net, wanted=(TaskNet, RouteNet)))
    folder = Path(os.path.abspath(folder))
    if (card.grid, card.architecture) != (net.spec.hash, net.architecture.hash):
        raise BundleError(
            f"card: it is of architecture {card.architecture}, the network of {net.architecture.hash}; "
            f"make it with Card.of(net, …)"
        )
    check_loads(net)
    require_bundle_place(folder, overwrite=overwrite)
    with replaced_folder(folder) as partial:
        save_net(net, partial)
        found = {name: _sha256(partial / name) for name in (file_names.WEIGHTS, file_names.NETWORK)}
        use = how_to_use(net, folder.name, fed=file_names.PREPROCESS in (texts or {}))
        card = card.model_copy(update={"use": use, "files": found})
        write_json(partial / file_names.CARD, card.model_dump(mode="json"))
        for name, text in (texts or {}).items():
            write_text(partial / name, text)
    return card


def how_to_use(net: TaskNet, name: str, *, fed: bool) -> tuple[str, ...]:
    """Four lines of Python that run a network.

    Args:
        net: the network.
        name: of its folder.
        fed: the folder tells how images go in, so it can be given pictures rather than numbers.
    """
    if fed and net.head.kind in ANSWERING:
        told = "label, found.score" if net.head.kind == Classifier.kind else "labels, found.scores"
        return (
            "from routespace import Predictor",
            f"predictor = Predictor({name!r})",
            'for found in predictor("photos"):  # a folder, or a list of paths, PIL images or arrays',
            f"    print(found.path, found.{told})",
        )
    shape = ", ".join(map(str, (1, net.spec.in_channels, *net.spec.image_size)))
    return (
        "import torch",
        "from routespace import load_bundle",
        f"net = load_bundle({name!r}).net",
        f"outputs = net(torch.zeros({shape})).outputs  # of normalised pixels",
    )


@checked
def load_bundle(folder: Path | str, *, families: Iterable[Family] = ()) -> Bundle:
    """The network, in evaluation mode on the CPU, and the card that `save_bundle` wrote.

    Args:
        folder: the bundle.
        families: block families of your own that it may be made of; a file alone imports none.

    Raises:
        BundleError: not a bundle, or a file is missing, truncated, changed or of another bundle.
    """
    folder = Path(folder)
    _check_source(folder)
    card = _read_card(folder / file_names.CARD)
    for name in (file_names.NETWORK, file_names.WEIGHTS):
        _check_file(folder / name, card.files.get(name))
    net = load_net(folder, families=families)
    if (card.grid, card.architecture) != (net.spec.hash, net.architecture.hash):
        raise BundleError(
            f"{folder / file_names.CARD}: it is of architecture {card.architecture}, the network of "
            f"{net.architecture.hash}; the files come from different bundles"
        )
    return Bundle(net.eval(), card)


def _check_source(folder: Path) -> None:
    """Raise BundleError for what is no bundle, with what it is."""
    made = "made with `routespace extract … -o DIR`"
    if not folder.exists():
        raise BundleError(f"{folder}: does not exist; give a bundle's folder, {made}")
    if not folder.is_dir():
        raise BundleError(f"{folder}: is a file; give a bundle's folder, {made}")
    if is_bundle(folder):
        return
    if is_series(folder):
        raise BundleError(f"{folder}: {series_hint(folder)}")
    if any(folder.glob(f"*/{file_names.NETWORK}")):
        raise BundleError(
            f"{folder}: is a run, not a bundle; read it with load_run, or take a network out of it with "
            f"`{command_line('extract', folder)} -o DIR`"
        )
    raise BundleError(f"{folder}: has no {file_names.CARD}; give a bundle's folder, {made}")


def _read_card(path: Path) -> Card:
    data = read_json(path, wanted="a bundle, made with `routespace extract … -o DIR`")
    try:
        return Card.parse(data)
    except SpecError as error:
        raise BundleError(f"{path}: {error}; save the bundle again") from error


def _check_file(path: Path, wanted: str | None) -> None:
    try:
        found = _sha256(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); the bundle is incomplete") from error
    if found != wanted:
        raise BundleError(
            f"{path}: its checksum is not the one in {file_names.CARD}; the file is truncated, was changed, or "
            f"comes from another bundle; copy the bundle again"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
