"""Files that run without routespace: ONNX and .pt2, checked against the original.

Begin with `base.py`.
"""
