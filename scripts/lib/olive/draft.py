"""The configuration that is being made of Olive's, and what became of each entry of that.

An entry is taken (it stands in the configuration), belongs to a profile, or is left out with a reason. `settle` gives
every entry one of the three, so that none is dropped silently.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from lib.config.training import Finetune
from lib.config.variants import Section
from lib.olive.document import Block, Document, Entry
from lib.olive.keys import KEYS, OTHER_PASSES
from lib.olive.render import format_value

FILL_IN = "FILL IN"
ZEROS = "0" * 40


@dataclass
class Draft:
    """values: of slmflow's configuration, by path. comments: by path. profile: lines for a profile, each with
    where it comes from.

    left: reasons by path of Olive's file. is_old: whether the file is read as Olive 0.6 reads it.
    """

    document: Document
    is_old: bool
    values: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, list[str]] = field(default_factory=dict)
    profile: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def take(self, block: Block, kind: str, *keys: str) -> Any:
        """Return the value of the first of these keys that the block has, or None. The entry then counts as taken."""
        entry = self.take_entry(block, kind, *keys)
        return None if entry is None else entry.value

    def take_entry(self, block: Block, kind: str, *keys: str) -> Entry | None:
        """Return the first entry with one of these keys, or None. It then counts as taken; null is no value."""
        entry = block.find(kind, *keys)
        if entry is not None and entry.value is None:
            self.leave(entry, "null is as if it were not there")
            return None
        if entry is not None:
            self.taken.add(entry.path)
        return entry

    def take_typed(self, block: Block, wanted: type | tuple[type, ...], kind: str, *keys: str) -> Any:
        """Return the value as `take` does; one of another type is left out."""
        entry = self.take_entry(block, kind, *keys)
        if entry is None:
            return None
        is_wanted = isinstance(entry.value, wanted) and (wanted is bool or not isinstance(entry.value, bool))
        if not is_wanted:
            self.leave(entry, "a value of this kind cannot be used here")
            return None
        return entry.value

    def leave(self, entry: Entry, reason: str) -> None:
        """Leave an entry out, for a reason."""
        self.left[entry.path] = reason

    def leave_block(self, block: Block, reason: str) -> None:
        """Leave a block out as a whole."""
        for entry in block.entries:
            self.taken.add(entry.path)
        self.left[block.path or block.name] = reason

    def set(self, path: str, value: Any, *comments: str) -> None:
        """Set a key of slmflow."""
        self.values[path] = value
        self.comment(path, *comments)

    def comment(self, path: str, *comments: str) -> None:
        """Add comments to a key."""
        self.comments.setdefault(path, []).extend(text for text in comments if text)

    def set_checked(self, path: str, section: type[Section], entry: Entry, value: Any, *comments: str) -> bool:
        """Set a key if its section accepts the value; else leave the entry out. Return whether it was set."""
        if fault := find_value_fault(section, path.rpartition(".")[2], value):
            self.leave(entry, f"{path} does not accept it: {fault}")
            return False
        self.set(path, value, *comments)
        return True

    def settle(self) -> None:
        """Give every entry that is neither taken nor left out the reason that the table of keys has for it."""
        for block in self.document.blocks:
            for entry in block.entries:
                if entry.path not in self.taken and entry.path not in self.left:
                    self.left[entry.path] = explain_entry(entry)
        for stray in self.document.strays:
            self.left[stray.path] = "unknown to the importer"

    def list_left(self) -> list[str]:
        """Return a line for each entry that was left out: its path, its value and the reason."""
        values = {entry.path: entry.value for block in self.document.blocks for entry in block.entries}
        values |= {stray.path: stray.value for stray in self.document.strays}
        lines = []
        for path, reason in self.left.items():
            shown = f" {format_value(values[path])}" if path in values else ""
            lines.append(f"{path}:{shown} ({reason})")
        return lines


def explain_entry(entry: Entry) -> str:
    """Return why an entry that nothing took is left out."""
    if entry.kind == "other":
        return OTHER_PASSES.get(str(entry.value).lower(), "there is no such pass here")
    key = KEYS[entry.kind].get(entry.key)
    if key is None:
        return "unknown to the importer"
    return key.says or "without effect here"


def find_value_fault(section: type[BaseModel], name: str, value: Any) -> str | None:
    """Return why a section of the configuration refuses a value of one of its keys, or None."""
    try:
        section.model_validate({name: value})
    except ValidationError as error:
        return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    return None


def list_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of Olive's defaults that are not slmflow's, too."""
    return {name: value for name, value in values.items() if Finetune.model_fields[name].default != value}
