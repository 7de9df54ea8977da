"""Tables of pictures: a CSV file with a path, a label and, if there is one, a split in each line."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path, PurePath

from routespace.errors import DataError
from routespace.picture_files import plain_name
from routespace.train.data.catalogue import Entry, FileReader, Listed, Split, plain_key, require_root
from routespace.train.data.folder import NAMES
from routespace.train.recipe.data import CsvSpec


class TableCatalogue:
    """The pictures of a table.

    Args:
        spec: the file and its columns.

    Raises:
        DataError: it is missing, is no table, lacks a column, or a line is not complete.
    """

    def __init__(self, spec: CsvSpec) -> None:
        self.path = require_root(spec.root, "the table of pictures, a CSV file with path and label")
        self.reader = FileReader()
        folder = Path(spec.images).expanduser() if spec.images else self.path.parent
        self.parts: dict[Split, list[Entry]] = defaultdict(list)
        self.has_splits = False
        labels: dict[str, str] = {}
        for line, row in self._rows(spec):
            path, label = (row[column] for column in (spec.path_column, spec.label_column))
            if labels.setdefault(path, label) != label:
                raise DataError(
                    f"{self.path}, line {line}: {path!r:.80} stands there with another label; keep one"
                )
            split: Split = "train"
            if spec.split_column in row:
                self.has_splits, split = True, self._split(row[spec.split_column], line)
            self.parts[split].append(Entry(str(folder / path), plain_name(label), plain_key(PurePath(path))))

    def part(self, split: Split, *, whole: bool = False) -> Listed | None:
        """What a part holds; see `Catalogue`."""
        entries = self.parts["train"] if whole and not self.has_splits else self.parts[split]
        return Listed(str(self.path), entries) if entries else None

    def _rows(self, spec: CsvSpec) -> list[tuple[int, dict[str, str]]]:
        """(line, column → text) of every line that is not empty."""
        needed = (spec.path_column, spec.label_column)
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, delimiter="\t" if self.path.suffix.lower() == ".tsv" else ",")
                columns = reader.fieldnames or []
                missing = [name for name in needed if name not in columns]
                if missing:
                    way = f"name it with data.{'path' if missing[0] == spec.path_column else 'label'}_column"
                    if len(columns) == 1 and ";" in columns[0]:
                        way = "write commas between the columns, not semicolons"
                    raise DataError(
                        f"{self.path}: has no column {missing[0]!r} (found: {', '.join(columns) or 'none'}); {way}"
                    )
                rows = [(reader.line_num, {key: (row[key] or "").strip() for key in columns}) for row in reader]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise DataError(f"{self.path}: cannot be read as a table ({reason:.80}); give a CSV file") from error
        for line, row in rows:
            empty = [name for name in needed if not row[name]]
            if empty:
                raise DataError(f"{self.path}, line {line}: {empty[0]} is empty; fill it in, or remove the line")
        if not rows:
            raise DataError(f"{self.path}: has no lines below its column names; list the pictures there")
        return rows

    def _split(self, text: str, line: int) -> Split:
        for split, names in NAMES.items():
            if text.lower() in names:
                return split
        raise DataError(f"{self.path}, line {line}: split {text!r:.40} is not known; give train, val or test")
