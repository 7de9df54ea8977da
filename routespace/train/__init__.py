"""Teaching a network: recipe, data, budget and loop.

Begin with `run.py`: from a recipe to a run folder; `loop.py` is the training itself.
"""
