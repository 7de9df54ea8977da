"""Neural architecture search over a routing space."""

__version__ = "0.1.0"
