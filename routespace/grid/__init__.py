"""The routing space as a value: grid, architectures, costs, counting and choosing. No torch in here.

Begin with `spec.py` and `graph.py`: what a grid is; `architecture.py` is a part of one.
"""
