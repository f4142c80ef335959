"""Tests that need torch, where it is not installed: known by the import that failed, so that no list can be outdated."""

import re

# Packages that `set_up.py --without-torch` leaves out, and what transformers says of its own modules.
_MISSING = re.compile(
    r"No module named '(torch|peft|accelerate|bitsandbytes|auto_round)\b"
    r"|No package metadata was found for torch|requires the PyTorch library but it was not found|PyTorch was not found"
)


def misses_torch(text: str) -> bool:
    """Return whether the text of a failure names an import that torch is missing for."""
    return _MISSING.search(text) is not None
