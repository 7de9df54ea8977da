"""Recipes: everything that fixes a training run, as one frozen value.

Begin with `recipe.py`; `parts.py` has its sections.
"""
