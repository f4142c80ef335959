"""The selection, for the rules that go on with what was selected."""

from pathlib import Path
from typing import Any

from lib.cli import fail
from lib.core.objects import OBJECT, TEXT, check_object, list_of, optional, read_object
from lib.core.paths import check_bare_name

_FORM = {"run": optional(TEXT), "variant": optional(TEXT), "rejected": list_of(OBJECT)}
_REJECTED = dict.fromkeys(("run", "variant", "reason"), TEXT)


def selected(file: Path) -> dict[str, Any]:
    """Return the selection. Raises `UserError` with every rejection when nothing was selected."""
    selection = read_object(file, _FORM)
    rejected = [check_object(one, _REJECTED, at=file) for one in selection["rejected"]]
    if selection.get("run") is None:
        reasons = " / ".join(f"{one['run']}/{one['variant']}: {one['reason']}" for one in rejected)
        fail(f"no variant meets the constraints ({reasons})", "relax selection: or add a variant", at=file)
    for key in ("run", "variant"):  # both name folders
        check_bare_name(selection.get(key), at=file)
    return selection
