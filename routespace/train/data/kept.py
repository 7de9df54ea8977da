"""What a run keeps of its data: `preprocess.json` (how images go in, what comes out), `data.json` (which images).

Before a training starts the data is looked at and compared with what the run began with.
"""

from __future__ import annotations

from collections.abc import Callable

from routespace.errors import DataError, warn
from routespace.files import read_json, write_json
from routespace.preprocess import save_preprocess
from routespace.train.data.catalogue import examples
from routespace.train.data.record import DataRecord
from routespace.train.data.source import Source
from routespace.train.run_folder import RunFolder


def look_at(source: Source, run: RunFolder, tell: Callable[[str], None]) -> None:
    """Tell what a training is about to see; warn of what is dubious, and of what has changed since the run began.

    Args:
        source: of the training.
        run: where it is trained; nothing is written there.
        tell: is given the line with classes and counts.

    Raises:
        DataError: more pictures cannot be read than may be left out, or the run has other classes.
    """
    summary = source.summary
    tell(summary.text)
    for word in (*summary.warnings, *source.quick_check(), *_changes(source, run)):
        warn(word)


def _changes(source: Source, run: RunFolder) -> list[str]:
    """One line on what is different from what the run began with; none where nothing is, or nothing is known."""
    now, path = source.record, run.data_path
    if now is None or not path.exists():
        return []
    before = DataRecord.from_json(read_json(path, wanted="the folder of a run"))
    if before.classes != now.classes:
        raise DataError(
            f"{run.path}: the run's classes are {examples(before.classes, most=8)}, those of its data now "
            f"{examples(now.classes, most=8)}; give the former data with --data, or start anew with another --out"
        )
    changes = before.changes(now)
    return [f"{run.path}: the data has changed since the run began: {'; '.join(changes)}"] if changes else []


def keep(source: Source, run: RunFolder) -> None:
    """Write both files where they are not there yet; raises BundleError when they cannot be written."""
    save_preprocess(run.path, source.preprocess, source.classes)
    if source.record is not None and not run.data_path.exists():
        write_json(run.data_path, source.record.to_json())
