"""Forms of JSON files from strangers: which keys and values a file may have, checked before anything reads them.

A form is a function of a value and its name; it returns what is wrong, or None. Files are small, so the first fault is
enough.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lib.cli import fail

Form = Callable[[Any, str], str | None]

LARGEST = 2**31 - 1  # what the libraries hold in 32 bits
_MOST_BYTES = 64 << 20  # labels and tokenizer settings of the largest models take a few
_NONE: Mapping[str, Form] = MappingProxyType({})


def read_form(path: Path, form: Form, hint: str) -> Any:
    """Read a JSON file of a given form. Raises `UserError` with the file and the key that is wrong.

    Stricter than `json.load`: a key given twice is refused, because other parsers read both, and so are NaN, infinities
    and files of more than 64 MB.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            fail("too large for a file of its kind", hint, at=path)
        value = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except FileNotFoundError:
        fail("no such file", hint, at=path)
    except IsADirectoryError:
        fail("is a folder", hint, at=path)
    except json.JSONDecodeError as error:
        fail(f"not JSON: {error.msg}", hint, at=path, line=error.lineno)
    except UnicodeDecodeError:
        fail("not UTF-8 text", hint, at=path)
    except RecursionError:
        fail("nested too deep", hint, at=path)
    except ValueError as error:  # a key twice, NaN, an integer of more than 4,300 digits
        fail(f"not JSON: {str(error).partition(';')[0]}", hint, at=path)
    if fault := form(value, ""):
        fail(fault, hint, at=path)
    return value


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {_shown(key)} stands there twice")
        result[key] = value
    return result


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


def whole(low: int = 0, high: int = LARGEST) -> Form:
    """Allow whole numbers from `low` to `high`."""

    def check(value: Any, name: str) -> str | None:
        fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return None if fits else f"{name} must be a whole number from {low} to {high}"

    return check


def number(value: Any, name: str) -> str | None:
    """Allow finite numbers."""
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    return None if fits and abs(value) <= LARGEST and math.isfinite(value) else f"{name} must be a number"


def flag(value: Any, name: str) -> str | None:
    """Allow true and false."""
    return None if isinstance(value, bool) else f"{name} must be true or false"


def text(value: Any, name: str) -> str | None:
    """Allow text that UTF-8 can encode."""
    if not isinstance(value, str):
        return f"{name} must be text"
    return f"{name} has an unpaired surrogate" if any("\ud800" <= sign <= "\udfff" for sign in value) else None


def one_of(*values: Any) -> Form:
    """Allow some texts, or null."""

    def check(value: Any, name: str) -> str | None:
        fits = value is None or isinstance(value, str)
        return None if fits and value in values else f"{name} must be {' or '.join(json.dumps(one) for one in values)}"

    return check


def matching(pattern: str) -> Form:
    """Allow texts that a regular expression matches as a whole."""

    def check(value: Any, name: str) -> str | None:
        fits = isinstance(value, str) and re.fullmatch(pattern, value)
        return None if fits else f"{name} has a value that is not allowed"

    return check


def list_of(form: Form, least: int = 0) -> Form:
    """Allow lists of at least so many values of a form."""

    def check(value: Any, name: str) -> str | None:
        if not isinstance(value, list) or len(value) < least:
            return f"{name} must be a list" + (" with something in it" if least else "")
        faults = (form(one, f"{name}[{place}]") for place, one in enumerate(value))
        return next(filter(None, faults), None)

    return check


def either(*forms: Form) -> Form:
    """Allow a value of any of the forms; the first says what is wrong with others."""

    def check(value: Any, name: str) -> str | None:
        faults = [form(value, name) for form in forms]
        return faults[0] if all(faults) else None

    return check


def record(required: Mapping[str, Form] = _NONE, optional: Mapping[str, Form] = _NONE, *, others: bool = False) -> Form:
    """Allow objects with these keys. others: keys that are not named here are left alone."""
    known = {**required, **optional}

    def check(value: Any, name: str) -> str | None:
        if not isinstance(value, dict):
            return f"{name or 'it'} must be an object"
        for key, inner in value.items():
            path = f"{name}.{key}" if name else key
            if key not in known and not others:
                return f"{name or 'it'} has the key {_shown(key)}, which is not allowed"
            if fault := known[key](inner, path) if key in known else None:
                return fault
        missing = next((key for key in required if key not in value), None)
        return f"{name or 'it'} has no key {_shown(missing)}" if missing else None

    return check


def _shown(key: str) -> str:
    return ascii(key[:80])
