"""Render the reference of all configuration keys as Markdown, from the JSON Schema of the model."""

import json
import re
from typing import Any

_TITLE = """# Configuration reference

Every key of a configuration, with its type and its default. `config.yaml` and the files of `examples/` are
configurations. Snakemake reads one with `--configfile`; `--config 'finetune={num_train_epochs: 2}'` changes single
keys.

An unknown key, a wrong type and keys that contradict each other are errors before anything runs, with file, line and
the nearest known key. Editors that know JSON Schema show the same descriptions and complete the keys
([`examples/config.schema.json`](../examples/config.schema.json)). "Not set" means that the key is absent or null.

<!-- Made from scripts/lib/config by `make generated`; do not edit. -->
"""
_TYPES = {"string": "string", "integer": "integer", "number": "number", "boolean": "true or false", "null": "null"}
_WIDEST = 2**31 - 1  # bounds from here on are those of 32 bits and tell a reader nothing


def render_reference(schema: dict[str, Any]) -> str:
    """Return docs/configuration.md.

    schema: JSON Schema of the configuration, as `build_json_schema` returns it.
    """
    places = _find_sections(schema)
    parts = [_TITLE, _render_table("", schema, places)]
    for name, paths in places.items():
        section = schema["$defs"][name]
        parts.append(f"## {_format_heading(paths)}\n\n{_escape(section['description'])}\n")
        parts.append(_render_table(name, section, places))
    return "\n".join(parts)


def _find_sections(schema: dict[str, Any]) -> dict[str, list[str]]:
    """Return where each section stands in a configuration, such as `data.hub`, in the order of the configuration."""
    places: dict[str, list[str]] = {}

    def visit(section: dict[str, Any], prefix: str) -> None:
        for key, field in section["properties"].items():
            for reference, is_named in _list_references(field):
                path = f"{prefix}{key}" + (".NAME" if is_named else "")
                places.setdefault(reference, []).append(path)
                visit(schema["$defs"][reference], f"{path}.")

    visit(schema, "")
    return places


def _list_references(field: dict[str, Any], is_named: bool = False) -> list[tuple[str, bool]]:
    """Return the sections that a key holds, and whether each stands below a name of the user's choice."""
    if "$ref" in field:
        return [(field["$ref"].rpartition("/")[2], is_named)]
    # A mapping with free names; pydantic writes patternProperties where the names have a pattern.
    named = [*field.get("patternProperties", {}).values(), field.get("additionalProperties")]
    found = [_list_references(one, True) for one in named if isinstance(one, dict)]
    found += [_list_references(one, is_named) for one in field.get("anyOf", [])]
    return [one for several in found for one in several]


def _format_heading(paths: list[str]) -> str:
    return " and ".join(f"`{path}`" for path in paths)


def _render_table(name: str, section: dict[str, Any], places: dict[str, list[str]]) -> str:
    lines = ["| key | type | default | description |", "| --- | --- | --- | --- |"]
    for key, field in section["properties"].items():
        default = _describe_default(field, key in section.get("required", ()))
        cells = [f"`{key}`", _describe_type(field, places), default, _escape(field.get("description", ""))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _describe_type(field: dict[str, Any], places: dict[str, list[str]]) -> str:
    """Return the type of a value in words, without null, which every optional key takes."""
    references = _list_references(field)
    if references:
        reference, is_named = references[0]
        link = f"[{'sections' if is_named else 'section'}](#{_format_anchor(places[reference])})"
        return f"mapping of names to {link}" if is_named else link
    if choices := field.get("anyOf") or field.get("oneOf"):
        return ", or ".join(_describe_type(one, places) for one in choices if one.get("type") != "null")
    if values := field.get("enum") or ([field["const"]] if "const" in field else []):
        return ", ".join(f"`{json.dumps(value).strip(chr(34))}`" for value in values)
    if field.get("type") == "array":
        items = field["items"]
        return f"list of {_pluralize(_describe_type(items, places))}" if items else "list"
    if field.get("type") == "object":
        inner = field.get("additionalProperties")
        if not isinstance(inner, dict):
            return "mapping"
        return f"mapping of names to {_pluralize(_describe_type(inner, places))}"
    return _TYPES[field["type"]] + _describe_bounds(field)


def _pluralize(text: str) -> str:
    return re.sub(r"^(string|integer|number|list|mapping)\b", r"\1s", text)


def _describe_bounds(field: dict[str, Any]) -> str:
    bounds = [
        f"{words} {field[key]:g}"
        for key, words in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if key in field and field[key] < _WIDEST
    ]
    return f", {', '.join(bounds)}" if bounds else ""


def _describe_default(field: dict[str, Any], is_required: bool) -> str:
    if is_required:
        return "required"
    value = field.get("default")
    if value is None:
        return "not set"
    if "$ref" in field:
        return "the section's defaults"
    if isinstance(value, dict):  # of a build all options, most of them null
        return f"`{json.dumps({key: {} for key in value}).replace(chr(34), '')}`"
    return f"`{json.dumps(value).strip(chr(34))}`"


def _format_anchor(paths: list[str]) -> str:
    """Return the anchor that GitHub gives the heading of a section."""
    return _format_heading(paths).lower().replace("`", "").replace(".", "").replace(" ", "-")


def _escape(text: str) -> str:
    """Return a description on one line, as a cell of a table holds it."""
    return " ".join(text.split()).replace("|", "\\|")
