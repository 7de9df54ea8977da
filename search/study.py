"""run_study: run trials until a study has as many as were asked for; start, resume and join are one call.

    study = run_study(recipe, Path("runs/search"), trials=20)
    study.best                                  # the Pareto front

Run it again with the same folder and it goes on; run it in a second shell and both work on one study. A trial
whose worker was stopped or killed is queued again with the same values and goes on in its folder. One that failed
is tried again by the next call, from its start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.storages import BaseStorage

from routespace.checked import checked, require_seed
from routespace.deploy.study_place import require_study_name, require_study_place
from routespace.grid.families.lookup import allow_families
from routespace.search.candidate import RecipeCandidate
from routespace.search.evaluator import Evaluator
from routespace.search.latency import study_table
from routespace.search.opening import left_clean, open_study
from routespace.search.problem import recipe_problem
from routespace.search.pruning import make_pruner
from routespace.search.records import StudyRecord, close, snapshot
from routespace.search.rescue import quiet, sigterm_interrupts, usable
from routespace.search.runner import Loop, StudyCall, Watch
from routespace.search.storage import Turn, Worker, open_storage
from routespace.train.named_files import require_trial_files
from routespace.train.recipe.recipe import Recipe
from routespace.train.recipe.searching import require_trials


@checked
def run_study(
    recipe: Recipe,
    out: str | Path,
    *,
    trials: int | None = None,
    storage: str | None = None,
    study_name: str | None = None,
    seed: int | None = None,
    retry_failed: bool = True,
    evaluator: Evaluator[RecipeCandidate] | None = None,
    progress: Watch | None = None,
) -> StudyRecord:
    """Run trials until the study has `trials` that ended, whoever ran them.

    Args:
        recipe: with a `search` section.
        out: the study's folder; workers on one machine share it.
        trials: wanted in all, those of earlier calls included; without it `search.trials`. Finished and pruned
            ones count, and those that failed in this call. A small space may run out earlier.
        storage: `sqlite:///…`, `postgresql://…`, `redis://…` or the path of a journal file; without it
            `study.db` in `out`. SQLite does not work on network file systems.
        study_name: within the storage; without it the recipe's name.
        seed: of the sampler; without it the recipe's.
        retry_failed: first try again what failed in earlier calls, from its start; if not, it counts as ended.
        evaluator: evaluates a candidate in a folder and returns its metrics; None trains it.
        progress: told when a trial starts, trains and ends.

    Raises:
        SpecError: the recipe's search, the storage, the name, the number of trials or the seed is not usable,
            the study is of another recipe, or its trials ask for a device, weights or a teacher that is not there.
        BundleError: the folder or the storage cannot be used.
        DataError: the data cannot be used; not where the space varies it.
        RoutespaceError: the first trials all failed, or no trial finished.
        KeyboardInterrupt: also upon SIGTERM; the trial in hand is queued again.
    """
    search = recipe.require_search()
    number = search.trials if trials is None else trials
    require_trials(number)
    draws = recipe.seed if seed is None else seed
    require_seed(draws)
    require_study_name(study_name)
    if evaluator is None:
        _require_machine(recipe)
    table = study_table(recipe)
    problem = recipe_problem(recipe, table, evaluator)
    pruner = make_pruner(search.pruner, problem.objectives)
    wanted = StudyCall(number, search.sampler, search.trials, draws, retry_failed, progress)
    out = Path(out).resolve()
    url = require_study_place(out, storage)
    with (
        left_clean(out),
        allow_families(recipe.grid.family),  # the storage holds its name
        quiet(),
        usable(url),
        Worker(out) as worker,
        sigterm_interrupts(),
        _opened(url, out) as db,
    ):
        with Turn(out):
            name = recipe.name if study_name is None else study_name
            study = open_study(recipe, problem, table, out=out, name=name, storage=db, url=url)
        study.pruner = pruner
        Loop(study, problem, wanted=wanted, out=out).run(worker)
        return snapshot(study, storage=url, out=out)


def _require_machine(recipe: Recipe) -> None:
    """Raise where no trial can be trained here, or some name files that are not there: they would fail by that."""
    from routespace.train.run import require_device  # torch: not needed to look at a study

    require_device(recipe.override(recipe.require_search().overrides).train)
    require_trial_files(recipe)


@contextmanager
def _opened(url: str, out: Path) -> Iterator[BaseStorage]:
    """A study's storage; workers that share a folder open it in turn, as two that create an SQLite file fail."""
    with Turn(out):
        storage = open_storage(url)
    try:
        yield storage
    finally:
        close(storage)
