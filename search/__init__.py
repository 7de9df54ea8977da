"""Search: many candidates, tried and compared. Part of the package: import it as `routespace.search`.

    run_study      run trials until a study has enough; resumes and joins
    load_study     a study as a value: StudyRecord, its TrialRecords, its Pareto front
    trial_folder   the run folder of a trial
    Evaluator      what measures a RecipeCandidate in its Workplace; `train_candidate` is the usual one

Begin reading with study.py (one call, from its arguments to the record), then runner.py (the loop) and trial.py
(one trial). What is searched is a `Problem` (problem.py): a space of points, candidates and what evaluates them.
objectives.py is the table of what can be asked for. Optuna lives here and nowhere else.
"""

if __name__ != "routespace.search":
    raise ImportError("import routespace.search, not search: the top-level folder is mapped into the package")

from routespace.search.candidate import RecipeCandidate
from routespace.search.evaluator import Evaluator, Workplace, train_candidate
from routespace.search.records import StudyRecord, TrialRecord, least_violating, load_study, pareto, trial_folder
from routespace.search.runner import StudyProgress
from routespace.search.space import Space
from routespace.search.study import run_study

__all__ = [
    "Evaluator",
    "RecipeCandidate",
    "Space",
    "StudyProgress",
    "StudyRecord",
    "TrialRecord",
    "Workplace",
    "least_violating",
    "load_study",
    "pareto",
    "run_study",
    "train_candidate",
    "trial_folder",
]
