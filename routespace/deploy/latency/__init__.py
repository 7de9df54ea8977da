"""Latency tables: what each part of a network takes on this machine, and what a network will take.

Begin with `table.py`: the value and its prediction; `profiling.py` measures one.
"""
