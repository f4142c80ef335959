"""The configuration of a foreign adapter: types of its fields, and its regular expressions, tried in a child."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.core.cli import extract_first_line, fail
from lib.core.limits import FaultError, Limits, run_limited

# Real expressions are tried on all modules of a model in a hundredth of a second.
LIMITS = Limits(seconds=20, megabytes=256)
_LARGEST_ALPHA = 1e6  # of a weight in float32 more is nothing but noise


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_switch(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _is_texts(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _is_layers(value: Any) -> bool:
    return value is None or all(type(item) is int for item in (value if isinstance(value, list) else [value]))


def _is_share(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value <= 1)


def _is_section(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _is_factor(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _LARGEST_ALPHA and math.isfinite(value)


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("target_modules", "exclude_modules", "layers_pattern"), (_is_texts, "text or a list of texts")),
    **dict.fromkeys(("base_model_name_or_path", "revision", "peft_version"), (_is_text, "text")),
    **dict.fromkeys(("use_rslora", "use_dora", "inference_mode"), (_is_switch, "true or false")),
    **dict.fromkeys(("auto_mapping", "runtime_config", "eva_config", "corda_config"), (_is_section, "an object")),
    **dict.fromkeys(("loftq_config", "lora_ga_config"), (_is_section, "an object")),
    "layers_to_transform": (_is_layers, "a number or a list of numbers"),
    "lora_dropout": (_is_share, "a share"),
    "lora_alpha": (_is_factor, "a number up to a million"),
}


def check_fields(config: Mapping[str, Any], path: Path) -> None:
    """Raise `UserError` for a field of an adapter's configuration that is of another type than peft writes."""
    for name, (is_right, wanted) in _FIELDS.items():
        if name in config and not is_right(config[name]):
            fail(f"its {name} is {config[name]!r:.80}, not {wanted}", "save it again with peft", at=path)


def try_patterns(config: Mapping[str, Any], modules: Sequence[str], path: Path, limits: Limits = LIMITS) -> None:
    """Have a child match the adapter's regular expressions with all modules of the base model, as peft will do.

    Raises `UserError` when one is none, or does not come to an end.
    """
    whole = [config[name] for name in ("target_modules", "exclude_modules") if isinstance(config.get(name), str)]
    layers = config.get("layers_pattern") or []
    # As peft puts it around, in check_target_module_exists.
    beginnings = [rf"(?:^|.*?\.){one}\.(?P<idx>\d+)\." for one in ([layers] if isinstance(layers, str) else layers)]
    if whole or beginnings:
        what, hint = "a regular expression in its adapter_config.json", "list the names in target_modules"
        run_limited(_match_here, whole, beginnings, modules, limits=limits, what=what, hint=hint, at=path)


def _match_here(whole: list[str], beginnings: list[str], modules: list[str]) -> None:
    """Match in this process: for the child alone."""
    for match, patterns in ((re.fullmatch, whole), (re.match, beginnings)):
        for pattern in patterns:
            try:
                for module in modules:
                    match(pattern, module)
            except re.error as error:
                raise FaultError(f"is none ({pattern[:80]!r}: {extract_first_line(error)})") from None
