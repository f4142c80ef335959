"""The form of JSON that others made: what must stand under a key, said once where a file is read.

Whoever reads on then needs no guard of its own against a list in place of an object, or a number in place of text.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lib.cli import fail
from lib.files import read_json


class Kind(NamedTuple):
    """What a value is to be. name: as messages call it."""

    name: str
    holds: Callable[[Any], bool]


TEXT = Kind("text", lambda value: isinstance(value, str))
BOOLEAN = Kind("true or false", lambda value: isinstance(value, bool))
INTEGER = Kind("an integer", lambda value: type(value) is int)
LIST = Kind("a list", lambda value: isinstance(value, list))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
SHA256 = Kind("a sha256", lambda value: isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None)


def list_of(kind: Kind) -> Kind:
    """Return the kind of lists whose items are all of a kind."""
    return Kind(f"a list, each item {kind.name}", lambda value: isinstance(value, list) and all(map(kind.holds, value)))


def object_of(kind: Kind) -> Kind:
    """Return the kind of objects whose values are all of a kind."""
    return Kind(
        f"an object, each value {kind.name}",
        lambda value: isinstance(value, dict) and all(map(kind.holds, value.values())),
    )


def either(*kinds: Kind) -> Kind:
    """Return the kind of values that are of one of several kinds."""
    names = " or ".join(kind.name for kind in kinds)
    return Kind(names, lambda value: any(kind.holds(value) for kind in kinds))


def optional(kind: Kind) -> Kind:
    """Return the kind of keys that may be missing or null."""
    return Kind(kind.name, lambda value: value is None or kind.holds(value))


def read_object(path: Path, form: Mapping[str, Kind], *, hint: str = "mend it, or make it again") -> dict[str, Any]:
    """Read a JSON object that has this form; other keys are left to who reads them.

    Raises `UserError`, as `read_json` and `check_object` do, and for a pipe, whose reader would wait for ever.
    """
    if path.exists() and not path.is_file():
        fail("it is no regular file", "remove it", at=path)
    return check_object(read_json(path), form, at=path, hint=hint)


def check_object(
    value: Any,
    form: Mapping[str, Kind],
    *,
    at: str | Path,
    line: int | None = None,
    hint: str = "mend it, or make it again",
) -> dict[str, Any]:
    """Return `value` if it is an object with this form. Raises `UserError` that names the key otherwise."""
    if not isinstance(value, dict):
        fail("it holds no object with keys", hint, at=at, line=line)
    for key, kind in form.items():
        if not kind.holds(value.get(key)):
            what = f"its {key} is not {kind.name}" if key in value else f"it has no {key}"
            fail(what, hint, at=at, line=line)
    return value
