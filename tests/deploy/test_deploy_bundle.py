"""Bundles: whole or not at all, and every damage noticed."""

import copy
import json
import os
import resource
import shutil
from contextlib import contextmanager

import pytest
import torch
from PIL import Image

from routespace import file_names
from routespace.deploy.bundle import Card, Provenance, load_bundle, save_bundle
from routespace.deploy.extract import extract
from routespace.deploy.folder import is_bundle
from routespace.deploy.scores import Score
from routespace.deploy.verify import verify
from routespace.errors import BundleError
from routespace.grid.architecture import Architecture
from routespace.grid.cost import architecture_cost
from routespace.grid.graph import RoutingGrid
from routespace.grid.spec import GridSpec
from routespace.nn.heads.classify import Classifier
from routespace.nn.task_net import TaskNet
from routespace.nn.weights import load_net, save_net
from routespace.preprocess import Preprocess, preprocess_to_json

FIELDS = {"layers": 2, "max_down": 8, "widths": (8, 16), "heads": (1, 2), "mlp_ratios": (2.0, 2.0),
          "sr_ratios": (2, 1), "image_size": 32, "num_classes": 3}  # fmt: skip


def make_net(seed=0, **changes):
    torch.manual_seed(seed)
    return TaskNet.classifier(Architecture.staircase(RoutingGrid(GridSpec.parse(FIELDS | changes)))).eval()


@pytest.fixture
def net():
    return make_net()


@pytest.fixture
def bundle(net, tmp_path):
    save_bundle(net, tmp_path / "small", Card.of(net))
    return tmp_path / "small"


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(net, tmp_path):
    provenance = Provenance(recipe="digits_tiny", recipe_hash="abc", run="runs/1")
    scores = [Score(stage="extracted", metric="accuracy", value=0.31, images=40, split="val", data="digits")]
    card = Card.of(net, scores=scores, provenance=provenance)
    written = save_bundle(net, tmp_path / "a" / "b", card)
    loaded = load_bundle(tmp_path / "a" / "b")
    assert loaded.card == written
    assert loaded.card.provenance.recipe == "digits_tiny"
    assert loaded.card.macs == architecture_cost(net.architecture).macs
    assert loaded.card.params == sum(p.numel() for p in net.parameters())
    assert loaded.card.costs == architecture_cost(net.architecture).totals
    assert loaded.net.architecture == net.architecture
    assert not loaded.net.training
    assert all(torch.equal(t, loaded.net.state_dict()[k]) for k, t in net.state_dict().items())
    assert left_in(tmp_path) == ["a"]
    assert left_in(tmp_path / "a") == ["b"]
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o755


def test_types_are_kept(tmp_path):
    net = make_net().to(torch.bfloat16)
    save_bundle(net, tmp_path / "half", Card.of(net))
    assert {t.dtype for t in load_bundle(tmp_path / "half").net.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tensors_lie_in_memory_as_in_the_network_that_was_saved(tmp_path, dtype):
    net = make_net().to(dtype)
    reread = tmp_path / "reread"
    save_bundle(net, tmp_path / "small", Card.of(net))
    loaded = load_bundle(tmp_path / "small").net
    save_bundle(loaded, reread, Card.of(loaded))
    formats = {name: tensor.stride() for name, tensor in net.state_dict().items()}
    assert (72, 1, 24, 8) in formats.values()  # a patch embedding, channels-last as token maps are
    for found in (loaded, load_bundle(reread).net, extract(loaded, loaded.architecture)):
        assert {name: tensor.stride() for name, tensor in found.state_dict().items()} == formats
        assert {tensor.dtype for tensor in found.state_dict().values()} == {dtype}
        assert all(parameter.requires_grad for parameter in found.parameters())


def test_types_that_differ_inside_a_network_are_kept(net, tmp_path):
    net.head.to(torch.float64)
    save_bundle(net, tmp_path / "mixed", Card.of(net))
    types = {name: tensor.dtype for name, tensor in load_bundle(tmp_path / "mixed").net.state_dict().items()}
    assert types == {name: tensor.dtype for name, tensor in net.state_dict().items()}


def test_a_loaded_routed_network_computes_only_what_its_gates_keep(tmp_path):
    grid = RoutingGrid(GridSpec.parse(FIELDS))
    for architecture, execution in ((Architecture.full(grid), "auto"), (Architecture.staircase(grid), "dense")):
        net = TaskNet.classifier(architecture)
        folder = tmp_path / execution
        save_bundle(net, folder, Card.of(net))
        assert load_bundle(folder).net.execution == execution


def test_loading_leaves_the_random_state_alone(bundle):
    state = torch.get_rng_state()
    load_bundle(bundle)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_loaded_or_extracted_under_inference_mode_can_be_trained(net, bundle):
    with torch.inference_mode():
        found = [load_bundle(bundle).net, extract(net, net.architecture)]
    for part in found:
        part.train()(torch.randn(2, 3, 32, 32)).logits.sum().backward()
        assert part.backbone.stem.proj.weight.grad is not None


WRAPPERS = {
    "torch.compile": lambda net: torch.compile(net, backend="eager"),
    "DataParallel": torch.nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_networks_are_saved_extracted_and_verified_as_themselves(net, wrap, tmp_path):
    wrapped = wrap(net)
    save_bundle(wrapped, tmp_path / "small", Card.of(wrapped))
    assert load_bundle(tmp_path / "small").net.state_dict().keys() == net.state_dict().keys()
    part = extract(wrapped, net.architecture)
    assert part.state_dict().keys() == net.state_dict().keys()
    report = verify(wrapped, net.architecture, wrap(part))
    assert report.ok, report.lines()


CHANGES = {
    "another head": (
        lambda net: setattr(net, "head", Classifier(16, 7, 8)),
        r"head\.weight has shape \(7, 16\)",
    ),
    "no head of ours": (
        lambda net: setattr(net, "head", torch.nn.Linear(16, 7)),
        "head: a Linear cannot be loaded",
    ),
    "no head": (lambda net: setattr(net, "head", None), "head: a NoneType cannot be loaded"),
    "a buffer": (lambda net: net.register_buffer("extra", torch.zeros(1)), "extra has shape"),
    "a parametrisation": (
        lambda net: torch.nn.utils.parametrizations.weight_norm(net.head),
        "head: a ParametrizedClassifier cannot be loaded",
    ),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_what_could_not_be_loaded_again_is_refused_before_anything_is_written(net, change, message, tmp_path):
    change(net)
    for call in (
        lambda: save_bundle(net, tmp_path / "deep" / "small", Card.of(net)),
        lambda: save_net(net, tmp_path),
    ):
        with pytest.raises(BundleError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert left_in(tmp_path) == []


def test_a_system_that_syncs_no_folders_saves_all_the_same(net, tmp_path, monkeypatch):
    real = os.open

    def without_folders(path, flags, *rest, **more):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))  # what Windows says
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", without_folders)
    save_bundle(net, tmp_path / "small", Card.of(net))
    assert torch.equal(load_bundle(tmp_path / "small").net.head.weight, net.head.weight)


def test_what_is_no_bundle_is_told_by_what_it_is(net, bundle, tmp_path):
    run = tmp_path / "run" / "net"
    run.mkdir(parents=True)
    save_net(net, run)
    with pytest.raises(BundleError, match="is a run, not a bundle"):
        load_bundle(run.parent)
    with pytest.raises(BundleError, match=r"has no card\.json"):
        load_bundle(run)
    with pytest.raises(BundleError, match="is a file"):
        load_bundle(bundle / file_names.CARD)


def test_nothing_else_is_overwritten(net, bundle, tmp_path):
    with pytest.raises(BundleError, match="holds a bundle already"):
        save_bundle(net, bundle, Card.of(net))
    other = make_net(1)
    save_bundle(other, bundle, Card.of(other), overwrite=True)
    assert torch.equal(load_bundle(bundle).net.state_dict()["head.weight"], other.state_dict()["head.weight"])
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="no bundle"):
        save_bundle(net, mine, Card.of(net), overwrite=True)
    with pytest.raises(BundleError, match="is a file"):
        save_bundle(net, mine / "thesis.txt", Card.of(net), overwrite=True)
    assert left_in(tmp_path) == ["mine", "small"]
    empty = tmp_path / "empty"
    empty.mkdir()
    save_bundle(net, empty, Card.of(net))
    assert is_bundle(empty)


def test_a_card_of_another_network_is_refused(net, tmp_path):
    with pytest.raises(BundleError, match="card: it is of architecture"):
        save_bundle(net, tmp_path / "x", Card.of(make_net(layers=3)))
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("name", [file_names.WEIGHTS, file_names.NETWORK, file_names.CARD])
@pytest.mark.parametrize("damage", ["truncated", "missing", "empty", "a folder", "of another bundle"])
def test_damage_is_noticed(bundle, tmp_path, name, damage):
    path = bundle / name
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "a folder":
        path.mkdir()
    elif damage == "of another bundle":
        other = make_net(7)
        save_bundle(other, tmp_path / "other", Card.of(other))
        if name == file_names.NETWORK:  # two nets of one architecture have the same one
            path.write_bytes(content.replace(b"token", b"image"))
        else:
            shutil.copy(tmp_path / "other" / name, path)
    with pytest.raises(BundleError) as caught:
        load_bundle(bundle)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value) or file_names.WEIGHTS in str(caught.value)


def test_a_network_without_numbers_is_not_saved(net, tmp_path):
    empty = copy.deepcopy(net).to("meta")
    with pytest.raises(BundleError, match=r"net: its .* is on the meta device, which holds no numbers"):
        save_bundle(empty, tmp_path / "empty", Card.of(net))
    assert not (tmp_path / "empty").exists()


def test_a_card_that_names_two_resources_as_older_ones_do(net, bundle):
    card = json.loads((bundle / file_names.CARD).read_text())
    costs = card.pop("costs")
    older = card | {"format": "routespace.card/1", "macs": costs["macs"], "params": costs["params"]}
    (bundle / file_names.CARD).write_text(json.dumps(older))
    loaded = load_bundle(bundle).card
    assert (loaded.macs, loaded.params) == (Card.of(net).macs, Card.of(net).params)
    assert loaded.format == Card.of(net).format


def test_a_card_with_two_accuracies_as_older_ones_do(bundle):
    card = json.loads((bundle / file_names.CARD).read_text())
    del card["scores"]
    told = {"accuracy_before": 0.25, "accuracy_after": 0.5, "accuracy_on": "40 validation images of digits"}
    (bundle / file_names.CARD).write_text(json.dumps(card | told | {"format": "routespace.card/2"}))
    found = load_bundle(bundle).card.scores
    assert [(score.stage, score.metric, score.value) for score in found] == [
        ("extracted", "accuracy", 0.25),
        ("fine_tuned", "accuracy", 0.5),
    ]
    assert {score.on for score in found} == {"40 validation images of digits"}


def test_a_card_with_unknown_or_impossible_fields_is_refused(bundle):
    card = json.loads((bundle / file_names.CARD).read_text())
    for change, message in (
        ({"colour": 1}, "colour: unknown field"),
        ({"scores": [{"stage": "trained", "metric": "accuracy", "value": 71.0}]}, r"scores\.0.*71.*from 0 to 1"),
        ({"scores": [{"stage": "born", "metric": "accuracy", "value": 0.5}]}, r"scores\.0\.stage"),
        ({"costs": {"macs": 1}}, r"costs\.params: missing"),
        ({"costs": {"macs": -1, "params": 1}}, r"costs\.macs"),
    ):
        (bundle / file_names.CARD).write_text(json.dumps(card | change))
        with pytest.raises(BundleError, match=message):
            load_bundle(bundle)


def test_no_such_folder(tmp_path):
    with pytest.raises(BundleError, match="does not exist"):
        load_bundle(tmp_path / "nowhere")


@contextmanager
def files_of_at_most(size):
    """A limit on the size of written files gives a real OSError in the middle of the weights."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


@pytest.mark.parametrize(("name", "overwrite"), [("new", False), ("small", True)])
def test_a_full_disk_leaves_nothing_behind(net, bundle, tmp_path, name, overwrite):
    found = load_bundle(bundle).net
    with pytest.raises(BundleError) as caught, files_of_at_most(4096):
        save_bundle(found, bundle.parent / name, Card.of(found), overwrite=overwrite)
    assert "cannot be written (File too large)" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path) == ["small"]
    assert torch.equal(load_bundle(bundle).net.state_dict()["head.weight"], net.state_dict()["head.weight"])


def test_a_place_that_cannot_be_written(net, tmp_path):
    with pytest.raises(BundleError, match="cannot be written"):
        save_bundle(net, "/proc/bundle", Card.of(net))
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot be written"):
        save_bundle(net, tmp_path / "file" / "bundle", Card.of(net))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(net, tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(BundleError, match="Permission denied"):
        save_bundle(net, tmp_path / "bundle", Card.of(net))
    tmp_path.chmod(0o755)


def test_weights_and_architecture_of_two_networks_do_not_mix(tmp_path):
    for name, net in (("a", make_net()), ("b", make_net(layers=3))):
        (tmp_path / name).mkdir()
        save_net(net, tmp_path / name)
    shutil.copy(tmp_path / "a" / file_names.WEIGHTS, tmp_path / "b" / file_names.WEIGHTS)
    with pytest.raises(BundleError, match="different networks"):
        load_net(tmp_path / "b")
    with pytest.raises(BundleError, match="cannot be written"):
        save_net(make_net(), tmp_path / "nowhere")


@pytest.mark.parametrize("fed", [True, False])
def test_the_card_tells_how_to_use_it_in_four_lines(net, fed, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "it's small"
    classes = [f"class {number}" for number in range(net.spec.num_classes)]
    preprocess = Preprocess(size=net.spec.image_size, channels=net.spec.in_channels)
    text = json.dumps(preprocess_to_json(preprocess, classes))
    card = save_bundle(net, folder, Card.of(net), texts={file_names.PREPROCESS: text} if fed else {})
    assert len(card.use) == 4
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (50, 40), "red").save(tmp_path / "photos" / "a.webp")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("\n".join(load_bundle(folder).card.use), names)
    if fed:
        assert capsys.readouterr().out.startswith("photos/a.webp class ")
    else:
        assert names["outputs"].shape == (1, net.spec.num_classes)


def test_the_card_of_a_backbone_tells_how_to_use_it(tmp_path, monkeypatch):
    net = make_net(num_classes=0)
    texts = {file_names.PREPROCESS: json.dumps(preprocess_to_json(Preprocess(size=net.spec.image_size), ()))}
    card = save_bundle(net, tmp_path / "maps", Card.of(net), texts=texts)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("\n".join(card.use), names)
    assert names["outputs"]
