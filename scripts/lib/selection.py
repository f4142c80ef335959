"""The selection, for the rules that go on with what was selected."""

from pathlib import Path
from typing import Any

from lib.cli import fail
from lib.files import read_json


def selected(file: Path) -> dict[str, Any]:
    """The selection. Raises `UserError` with every rejection when nothing was selected."""
    selection = read_json(file)
    if selection["run"] is None:
        reasons = " / ".join(f"{one['run']}/{one['variant']}: {one['reason']}" for one in selection["rejected"])
        fail(f"no variant meets the constraints ({reasons})", "relax selection: or add a variant", at=file)
    return selection
