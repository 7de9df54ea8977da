"""The numbers of block families: default shapes, limits and exact prices, without torch.

Begin with `base.py`: what a family must tell; `pvt_v2.py` is the paper's.
"""
