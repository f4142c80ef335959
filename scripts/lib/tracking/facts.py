"""What trackers are told: points of the curves, parameters, and scores with their intervals, by flat names."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from lib.tracking.delivery import Point

_TRAINING = ("loss", "learning_rate", "grad_norm")
_VALIDATION = "eval_"


def build_point(entry: Mapping[str, Any]) -> Point | None:
    """Return a point of an entry in the Trainer's log: `train/…` and `eval/…`; None for one without any.

    The times that the Trainer logs at its end are not among them: `training.json` has better ones.
    """
    values = {f"train/{name}": entry[name] for name in _TRAINING if name in entry}
    values |= {f"eval/{name.removeprefix(_VALIDATION)}": entry[name] for name in entry if name.startswith(_VALIDATION)}
    numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    return Point(int(entry["step"]), numbers) if numbers else None


def flatten_parameters(value: Any, prefix: str = "") -> dict[str, str]:
    """Return settings by dotted names, as texts; a list is one value."""
    if not isinstance(value, Mapping):
        return {prefix: str(value)}
    return {
        name: text
        for key, inner in value.items()
        for name, text in flatten_parameters(inner, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def list_scores(prefix: str, quality: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the numbers of a score; of an interval both ends: `test/accuracy_ci95_low`, `test/accuracy_ci95_high`."""
    found: dict[str, Any] = {}
    for name, value in (quality or {}).items():
        if name.endswith("_ci95") and value is not None:
            found |= {f"{name}_low": value[0], f"{name}_high": value[1]}
        else:
            found[name] = value
    return keep_numbers((f"{prefix}/{name}", value) for name, value in found.items())


def keep_numbers(values: Iterable[tuple[str, Any]]) -> dict[str, float]:
    """Return those values that are finite numbers."""
    return {
        name: float(value)
        for name, value in values
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
