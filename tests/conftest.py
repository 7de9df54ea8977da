"""What all tests share is in `shared`: the process that hands them out would load it for seconds in vain."""

import gc

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Load it where tests run, or are listed."""
    hands_out = getattr(config.option, "dist", "no") != "no" and not config.option.collectonly
    if not hands_out or hasattr(config, "workerinput"):
        gc.disable()  # what is imported and collected is no garbage, and millions of objects
        config.pluginmanager.import_plugin("shared")
