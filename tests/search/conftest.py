"""Studies that do not wait for the disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy


@pytest.fixture
def fast_storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Do not wait for the disk at each of the many commits, nor for the garbage that no training left."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)

    def relax(connection: Any, _: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", relax)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", relax)
