"""Which tokens are computed, and the index tables that computing only those needs.

Begin with `keep.py`: the tokens that one edge computes; `maps.py` has the layouts.
"""
