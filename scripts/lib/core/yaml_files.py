"""YAML within bounds: what a file may hold is decided before anything is built from it.

A few lines can stand for a billion values (aliases of aliases), nest deeper than Python can follow, or name a tag or a
template that runs code. All of it is refused by one line with its place.
"""

import json
import os
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from lib.core.cli import fail
from lib.core.regular_files import NotRegularError, open_regular

_LARGEST = 4_000_000  # bytes
_MOST = 200_000  # values, an alias counting as often as it stands there
_DEEPEST = 40
_LONGEST_NUMBER = 40  # characters
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")}
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_TEMPLATE = "__use_yte__"  # Snakemake then evaluates expressions in the file
# JSON, which is YAML otherwise, writes a character beyond 16 bits as two; an escaped backslash begins none.
_PAIR = re.compile(r"\\\\|\\u([dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_NUMBER = re.compile(r"tag:yaml\.org,2002:(int|float)")
SAFE_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_text(path: Path) -> str:
    """Return the text of a small file. Raises `UserError` when it is none, too large or not UTF-8."""
    try:
        file = open_regular(path, follow=True)
    except NotRegularError:
        fail("not a file", "give a file", at=path)
    except FileNotFoundError:
        fail("no such configuration file", "copy one from examples/ or name one with --configfile", at=path)
    except (OSError, ValueError) as error:
        fail(getattr(error, "strerror", None) or str(error), "give a file that can be read", at=ascii(str(path))[1:-1])
    with open(file, "rb") as content:
        if (size := os.fstat(file).st_size) > _LARGEST:
            fail(f"holds {size / 1e6:.0f} MB", f"{_LARGEST / 1e6:.0f} MB is the most that is read", at=path)
        try:
            return _PAIR.sub(_join_pair, content.read(_LARGEST + 1).decode("utf-8"))
        except UnicodeDecodeError:
            fail("not UTF-8 text", "save it as UTF-8", at=path)


def _join_pair(match: re.Match[str]) -> str:
    return match[0] if match[1] is None else json.loads(f'"{match[0]}"')


def load_yaml(path: Path) -> Any:
    """Return what a YAML file holds. Raises `UserError` as `check_yaml_text` does."""
    text = read_text(path)
    check_yaml_text(text, path)
    return yaml.load(text, Loader=SAFE_LOADER)


def check_yaml_text(text: str, at: str | Path) -> None:
    """Refuse what YAML lets pass: duplicate keys, of which the last would win, and all that is out of bounds.

    Raises `UserError` with the line.
    """
    try:
        _Check(SAFE_LOADER(text), at).run()
        # As Snakemake reads it, in Python and as a whole: libyaml takes some texts that this does not.
        yaml.load(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        fail(f"not YAML: {error.problem}", "check quotes and indentation", at=at, line=mark.line + 1 if mark else 1)
    except (yaml.YAMLError, ValueError) as error:
        position = getattr(error, "position", None) or 0
        what = f"not YAML: {getattr(error, 'reason', None) or 'characters that are not allowed'}"
        fail(what, "remove control characters", at=at, line=text.count("\n", 0, position) + 1)


@dataclass
class _Open:
    """A list or mapping that has begun. values: of it and all below it. keys: with their lines."""

    event: Any
    values: int = 1
    keys: dict[str, int] = field(default_factory=dict)
    key_is_due: bool = False


class _Check:
    """One walk over the events of a document, which builds nothing."""

    def __init__(self, loader: Any, at: str | Path) -> None:
        self.loader, self.at = loader, at
        self.open: list[_Open] = []
        self.values: dict[str, int] = {}  # by anchor; 0 while what it names has not ended
        self.documents = 0

    def run(self) -> None:
        while self.loader.check_event():
            event = self.loader.get_event()
            line = event.start_mark.line + 1
            if isinstance(event, yaml.DocumentStartEvent):
                self.documents += 1
                if self.documents > 1:
                    self.fail("holds several documents", "leave one, without ---", line)
            elif isinstance(event, yaml.CollectionEndEvent):
                self.end()
            elif isinstance(event, yaml.NodeEvent):
                self.node(event, line)

    def fail(self, what: str, hint: str, line: int) -> None:
        fail(what, hint, at=self.at, line=line)

    def node(self, event: Any, line: int) -> None:
        parent = self.open[-1] if self.open else None
        is_key = parent is not None and parent.key_is_due
        if parent is not None and isinstance(parent.event, yaml.MappingStartEvent):
            parent.key_is_due = not parent.key_is_due
        if is_key and not isinstance(event, yaml.ScalarEvent):
            self.fail("a key is not plain text", "write KEY: VALUE, with the key in quotes if need be", line)
        if isinstance(event, yaml.AliasEvent):
            self.alias(event, line)
            return
        if event.tag and event.tag not in {*_TAGS, "!"}:
            self.fail(f"the tag {event.tag[:60]!a} is not read here", "remove it", line)
        if isinstance(event, yaml.ScalarEvent):
            value = self.scalar(event, line)
            if is_key and parent is not None:
                self.key(parent, value, line)
            self.count(1, line)
            self.name(event, 1)
            return
        self.name(event, 0)
        self.open.append(_Open(event, key_is_due=isinstance(event, yaml.MappingStartEvent)))
        if len(self.open) > _DEEPEST:
            self.fail(f"nested deeper than {_DEEPEST} levels", "no key needs that", line)

    def name(self, event: Any, values: int) -> None:
        if event.anchor in self.values:
            self.fail(f"the anchor &{event.anchor[:60]} occurs twice", "rename one", event.start_mark.line + 1)
        if event.anchor:
            self.values[event.anchor] = values

    def alias(self, event: Any, line: int) -> None:
        values = self.values.get(event.anchor)
        if not values:
            what = "stands inside of what it names" if values == 0 else "names nothing above it"
            self.fail(f"the alias *{event.anchor[:60]} {what}", "write the value out", line)
        self.count(values or 1, line)

    def key(self, parent: _Open, value: str, line: int) -> None:
        if value == _TEMPLATE:
            self.fail(f"{_TEMPLATE} would run code that is in the file", "remove it", line)
        if value in parent.keys:
            self.fail(f"{value[:80]} occurs twice (first in line {parent.keys[value]})", "remove one", line)
        parent.keys[value] = line

    def scalar(self, event: Any, line: int) -> str:
        """Check that a plain value can be read as what YAML takes it for."""
        tag = event.tag
        if tag in (None, "!"):
            tag = self.loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        if (fault := find_text_fault(event.value)) is not None:
            self.fail(f"a text {fault}", "remove it", line)
        if _NUMBER.fullmatch(tag) and len(event.value) > _LONGEST_NUMBER:
            self.fail(f"a number of {len(event.value)} characters", "quote it if it is a text", line)
        if tag in (_TEXT, _MERGE):
            return event.value
        try:
            self.loader.construct_object(yaml.ScalarNode(tag, event.value), deep=True)
        except (yaml.YAMLError, ValueError, OverflowError, LookupError, TypeError, AttributeError):
            kind = tag.rpartition(":")[2]
            self.fail(
                f"YAML reads {event.value[:60]!a} as a {kind} and cannot", f'quote it: "{event.value[:60]}"', line
            )
        return event.value

    def count(self, values: int, line: int) -> None:
        if not self.open:
            return
        self.open[-1].values += values
        if sum(one.values for one in self.open) > _MOST:
            self.fail(f"holds more than {_MOST:,} values, aliases written out", "shorten it", line)

    def end(self) -> None:
        closed = self.open.pop()
        if closed.event.anchor:
            self.values[closed.event.anchor] = closed.values
        if self.open:
            self.open[-1].values += closed.values


def find_text_fault(text: str) -> str | None:
    """Return what keeps a text from being passed on, or None."""
    if "\0" in text:
        return "holds a NUL character"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "holds half of a character (a lone surrogate)"
    return None


def find_fault(value: Any) -> str | None:
    """Return what keeps a value from being worked with, or None: the bounds of files, for values however they came."""
    seen, waiting = 0, [(value, 1)]
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > _DEEPEST:
            return f"it is nested deeper than {_DEEPEST} levels"
        if seen > _MOST:
            return f"it holds more than {_MOST:,} values"
        if isinstance(value, Mapping):
            waiting += [(part, depth + 1) for item in value.items() for part in item]
        elif isinstance(value, (list, tuple)):
            waiting += [(part, depth + 1) for part in value]
        elif (fault := _scalar_fault(value)) is not None:
            return fault
    return None


def _scalar_fault(value: Hashable) -> str | None:
    if isinstance(value, str):
        fault = find_text_fault(value)
        return fault and f"a text in it {fault}"
    if isinstance(value, int) and abs(value) >= 10**_LONGEST_NUMBER:
        return "a number in it is too large"
    if value is None or isinstance(value, (int, float, date)):
        return None
    return f"a {type(value).__name__} in it is neither text, number, list nor mapping"
