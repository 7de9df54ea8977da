"""The smallest grid that trains, as a recipe writes it: two layers, two rates, 32x32 images."""

TINY_GRID = {
    "layers": 2,
    "max_down": 8,
    "widths": [8, 16],
    "heads": [1, 2],
    "mlp_ratios": [2, 2],
    "sr_ratios": [2, 1],
    "image_size": 32,
    "num_classes": 10,
}
