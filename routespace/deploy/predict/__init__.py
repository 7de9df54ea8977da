"""From images to class names: with a run, a bundle or an exported file, fed exactly as in evaluation.

Begin with `predictor.py`.
"""
