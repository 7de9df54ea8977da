"""The command line. Part of the package: import it as `routespace.cli`, never as `cli`.

Begin reading in `app`, which lists the commands; each is one file.
"""

if __name__ != "routespace.cli":
    raise ImportError("import routespace.cli, not cli: the top-level folder is mapped into the package")

__all__ = ["main"]


def main() -> None:
    """Entry point of the `routespace` script. From here on an interrupt is one line, also while we import."""
    from routespace.cli.interrupts import start

    interrupts = start()
    from routespace.cli.app import run

    run(interrupts)
