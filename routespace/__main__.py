"""`python -m routespace`, the same as the `routespace` command."""

from routespace.cli import main

main()
