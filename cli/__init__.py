"""The command line. Part of the package: import it as `routespace.cli`, never as `cli`."""

if __name__ != "routespace.cli":
    raise ImportError("import routespace.cli, not cli: the top-level folder is mapped into the package")

from routespace.cli.app import main

__all__ = ["main"]
