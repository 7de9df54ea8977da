"""Taking a network away: derive, extract, verify, save, export, and tell how long it will take.

Begin with `derive.py` and `extract.py`; `bundle.py` is what a user takes home.
"""
