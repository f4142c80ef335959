"""Read a Microsoft Olive configuration: from a file to blocks of entries, whatever its nesting.

Olive 0.6 wraps what belongs to a block in `config`, `params` and `params_config`, 0.13 writes it flat, and pages show
single blocks without the braces around them. All of it becomes the same entries; none is left out.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lib.core.cli import fail
from lib.core.files import parse_json
from lib.core.yaml_files import find_fault, load_yaml, read_text
from lib.olive.keys import KEYS, METHODS, OTHER_PASSES, PLACES

_NAMED = ("systems", "passes", "data_configs")  # hold blocks by name, or a list of them
# The places of single blocks that pages show, by what only they have.
_MODELS = ("hfmodel", "pytorchmodel", "onnxmodel", "openvinomodel", "compositemodel", "distributedhfmodel")
_SYSTEMS = ("localsystem", "azureml", "docker", "pythonenvironment", "isolatedort")
_HINT = "give the configuration that `olive run --config` takes"


class Entry(NamedTuple):
    """A key with its value. kind: its place, a key of `KEYS`. path: where it stands in the file."""

    kind: str
    key: str
    value: Any
    path: str


@dataclass
class Block:
    """A part of a configuration: the model, a data configuration, a pass, a system or the engine.

    form: its place, or `other` for a pass without counterpart. type: what it says of itself, in lower case. other_name:
    the key that a data configuration stands under, where it calls itself differently.
    """

    form: str
    name: str
    path: str
    entries: list[Entry] = field(default_factory=list)
    other_name: str | None = None

    @property
    def type(self) -> str:
        found = (entry.value for entry in self.entries if entry.key == "type" and entry.kind == self.form)
        return str(next(found, "")).lower()

    def find(self, kind: str, *keys: str) -> Entry | None:
        """Return the first entry of a kind with one of the keys, in the order of the keys."""
        found = (entry for key in keys for entry in self.entries if entry.kind == kind and entry.key == key)
        return next(found, None)


@dataclass
class Document:
    """A whole configuration. names: every key that occurs, wrappers too. strays: what is no block."""

    blocks: list[Block] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    strays: list[Entry] = field(default_factory=list)

    def select(self, form: str) -> list[Block]:
        """Return the blocks of a form, in the order of the file."""
        return [block for block in self.blocks if block.form == form]

    def find_block(self, form: str, name: Any) -> Block | None:
        """Return the block of this form and name."""
        return next((block for block in self.select(form) if name in (block.name, block.other_name)), None)


def read_document(path: Path) -> Document:
    """Read a configuration file: JSON, YAML, or blocks of JSON without braces, as pages show them.

    Raises `UserError` with the line when it is none, ambiguous, too large or too deep.
    """
    if not path.exists():
        fail("no such file", "check the path", at=path)
    if path.suffix.lower() in (".yaml", ".yml"):
        values = load_yaml(path)
    else:
        values = _parse_blocks(read_text(path).removeprefix("\ufeff"), path)
    if (fault := find_fault(values)) is not None:
        fail(f"cannot be read: {fault}", _HINT, at=path)
    return collect_blocks(values, path)


def _parse_blocks(text: str, path: Path) -> Any:
    """Return the value of a JSON text, or of one that lacks only the braces around it."""
    try:
        return parse_json(text, strict=True)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith('"'):
            try:  # in the first line, so that lines count as they stand in the file
                return parse_json("{" + text.strip().removesuffix(",") + "}", strict=True)
            except ValueError:
                pass
        hint = "if it is YAML, name the file .yaml" if text.lstrip()[:1] not in ("{", "[", '"') else _HINT
        fail(f"not JSON: {error.msg}", hint, at=path, line=error.lineno)
    except ValueError as error:
        fail(f"not JSON: {error}", "mend it", at=path)


def collect_blocks(values: Any, at: Path | str) -> Document:
    """Return the blocks of a configuration that was read. Raises `UserError` when it is no such configuration."""
    if isinstance(values, list) and values and all(isinstance(one, dict) for one in values):
        values = {"data_configs": values}
    if not isinstance(values, dict) or not values:
        fail("not an Olive configuration: it holds no keys", _HINT, at=at)
    if {"corpus", "base_model"} & values.keys():
        fail("this is slmflow's own configuration", "run it: make run ARGS=...", at=at)
    document = Document()
    document.names = set(_list_names(values))
    if (form := _guess_form(values)) is not None:
        document.blocks.append(_make_block(form, form, values, ""))
    else:
        _collect_sections(values, document)
    _collect_inline(document)
    if not document.blocks:
        first = next(iter(values))
        fail(f"not an Olive configuration: {str(first)[:60]!a} is none of its keys", _HINT, at=at)
    _check_once(document, at)
    return document


def _list_names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _list_names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _list_names(inner)


def _guess_form(values: dict[str, Any]) -> str | None:
    """Return the form of a block that stands alone, or None."""
    kind = values.get("type")
    if not isinstance(kind, str):
        return None
    return _form_of_pass(kind) or _form_of(kind) or "other"


def _form_of_pass(kind: str) -> str | None:
    kind = kind.lower()
    known = {"mergeadapterweights": "merge", "modelbuilder": "builder", **dict.fromkeys(METHODS, "training")}
    return known.get(kind) or ("other" if kind in OTHER_PASSES else None)


def _form_of(kind: str) -> str | None:
    kind = kind.lower()
    if kind in _MODELS:
        return "input_model"
    if kind in _SYSTEMS:
        return "system"
    return "data_config" if kind.endswith("container") else None


def _collect_sections(values: dict[str, Any], document: Document) -> None:
    """Add the blocks of a mapping of sections, and of blocks by their names."""
    engine = Block("engine", "engine", "")
    for key, value in values.items():
        if key in _NAMED and isinstance(value, (dict, list)):
            _collect_named(key, value, document)
        elif key in PLACES["document"] and isinstance(value, dict):
            block = _make_block(PLACES["document"][key], key, value, key)
            if key == "engine":
                engine.entries += block.entries
            else:
                document.blocks.append(block)
        elif isinstance(value, dict) and (form := _guess_form(value)) is not None and key not in KEYS["engine"]:
            document.blocks.append(_make_block(form, key, value, key))
        elif key in KEYS["engine"]:
            engine.entries.append(Entry("engine", key, value, key))
        else:
            document.strays.append(Entry("document", key, value, key))
    if engine.entries:
        document.blocks.append(engine)


def _collect_named(section: str, value: dict[str, Any] | list[Any], document: Document) -> None:
    """Add the blocks of `systems`, `passes` or `data_configs`."""
    for name, one, path in _list_members(section, value):
        if not isinstance(one, dict):
            document.strays.append(Entry("document", name, one, path))
            continue
        if section == "passes":
            kind = one.get("type")
            form = (_form_of_pass(kind) if isinstance(kind, str) else None) or "other"
        else:
            form = "system" if section == "systems" else "data_config"
        block = _make_block(form, name, one, path)
        given = one.get("name")
        if form == "data_config" and isinstance(given, str):
            block.name, block.other_name = given, name
        document.blocks.append(block)


def _list_members(section: str, value: dict[str, Any] | list[Any]) -> Iterator[tuple[str, Any, str]]:
    """Yield name, value and path; a pass may be a list of alternatives."""
    pairs: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
    for name, one in pairs:
        path = f"{section}.{name}" if isinstance(value, dict) else f"{section}[{name}]"
        if isinstance(one, list) and section == "passes":
            for place, alternative in enumerate(one):
                yield str(name), alternative, f"{path}[{place}]"
        else:
            yield str(name), one, path


def _make_block(form: str, name: str, values: dict[str, Any], path: str) -> Block:
    entries = list(_collect_entries(form, values, path)) if form != "other" else []
    if form == "other":
        entries = [Entry("other", "type", values.get("type"), path or "type")]
    return Block(form, name, path, entries)


def _collect_entries(kind: str, values: dict[str, Any], path: str) -> Iterator[Entry]:
    """Yield the entries of a block; those of wrappers as if they stood outside of them."""
    for key, value in values.items():
        here = f"{path}.{key}" if path else str(key)
        inner = PLACES.get(kind, {}).get(key)
        if isinstance(value, dict) and inner and _is_place(kind, inner, value):
            yield from _collect_entries(inner, value, here)
        elif inner == "accelerator" and isinstance(value, list) and all(isinstance(one, dict) for one in value):
            for place, one in enumerate(value):
                yield from _collect_entries(inner, one, f"{here}[{place}]")
        else:
            yield Entry(kind, str(key), value, here)


def _is_place(kind: str, inner: str, value: dict[str, Any]) -> bool:
    """Return whether a mapping is a place, and not files by split, which may stand where an address may."""
    return inner not in ("address", "accelerator") or kind == "address" or isinstance(value.get("type"), str)


def _collect_inline(document: Document) -> None:
    """Make blocks of data configurations and systems that are written where others only name theirs."""
    for block in list(document.blocks):
        for place, entry in enumerate(block.entries):
            if not isinstance(entry.value, dict):
                continue
            if entry.kind == "training" and entry.key.endswith("_data_config"):
                form = "data_config"
            elif entry.kind == "engine" and entry.key in ("host", "target", "workflow_host"):
                form = "system"
            else:
                continue
            name = entry.path
            document.blocks.append(_make_block(form, name, entry.value, entry.path))
            block.entries[place] = entry._replace(value=name)


def _check_once(document: Document, at: Path | str) -> None:
    """Raise `UserError` when a key is given twice, inside a wrapper and outside of it."""
    for block in document.blocks:
        seen: dict[tuple[str, str], str] = {}
        for entry in block.entries:
            other = seen.setdefault((entry.kind, entry.key), entry.path)
            if other != entry.path and entry.kind not in (
                "other_data_config",
                "azureml_client",
                "system",
                "accelerator",
            ):
                fail(f"{entry.path} is given a second time, as {other} is it", "remove one of the two", at=at)
