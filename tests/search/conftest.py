"""Studies whose trials leave no garbage."""

import pytest


@pytest.fixture(autouse=True)
def no_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies look for none after each trial: where nothing was trained, that takes longest."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)
