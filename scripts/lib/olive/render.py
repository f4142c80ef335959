"""Write a configuration as YAML, with a comment beside or above each key that has one."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from lib.config.schema import Config
from lib.config.training import Finetune
from lib.core.escaping import escape_controls
from lib.core.yaml_files import SAFE_LOADER

_WIDTH = 120
_PLAIN = re.compile(r"[A-Za-z][\w.-]*(?:[/ ][\w.-]+)*")
# What no YAML file may hold, though JSON may.
_NOT_IN_YAML = re.compile("[^\x09\x0a\x0d\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_LONGEST_VALUE = 160  # characters of a value that a comment shows


def render_config(values: Mapping[str, Any], comments: Mapping[str, list[str]]) -> Iterator[str]:
    """Yield the lines of a configuration.

    values: by path, such as `finetune.r`. comments: of the same paths, or of sections.
    """
    yield from _render_level(_nest(values), comments, "", 0)


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by path as nested mappings, sections and training keys in the order of the reference."""
    order = [*Config.model_fields, *(f"finetune.{name}" for name in Finetune.model_fields)]
    ranked = sorted(values, key=lambda path: _rank(order, path))
    nested: dict[str, Any] = {}
    for path in ranked:
        level = nested
        *sections, key = path.split(".")
        for section in sections:
            level = level.setdefault(section, {})
        level[key] = values[path]
    return nested


def _rank(order: list[str], path: str) -> tuple[int, int]:
    section = path.split(".")[0]
    inner = order.index(path) if section == "finetune" and path in order else 0
    return order.index(section), inner


def _render_level(level: dict[str, Any], comments: Mapping[str, list[str]], prefix: str, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for key, value in level.items():
        path = f"{prefix}{key}"
        is_section = isinstance(value, dict) and value and not _is_leaf(path)
        line = f"{indent}{key}:" + ("" if is_section else f" {format_scalar(value)}")
        remarks = _join_remarks(comments.get(path, []))
        if remarks and len(line) + len(remarks) + 3 <= _WIDTH:
            line += f" # {remarks}"
        elif remarks:
            yield from wrap_comment(remarks, indent)
        if depth == 0 and is_section:
            yield ""
        yield line
        if is_section:
            yield from _render_level(value, comments, f"{path}.", depth + 1)


def _join_remarks(remarks: list[str]) -> str:
    """Return remarks as one text: sentences side by side, fragments behind semicolons."""
    text = ""
    for remark in dict.fromkeys(remarks):
        text += (" " if text.endswith(".") else "; ") * bool(text) + remark
    return escape_text(text)


def _is_leaf(path: str) -> bool:
    return path in ("data.files", "data.labels")


def wrap_comment(text: str, indent: str = "", hanging: str = "") -> Iterator[str]:
    """Yield a text as comment lines of at most 120 characters. hanging: indentation of all but the first."""
    first = f"{indent}# "
    yield from textwrap.wrap(
        escape_text(text),
        _WIDTH,
        initial_indent=first,
        subsequent_indent=first + hanging,
        break_on_hyphens=False,
        break_long_words=False,
    )


def escape_text(text: str) -> str:
    """Return a text in which characters that act on a terminal, or that no YAML holds, are written as JSON has them."""
    return _NOT_IN_YAML.sub(lambda sign: json.dumps(sign[0])[1:-1], escape_controls(text))


def format_value(value: Any) -> str:
    """Return a value of a stranger's file as a comment shows it: on one line, and not at length."""
    text = escape_text(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 2]} …"


def format_scalar(value: Any) -> str:
    """Return a value as YAML reads it back."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _format_float(value)
    if isinstance(value, str):
        return _format_text(value)
    if isinstance(value, list):
        return f"[{', '.join(map(format_scalar, value))}]"
    if isinstance(value, dict):
        inner = (f"{format_scalar(key)}: {format_scalar(one)}" for key, one in value.items())
        return f"{{{', '.join(inner)}}}"
    return "null" if value is None else str(value)


def _format_float(value: float) -> str:
    text = repr(value)
    if "e" in text and "." not in text:  # YAML 1.1 takes 1e-05 for a text
        text = text.replace("e", ".0e")
    return text


def _format_text(text: str) -> str:
    if _PLAIN.fullmatch(text) and yaml.load(text, Loader=SAFE_LOADER) == text:
        return text
    return escape_text(json.dumps(text, ensure_ascii=False))
