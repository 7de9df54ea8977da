"""The modules of block families: stems, stages of blocks, patch embeddings, outputs.

Begin with `base.py`: what all stages share; `pvt_v2.py` and its blocks are the paper's.
"""
