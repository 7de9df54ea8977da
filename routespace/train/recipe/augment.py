"""Names of timm's augmentation policies, checked without timm.

timm finds out when the transform is made, with an assertion, and passes over sections that have no number. Here a
recipe that is read is already right: what passes makes a transform in timm.
"""

from __future__ import annotations

import re

POLICIES = ("original", "originalr", "v0", "v0r", "3a")  # AutoAugment's
SETS = ("weights", "3a", "3aw")  # RandAugment's sets of operations, `t` before them
MOST_WEIGHTED = 14  # operations of the smaller weighted set, which are drawn without repetition
WHOLE, DECIMAL = r"\d+", r"\d+(\.\d*)?"
ABOVE_0 = r"(?=.*[1-9])"
SECTIONS = {
    "rand": {"m": WHOLE, "n": WHOLE, "p": DECIMAL, "mstd": DECIMAL, "mmax": WHOLE, "inc": WHOLE},
    "augmix": {"m": WHOLE, "w": ABOVE_0 + WHOLE, "d": WHOLE, "a": ABOVE_0 + DECIMAL, "b": WHOLE, "mstd": DECIMAL},
    **{policy: {"mstd": DECIMAL} for policy in POLICIES},
}


def check_augment(policy: str) -> None:
    """Raise ValueError unless timm's `create_transform` takes it as `auto_augment`."""
    name, *sections = policy.split("-")
    if name not in SECTIONS:
        raise ValueError(
            f"{policy!r:.60} is not known; give rand or augmix with sections, such as rand-m9-mstd0.5-inc1, "
            f"or one of {', '.join(POLICIES)}"
        )
    allowed = SECTIONS[name]
    for section in sections:
        if name == "rand" and section.startswith("t"):
            if section[1:] not in SETS:
                raise ValueError(
                    f"{policy!r:.60}: {section!r:.20} is no set of operations; give t{', t'.join(SETS)}"
                )
            continue
        match = re.fullmatch(r"([a-z]+)(.*)", section)
        key, value = (match[1], match[2]) if match else (section, "")
        if key not in allowed:
            raise ValueError(
                f"{policy!r:.60}: {section!r:.20} is no section of {name}; allowed: {', '.join(allowed)}"
            )
        if not re.fullmatch(allowed[key], value):
            raise ValueError(f"{policy!r:.60}: {section!r:.20} needs a number after {key}, such as {key}1")
        if key == "n" and int(value) > MOST_WEIGHTED:
            raise ValueError(f"{policy!r:.60}: {section!r:.20} is too many; give at most n{MOST_WEIGHTED}")
