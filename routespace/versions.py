"""Versions of packages, for the papers of runs and bundles."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def versions_of(*packages: str) -> dict[str, str]:
    """Package → its version; `unknown` for a checkout that is not installed."""
    return {name: _version_of(name) for name in packages}


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
