"""Pictures of grids, tokens and fronts, by matplotlib. What a terminal shows is drawn in `cli/render.py`.

Begin with `grid.py`.
"""
