"""The selection, for the rules that go on with what was selected."""

from pathlib import Path
from typing import Any

from lib.core.cli import fail
from lib.core.forms import TEXT, allow_null, allow_open_object, list_of, read_form
from lib.core.paths import check_bare_name

_REJECTED = allow_open_object(dict.fromkeys(("run", "variant", "reason"), TEXT))
_FORM = allow_open_object({"rejected": list_of(_REJECTED)}, dict.fromkeys(("run", "variant"), allow_null(TEXT)))


def load_selection(file: Path) -> dict[str, Any]:
    """Return the selection. Raises `UserError` with every rejection when nothing was selected."""
    selection: dict[str, Any] = read_form(file, _FORM)
    if selection.get("run") is None:
        reasons = " / ".join(f"{one['run']}/{one['variant']}: {one['reason']}" for one in selection["rejected"])
        fail(f"no variant meets the constraints ({reasons})", "relax selection: or add a variant", at=file)
    for key in ("run", "variant"):  # both name folders
        check_bare_name(selection.get(key), at=file)
    return selection
