"""What all tests share is in `shared`: the process that hands them out would load it for seconds in vain."""

import gc

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Load it where tests run."""
    if getattr(config.option, "dist", "no") == "no" or hasattr(config, "workerinput"):
        gc.disable()  # what is imported and collected is no garbage, and millions of objects
        config.pluginmanager.import_plugin("shared")
