"""What a run tells that is the same each time that it is trained."""

from typing import Any

CHANGING = ("seconds", "step_seconds", "images_per_s", "eval_images_per_s", "date")


def lasting(told: Any) -> Any:
    """A result, or lines of metrics, without times and dates."""
    if isinstance(told, dict):
        return {name: lasting(value) for name, value in told.items() if name not in CHANGING}
    return [lasting(one) for one in told] if isinstance(told, list) else told
