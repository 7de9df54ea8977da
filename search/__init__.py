"""Search: many recipes, tried and compared. Part of the package: import it as `routespace.search`.

    run_study      train trials until a study has enough; resumes and joins
    load_study     a study as a value: StudyRecord, its TrialRecords, its Pareto front
    trial_folder   the run folder of a trial

Optuna lives here and nowhere else.
"""

if __name__ != "routespace.search":
    raise ImportError("import routespace.search, not search: the top-level folder is mapped into the package")

from routespace.search.records import StudyRecord, TrialRecord, least_violating, load_study, pareto, trial_folder
from routespace.search.space import Space
from routespace.search.study import StudyProgress, run_study

__all__ = [
    "Space",
    "StudyProgress",
    "StudyRecord",
    "TrialRecord",
    "least_violating",
    "load_study",
    "pareto",
    "run_study",
    "trial_folder",
]
