"""Pictures with boxes, masks or a class for each pixel, as sources.

Begin with `truth.py`: what a kind of annotations provides; `source.py` turns any of them into a source.
"""
