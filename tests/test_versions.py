"""Versions are told, also in a checkout that is not installed."""

import torch

from routespace.versions import versions_of


def test_versions_of_what_is_there_and_what_is_not():
    found = versions_of("torch", "no such package")
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["no such package"] == "unknown"
