"""Image sizes that are compared after the first epochs of a fine-tuning."""

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from train_tiny import tiny

from routespace import FineTuning, extract_bundle, load_run, train_recipe
from routespace.train.stopping import TrainingStoppedError
from routespace.workflow import first_epochs as compared
from routespace.workflow import sizing
from routespace.workflow.first_epochs import first_epochs
from routespace.workflow.sizing import choose_size
from routespace.workflow.wishes import ExtractionWatch, Listener

SIZES = [16, 24, 32]
TUNING = FineTuning(5, "none")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a plain network on images of 32 px."""
    out = tmp_path_factory.mktemp("sizes") / "run"
    train_recipe(tiny(routing="static", train__epochs=1), out)
    return load_run(out)


@pytest.fixture
def scored(monkeypatch):
    """Lets the best part of each size have the score that is given for its side."""

    def give(scores):
        real = sizing._best_at

        def best(artifact, *args, **options):
            return real(artifact, *args, **options)[0], scores[artifact.net.spec.image_size[0]]

        monkeypatch.setattr(sizing, "_best_at", best)

    return give


@pytest.fixture
def trained(monkeypatch):
    """Lets the first epochs give the score that is set for a side; (side, epochs) of each that was trained."""
    heard: list[tuple[int, int]] = []

    def give(scores):
        def begin(artifact, small, tuning, folder, *, epochs, **options):
            heard.append((small.spec.image_size[0], epochs))
            return scores[small.spec.image_size[0]]

        monkeypatch.setattr(compared, "begin_tuning", begin)
        return heard

    return give


def side(choice) -> int:
    """Of the chosen images."""
    return choice.artifact.net.spec.image_size[0]


def test_the_best_after_the_first_epochs_goes_on_and_what_is_behind_in_both_is_not_trained(run, scored, trained):
    scored({16: 0.6, 24: 0.4, 32: 0.5})
    heard = trained({16: 0.7, 32: 0.8})
    choice = choose_size(run, SIZES, {}, way="usage")
    assert side(choice) == 16
    assert [rival.artifact.net.spec.image_size[0] for rival in choice.rivals] == [16, 32]
    with first_epochs(choice, replace(TUNING, epochs=14), ExtractionWatch()) as begun:
        assert heard == [(16, 2), (32, 2)]
        assert side(begun.choice) == 32
        assert begun.choice.part == choice.rivals[1].part
        assert [(each.score, each.epochs, each.tuned) for each in begun.choice.tried] == [
            (0.6, 2, 0.7),
            (0.4, 0, None),
            (0.5, 2, 0.8),
        ]


def test_of_equals_after_training_the_one_of_the_most_macs_goes_on(run, scored, trained):
    scored({16: 0.6, 24: 0.5, 32: 0.4})
    trained(dict.fromkeys(SIZES, 0.7))
    with first_epochs(choose_size(run, SIZES, {}, way="usage"), TUNING, ExtractionWatch()) as begun:
        assert side(begun.choice) == 32


@pytest.mark.parametrize(
    "tuning", [None, FineTuning(4, "none"), replace(TUNING, most_cut=0.5)], ids=["none", "few epochs", "in steps"]
)
def test_without_epochs_to_spare_the_choice_is_as_before(run, scored, trained, tuning):
    scored({16: 0.6, 24: 0.5, 32: 0.4})
    heard = trained({})
    choice = choose_size(run, SIZES, {}, way="usage")
    with first_epochs(choice, tuning, ExtractionWatch()) as begun:
        assert (begun.choice, begun.folder) == (choice, None)
    assert heard == []


def test_what_is_best_as_it_is_and_largest_has_no_rival(run, scored, trained):
    scored({16: 0.4, 24: 0.5, 32: 0.6})
    heard = trained({})
    with first_epochs(choose_size(run, SIZES, {}, way="usage"), TUNING, ExtractionWatch()) as begun:
        assert (side(begun.choice), begun.folder) == (32, None)
    assert heard == []


def test_what_has_about_as_many_macs_may_still_be_better(run, scored):
    scored({32: 0.6, 24: 0.4})
    rivals = choose_size(run, [(32, 24), (24, 32), (24, 24)], {}, way="usage").rivals
    assert [rival.artifact.net.spec.image_size for rival in rivals] == [(32, 24), (24, 32)]
    assert [rival.score for rival in rivals] == [0.6, 0.4]


def test_the_winner_becomes_what_it_would_have_become_alone(run, scored, tmp_path, monkeypatch):
    scored({16: 0.6, 24: 0.5, 32: 0.4})
    places, real = list[Path](), compared.begin_tuning
    monkeypatch.setattr(
        compared, "begin_tuning", lambda *args, **named: places.append(args[3]) or real(*args, **named)
    )
    taken = extract_bundle(run, tmp_path / "several", image_size=SIZES, tuning=TUNING, evaluated=False)
    assert len(places) == 3
    assert not any(place.parent.exists() for place in places)
    tried = {each.image_size[0]: each.tuned for each in taken.tried}
    won = taken.net.spec.image_size[0]
    assert tried[won] == max(tried.values())
    alone = extract_bundle(run, tmp_path / "alone", image_size=won, tuning=TUNING, evaluated=False)
    assert taken.tuned["epochs"] == alone.tuned["epochs"] == 5
    assert taken.tuned["accuracy"] == alone.tuned["accuracy"]
    weights = alone.net.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in taken.net.state_dict().items())


def test_who_watches_hears_of_each_size_and_of_its_epochs(run, scored):
    scored({16: 0.6, 24: 0.5, 32: 0.4})
    news, told = {}, []

    class Watch(ExtractionWatch):
        @contextlib.contextmanager
        def training(self, what=""):
            yield Listener(news.setdefault(what, []).append, told.append)

    with first_epochs(choose_size(run, [24, 32], {}, way="usage"), TUNING, Watch()) as begun:
        assert begun.folder.exists()
    assert told == [f"{size}x{size} px: to compare sizes, epochs 1 to 1 of 5" for size in (24, 32)]
    for each in begun.choice.tried:
        last = news[each.text][-1]
        assert (last.metrics["epoch"], last.metrics["accuracy"], last.epochs) == (1, each.tuned, 5)


def test_a_signal_ends_the_comparison_and_nothing_is_left(run, scored, tmp_path, monkeypatch):
    scored({16: 0.6, 24: 0.5, 32: 0.4})
    places = list[Path]()

    def stopped(artifact, small, tuning, folder, **options):
        places.append(folder)
        raise TrainingStoppedError("a signal came")

    monkeypatch.setattr(compared, "begin_tuning", stopped)
    with pytest.raises(TrainingStoppedError):
        extract_bundle(run, tmp_path / "no", image_size=SIZES, tuning=TUNING)
    assert not (tmp_path / "no").exists()
    assert not places[0].parent.exists()
