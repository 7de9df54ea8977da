"""Deciding what is computed, and computing what was decided.

Begin with `steps.py`: one edge after another. `gates.py` decides, `execution.py` computes, `routes.py` keeps the
record.
"""
