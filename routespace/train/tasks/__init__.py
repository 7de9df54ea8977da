"""Tasks: what is learned. A task knows its head, its targets, its loss and how it is measured.

Begin with `base.py`, what a task is. A new one is a file like `classify.py` and an entry of `TASKS` in `kinds.py`.
"""
