"""`python -m routespace.cli`, the same as the `routespace` command."""

from routespace.cli.app import main

main()
