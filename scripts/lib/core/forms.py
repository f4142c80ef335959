"""Forms of JSON that others made: which keys and values a file may have, checked where it is read.

Whoever reads on then needs no guard of its own against a list in place of an object, or a number in place of text. A
form is a function of a value and its name; it returns what is wrong, or None. The first fault is enough.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lib.core.cli import fail
from lib.core.files import read_json

Form = Callable[[Any, str], str | None]

LARGEST = 2**31 - 1  # what the libraries hold in 32 bits
_MOST_BYTES = 64 << 20  # labels and tokenizer settings of the largest models take a few
_NONE: Mapping[str, Form] = MappingProxyType({})
_HINT = "mend it, or make it again"


def read_form(path: Path, form: Form, hint: str = _HINT, *, strict: bool = False) -> Any:
    """Return the value of a JSON file that has this form.

    strict: refuse, too, what another program may read in another way: a key given twice, NaN, infinities, and files of
    more than 64 MB.
    Raises `UserError` with the file and the key that is wrong, and for a pipe, whose reader would wait for ever.
    """
    if path.exists() and not path.is_file():
        fail("it is not a regular file", "remove it", at=path)
    if strict and path.exists() and path.stat().st_size > _MOST_BYTES:
        fail("too large for a file of its kind", hint, at=path)
    return check_form(read_json(path, hint=hint, strict=strict), form, at=path, hint=hint)


def check_form(value: Any, form: Form, *, at: str | Path, line: int | None = None, hint: str = _HINT) -> Any:
    """Return `value` if it has this form. Raises `UserError` that names the key that is wrong otherwise."""
    if fault := form(value, ""):
        fail(fault, hint, at=at, line=line)
    return value


def allow(what: str, fits: Callable[[Any], bool]) -> Form:
    """Allow values that fit. what: what they are, for the message."""
    return lambda value, name: None if fits(value) else f"{name or 'it'} must be {what}"


ANYTHING = allow("anything", lambda value: True)
TEXT = allow("text", lambda value: isinstance(value, str))
BOOLEAN = allow("true or false", lambda value: isinstance(value, bool))
INTEGER = allow("a whole number", lambda value: type(value) is int)
NUMBER = allow("a number", lambda value: type(value) in (int, float) and abs(value) <= LARGEST)  # NaN is not
SHA256 = allow("a sha256", lambda value: isinstance(value, str) and bool(re.fullmatch(r"[0-9a-f]{64}", value)))


def allow_integer(low: int = 0, high: int = LARGEST) -> Form:
    """Allow whole numbers from `low` to `high`."""
    return allow(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def allow_one_of(*values: str) -> Form:
    """Allow some texts."""
    return allow(" or ".join(map(json.dumps, values)), lambda value: isinstance(value, str) and value in values)


def allow_matching(pattern: str) -> Form:
    """Allow texts that a regular expression matches as a whole."""
    return allow(
        f"text of the form {pattern}", lambda value: isinstance(value, str) and bool(re.fullmatch(pattern, value))
    )


def list_of(form: Form, least: int = 0) -> Form:
    """Allow lists of at least so many values of a form."""

    def check(value: Any, name: str) -> str | None:
        if not isinstance(value, list) or len(value) < least:
            return f"{name or 'it'} must be a list" + (" with something in it" if least else "")
        faults = (form(one, f"{name}[{place}]") for place, one in enumerate(value))
        return next(filter(None, faults), None)

    return check


def allow_any_of(*forms: Form) -> Form:
    """Allow a value of any of the forms; the first says what is wrong with others."""

    def check(value: Any, name: str) -> str | None:
        faults = [form(value, name) for form in forms]
        return faults[0] if all(faults) else None

    return check


def allow_null(form: Form) -> Form:
    """Allow null, or a value of a form."""

    def check(value: Any, name: str) -> str | None:
        return None if value is None else form(value, name)

    return check


def allow_object_of(form: Form) -> Form:
    """Allow objects with any keys whose values all have a form."""

    def check(value: Any, name: str) -> str | None:
        if not isinstance(value, dict):
            return f"{name or 'it'} must be an object"
        faults = (form(inner, f"{name}[{_show(key)}]") for key, inner in value.items())
        return next(filter(None, faults), None)

    return check


def allow_object(required: Mapping[str, Form] = _NONE, optional: Mapping[str, Form] = _NONE) -> Form:
    """Allow objects with these keys and no others."""
    known = {**required, **optional}
    inner = allow_open_object(required, optional)

    def check(value: Any, name: str) -> str | None:
        unknown = next((key for key in value if key not in known), None) if isinstance(value, dict) else None
        if unknown is not None:
            return f"{name or 'it'} has the key {_show(unknown)}, which is not allowed"
        return inner(value, name)

    return check


def allow_open_object(required: Mapping[str, Form] = _NONE, optional: Mapping[str, Form] = _NONE) -> Form:
    """Allow objects with these keys; other keys are left to whoever reads them."""
    known = {**required, **optional}

    def check(value: Any, name: str) -> str | None:
        if not isinstance(value, dict):
            return f"{name or 'it'} must be an object"
        for key, form in known.items():
            if key in value and (fault := form(value[key], f"{name}.{key}" if name else key)):
                return fault
        missing = next((key for key in required if key not in value), None)
        return f"{name or 'it'} has no key {_show(missing)}" if missing else None

    return check


def _show(key: str) -> str:
    return ascii(key[:80])
