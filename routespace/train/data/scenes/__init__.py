"""Scenes: cut-outs (pictures with transparency) composed onto photographs, with exact boxes and masks.

Begin with `source.py`; `layout.py` draws what stands where, `compose.py` paints it.
"""
