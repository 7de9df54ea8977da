"""Where a study lies: its folder and its storage. No torch and no optuna: asked before they are imported."""

from __future__ import annotations

from pathlib import Path

from routespace import file_names
from routespace.errors import BundleError, SpecError
from routespace.files import ASKED, require_folder

DATABASE = "study.db"
TURN_FILE, WORKERS = ".turn.lock", ".workers"  # in a study's folder

REDIS = ("redis", "rediss", "unix")
ALLOWED = "sqlite:///FILE, postgresql://…, mysql://…, redis://…, or the path of a journal file"


def require_study_place(out: Path, storage: str | None) -> str:
    """The URL or path of a study's storage, whole.

    Args:
        out: the study's folder; workers on one machine share it.
        storage: as `run_study` takes it.

    Raises:
        SpecError: a URL of no kind that can hold a study.
        BundleError: `out` holds something else than a study, or cannot be written.
    """
    out = out.resolve()
    if storage is not None:
        check_storage(storage)
    url = default_url(out) if storage is None else absolute_storage(storage)
    check_storage(url)
    _check_folder(out, url)
    require_folder(out)
    return url


def require_study_name(name: str | None) -> None:
    """Raise SpecError for a name that says nothing, such as a variable of a script's that was not set."""
    if name is not None and not name.strip():
        raise SpecError(f"study: {name!r} is no name; give one, or leave it out for the recipe's")


def default_url(out: Path) -> str:
    """The SQLite file in a study's folder."""
    return f"sqlite:///{out.resolve() / DATABASE}"


def absolute_storage(storage: str) -> str:
    """The storage with its file's whole path, so that it is found from any working directory."""
    scheme, sign, rest = storage.partition("://")
    if not sign:
        if not storage.endswith((".db", ".sqlite", ".sqlite3")):
            return str(Path(storage).resolve())
        scheme, rest = "sqlite", f"/{storage}"
    if scheme == "sqlite" and rest.strip("/") and rest != "/:memory:":
        return f"sqlite:///{Path(rest.removeprefix('/')).resolve()}"
    return f"{scheme}://{rest}"


def check_storage(storage: str) -> None:
    """Raise SpecError when a URL is of no kind that can hold a study; nothing is opened for that."""
    if not storage.strip():
        raise SpecError(f"storage: {storage!r} is no place; give {ALLOWED}, or leave it out")
    scheme, sign, rest = storage.partition("://")
    if sign and scheme not in REDIS and scheme.split("+")[0] not in ("sqlite", "postgresql", "mysql"):
        raise SpecError(f"storage: {scheme}://… is not allowed; give {ALLOWED}")
    if scheme == "sqlite" and (not rest.strip("/") or rest == "/:memory:"):
        raise SpecError("storage: a study in memory cannot be resumed; give sqlite:///FILE")


def _check_folder(out: Path, url: str) -> None:
    """Raise BundleError where `out` holds something else than a study: nothing is written beside foreign files."""
    if not out.exists():
        return
    if not out.is_dir():
        raise BundleError(f"{out}: is a file; choose another --out")
    names = {path.name for path in out.iterdir() if not path.name.startswith(ASKED)}  # of a worker that begins now
    own = {file_names.STUDY, WORKERS, TURN_FILE, DATABASE, Path(url.removeprefix("sqlite:///")).name}
    if names and not names & own:
        raise BundleError(f"{out}: exists, is not empty and holds no study; choose another --out")
