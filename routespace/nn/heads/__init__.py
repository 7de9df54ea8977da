"""Heads: what stands on a backbone's maps and gives a task's outputs.

Begin with `base.py`, what a head is; `classify.py` is the smallest one. `kinds.py` names them all.
"""
