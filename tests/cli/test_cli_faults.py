"""Wrong use: one line that says what to do, before any work, with nothing left behind."""

import json

import pytest
from tiny_grid import TINY_GRID

from routespace import Architecture, RoutingGrid, TaskNet, load_recipe, save_bundle
from routespace.cli.app import told
from routespace.deploy.bundle import Card
from routespace.errors import DataError, SpecError
from routespace.grid.spec import GridSpec
from routespace.train.given_weights import require_given
from routespace.train.recipe.parts import TrainSpec

FEW = ["--set", "data.train_size=64", "--set", "data.val_size=32", "--set", "data.test_size=32"]
SMALL = [
    *("--set", "train.batch_size=32", "--set", "train.warmup_epochs=0", "--set", "train.epochs=1"),
    *("--set", "grid.layers=2", "--set", "grid.embed_layers=all", "--device", "cpu"),
]


@pytest.fixture
def bundle(tmp_path):
    """A bundle of a small network that was never trained, without a recipe."""
    net = TaskNet.classifier(Architecture.staircase(RoutingGrid(GridSpec.parse(TINY_GRID))))
    save_bundle(net, tmp_path / "bundle", Card.of(net))
    return tmp_path / "bundle"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--nosuch"], ["No such option", "--nosuch"]),
        (["build", "--nosuch"], ["No such option", "--nosuch"]),
        (["evaluate"], ["Missing argument"]),
        (["recipes", "show"], ["NAME", "recipes show digits_tiny"]),
        (["recipes", "list"], ["'list'", "recipes show NAME"]),
        (["recipes", "--set", "seed=1"], ["recipes show NAME"]),
        (["evaluate", "nosuch"], ["nosuch", "does not exist"]),
        (["evaluate", "afile"], ["afile", "is a file"]),
        (["export", "afile", "-o", "out"], ["afile", "is a file"]),
        (["export", "nosuch", "-o", "out", "--format", "onnx"], ["nosuch", "does not exist"]),
        (["export", "bundle", "-o", "afile"], ["afile", "cannot be written"]),
        (["export", "bundle", "-o", "out", "--image-size", "big"], ["image_size", "160x256"]),
        (["export", "bundle", "-o", "out", "--format", "onnx,onnx2"], ["format", "'onnx2'", "pt2"]),
        (["verify", "bundle", "--against", "nosuch"], ["nosuch"]),
        (["verify", "bundle", "--against", "bundle", "--tolerance", "-1"], ["tolerance", "-1"]),
        (["verify", "bundle", "--against", "bundle", "--tolerance", "nan"], ["tolerance", "nan"]),
        (["verify", "bundle", "--against", "bundle", "--tolerance", "inf"], ["tolerance", "inf"]),
        (["evaluate", "bundle", "--split", "train"], ["split", "test or val"]),
        (["extract", "bundle", "-o", "bundle"], ["bundle", "--overwrite"]),
        (["extract", "nosuch", "-o", "out"], ["nosuch", "does not exist"]),
        (["extract", "bundle", "-o", "full"], ["full", "no bundle"]),
        (["extract", "bundle", "-o", "out", "--method", "guess"], ["method", "milp"]),
        (["extract", "bundle", "-o", "out", "--ratio", "0"], ["ratio", "above 0"]),
        (["extract", "bundle", "-o", "out", "--ms", "3"], ["--latency"]),
        (["extract", "bundle", "-o", "out", "--limit", "joy=3"], ["joy=3", "params"]),
        (["extract", "bundle", "-o", "out", "--limit", "params"], ["'params'", "NAME=AMOUNT"]),
        (["extract", "bundle", "-o", "out", "--limit", "params=-1"], ["limit.params", "above 0"]),
        (["extract", "bundle", "-o", "out", "--limit", "params=nan"], ["limit.params", "above 0"]),
        (["extract", "bundle", "-o", "out", "--limit", "macs=1M", "--macs", "2M"], ["macs", "twice"]),
        (["extract", "bundle", "-o", "out", "--limit", "macs=1M", "--ratio", "0.5"], ["--ratio"]),
        (["extract", "bundle", "-o", "out", "--limit", "latency_ms=3"], ["--ms"]),
        (
            ["extract", "bundle", "-o", "out", "--finetune", "1", "--teacher", "nosuch"],
            ["train.teacher", "nosuch", "does not exist"],
        ),
        (["profile", "grid.json", "-o", "full"], ["full", "cannot be written"]),
        (["profile", "grid.json", "-o", "t.json", "--dtype", "int8"], ["dtype", "float32"]),
        (["train", "digits_tiny", "--out", "full"], ["full", "not empty"]),
        (["train", "digits_tiny", "--out", "afile"], ["afile"]),
        (["train", "digits_tiny", "--out", "afile/run"], ["afile"]),
        (["train", "digits_tiny", "--from", "nosuch"], ["nosuch", "does not exist"]),
        (
            ["train", "digits_tiny", "--set", "train.weights=nosuch.pth"],
            ["train.weights", "not exist"],
        ),
        (["train", "digits_tiny", "--set", "train.weights=full"], ["train.weights", "full", "has no network"]),
        (["train", "digits_tiny", "--set", "train.teacher=nosuch"], ["train.teacher", "nosuch", "not exist"]),
        (["train", "digits_tiny", "--out", "/proc/run"], ["/proc/run", "cannot be written"]),
        (["search", "dit_b2_imagenet", "--out", "s"], ["search.space"]),
        (["search", "digits_tiny", "--out", "s", "--trials", "0"], ["trials", "at least 1"]),
        (["search", "digits_tiny", "--out", "s", "--study", ""], ["--study: is empty", "leave it out"]),
        (["search", "digits_tiny", "--out", "s", "--study", " "], ["study: ' ' is no name", "leave it out"]),
        (["search", "digits_tiny", "--out", "s", "--storage", " "], ["storage: ' ' is no place", "leave it out"]),
        (["train", "digits_tiny", "--data", "", "--out", "s"], ["--data: is empty", "unset"]),
        (["predict", "bundle", "photos", "--draw="], ["--draw: is empty"]),
        (["export", "bundle", "-o", ""], ["-o: is empty"]),
        (["data", "check", ""], ["an argument: is empty"]),
        (["search", "digits_tiny", "--out", "s", "--seed", "-1"], ["seed", "0 to"]),
        (["search", "digits_tiny", "--out", "s", "--set", "train.weights=nosuch"], ["train.weights", "nosuch"]),
        (["search", "digits_tiny", "--out", "s", "--latency", "nosuch.json"], ["latency_table", "no such file"]),
        (["search", "digits_tiny", "--out", "s", "--storage", "foo://x"], ["storage", "foo"]),
        (["search", "digits_tiny", "--out", "full"], ["full", "holds no study"]),
        (["search", "digits_tiny", "--out", "afile"], ["afile", "is a file"]),
        (["search", "digits_tiny", "--out", "/proc/s"], ["/proc/s", "cannot be written"]),
        (["evaluate", "bundle", "--device", "tpu"], ["device", "'tpu'", "cuda:1"]),
        (["bench", "grid.json", "--device", "cuda:x"], ["device", "'cuda:x'"]),
        (["predict", "bundle", "full", "--ids", "nosuch.json"], ["ids", "--json"]),
        (["predict", "bundle", "full", "--ids", "nosuch.json", "--json"], ["ids", "no such file"]),
        (["demo", "--out", "full"], ["full", "holds no demo"]),
        (["demo", "--out", "afile"], ["afile", "cannot be written"]),
        (["demo", "--out", "afile/demo"], ["afile", "cannot be written"]),
    ],
)
def test_wrong_use_is_one_line_before_torch_is_loaded(args, words, bundle, tmp_path, alone):
    (tmp_path / "afile").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "grid.json").write_text(json.dumps(TINY_GRID))
    before = sorted(tmp_path.rglob("*"))
    done = alone(tmp_path, *args)
    assert (done.code, done.out, done.torch) == (2, "", False), done.err
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_corrupt_image_in_a_worker_is_one_line_and_leaves_nothing(cli, pictures, tmp_path):
    args = ["train", "digits_tiny", *SMALL, "--data", pictures, "--set", "grid.num_classes=2"]
    args += ["--set", "train.batch_size=8", "--set", "data.val_fraction=0.2", "--set", "data.workers=2"]
    line = cli(*args, "--out", tmp_path / "runs" / "bad")
    line.assert_refused(str(pictures / "train" / "cat" / "03.png"))
    assert "worker" not in line.err
    assert len(line.err) < 400
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize("error", [DataError, OSError, ValueError])
def test_what_a_worker_said_is_told_without_its_traceback(error, capsys):
    text = (
        f"Caught {error.__name__} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    )
    text += (
        f'  File "x.py", line 3, in y\n    read()\nroutespace.errors.{error.__name__}: a b/03.png: is cut off\n'
    )
    ended = told(error(text))
    assert (ended is None) == (error is ValueError)  # ours to mend
    if ended is not None:
        assert capsys.readouterr().err == "error: a b/03.png: is cut off\n"


def test_channels_that_do_not_fit_leave_nothing(cli, tmp_path):
    args = ["train", "digits_tiny", *FEW, *SMALL, "--set", "grid.in_channels=1", "--out", tmp_path / "run"]
    cli(*args).assert_refused("channels")
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_decimal(cli):
    shown = cli("recipes", "show", "digits_tiny", "--set", "data.train_size=0100", "--set", "seed=0012")
    assert "train_size: 100\n" in shown.assert_fine().out
    assert "seed: 12\n" in shown.out


def test_commands_that_go_on_are_complete_and_quoted(cli, tmp_path):
    out = tmp_path / "a b"
    args = ["train", "digits_tiny", *FEW, *SMALL, "--set", "budget.ratio=0.6", "--out", out]
    cli(*args).assert_fine()
    done = cli("extract", out, "--no-evaluate", "-o", tmp_path / "the small one").assert_fine().out
    assert f"routespace train '{out}' --from '{tmp_path / 'the small one'}'" in done
    assert f"routespace predict '{tmp_path / 'the small one'}' IMAGE_OR_FOLDER\n" in done
    assert load_recipe(out).budget.ratio == 0.6


def test_the_same_command_is_told_with_all_its_options(cli, monkeypatch, tmp_path):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("routespace.search.run_study", interrupted)
    given = ["search", "digits_tiny", "--set", "search.overrides={train.epochs: 1}", "--out", tmp_path / "a b"]
    result = cli(*given)
    assert result.code == 130
    told = f"routespace search digits_tiny --set 'search.overrides={{train.epochs: 1}}' --out '{tmp_path / 'a b'}'"
    assert result.err == f"error: interrupted; the same command goes on: {told}\n"


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_an_image_size_that_the_network_cannot_take_is_refused_before_anything_is_exported(cli, bundle, form):
    cli("export", bundle, "-o", bundle.parent / "x", "--format", form, "--image-size", 7).assert_refused(
        "image_size: 7x7"
    )
    assert not (bundle.parent / "x").exists()


def test_a_device_that_is_not_there(cli, bundle):
    for args in (["export", bundle, "-o", bundle.parent / "x"], ["verify", bundle, "--against", bundle]):
        cli(*args, "--device", "tpu").assert_refused("device", "cuda")
        cli(*args, "--device", "cuda:99").assert_refused("device", "cuda:99")
    with pytest.raises(SpecError, match=r"train\.device"):
        load_recipe("digits_tiny", ["train.device=tpu"])
    cli("train", "digits_tiny", "--device", "tpu", "--out", bundle.parent / "x").assert_refused("train.device")


@pytest.mark.parametrize("begun", [False, True])
def test_an_interrupted_training_says_what_is_left(begun, cli, monkeypatch, tmp_path):
    def interrupted(recipe, out, **options):
        if begun:
            out.mkdir()
            (out / "recipe.yaml").write_text(recipe.to_yaml())
        raise KeyboardInterrupt

    monkeypatch.setattr("routespace.train.run.train_recipe", interrupted)
    result = cli("train", "digits_tiny", "--out", tmp_path / "a b")
    assert result.code == 130
    (line,) = result.err.splitlines()
    assert line.startswith("error: interrupted; ")
    assert (f"routespace train '{tmp_path / 'a b'}' --resume" in line) == begun
    assert ("nothing is left" in line) == (not begun)


@pytest.mark.parametrize(("rank", "local", "told"), [("0", "0", True), ("1", "1", False), ("3", "0", True)])
def test_of_several_processes_one_on_each_machine_tells_an_error(cli, monkeypatch, rank, local, told):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", local)
    for words in (["train", "nosuch"], ["train", "digits_tiny", "--nosuch"]):
        done = cli(*words)
        assert done.code == 2
        assert done.err.startswith("error: ") == told
        assert not done.out


@pytest.mark.parametrize(
    "words",
    [
        ["train", "digits_tiny", "--data", "nosuch", "--out", "run"],
        ["train", "digits_tiny", "--set", "data.kind=csv", "--set", "data.root=nosuch.csv", "--out", "run"],
        ["search", "digits_tiny", "--data", "nosuch", "--out", "study"],
        ["search", "digits_tiny", "--set", "search=null", "--out", "study"],
        ["evaluate", "bundle", "--data", "nosuch"],
    ],
)
def test_what_is_missing_is_told_before_torch_is_imported(tmp_path, words, alone):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "network.json").write_text("{}")
    done = alone(tmp_path, *words)
    assert (done.code, done.torch) == (2, False), done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


def test_a_tilde_is_the_home_folder_wherever_a_shell_leaves_it(cli, tmp_path, monkeypatch):
    """A shell reads `-o ~/x`, but neither `--out=~/x` nor a value of --set, nor what a recipe says."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    grid = ["build", "--layers", 3, "--size", "b0", "--max-down", 16]
    cli(*grid, "--out=~/one.json").assert_fine()
    cli(*grid, "-o", "~/two.json").assert_fine()
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["one.json", "two.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    there = str(tmp_path / "home")
    cli("train", "digits_tiny", "--set", "train.weights=~/no.pth").assert_refused(
        f"{there}/no.pth: does not exist"
    )
    cli("predict", "~/no", "x.png").assert_refused(f"{there}/no")
    (tmp_path / "home/w.pth").touch()
    require_given(TrainSpec(weights="~/w.pth"))  # as a recipe has it
    with pytest.raises(SpecError, match=r"train\.teacher: ~/w\.pth: has no network"):
        require_given(TrainSpec(teacher="~/w.pth"))
    cli("train", "digits_tiny", "--set", "train.weights=~", "--set", "routing=nosuch").assert_refused("routing")
