"""Lock files: packages in exact versions with the hashes of their files, in the form that pip reads.

Only Python's own library is needed, since these files are read before anything is installed.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from lib.core.cli import fail

TORCH_CPU = "envs/torch-cpu.lock"  # PyTorch's builds for the CPU
LOCKS = (
    TORCH_CPU,
    "requirements.lock",
    "envs/cuda/torch.lock",
    "envs/cuda/onnx.lock",
    "tests/llama-cpp.lock",
    "tests/trl.lock",
    "tests/clients.lock",
    "tests/foundry.lock",
    "tests/hadolint.lock",
    "tests/tracking.lock",
)

_PIN = re.compile(r"((?P<name>[A-Za-z0-9._-]+)(\[[a-z0-9,-]+\])?(?P<pin>===?[^\s;\\]+)) *\\?")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


class Entry(NamedTuple):
    """A package of a lock file: the line that pins it, and the hashes of its files."""

    line: str
    name: str
    pin: str
    hashes: list[str]


def read_lock(text: str, file: str) -> tuple[list[str], list[Entry]]:
    """Return the comments and the packages of a lock file. Raises `UserError` for a line that is neither."""
    comments = [line for line in text.splitlines() if line.startswith("#")]
    entries: list[Entry] = []
    for number, line in enumerate(text.splitlines(), 1):
        if pinned := _PIN.fullmatch(line):
            entries.append(Entry(pinned[1], pinned["name"], pinned["pin"], []))
        elif (hashes := _HASH.findall(line)) and entries:
            entries[-1].hashes.extend(hashes)
        elif line.strip() and not line.startswith("#"):
            fail(f"{line[:80]!r} pins no package", "write name==version", at=file, line=number)
    return comments, entries


def format_lock(comments: list[str], entries: list[Entry], hashes: Iterable[list[str]]) -> str:
    """Return the text of a lock file, in the form that pip's own tools give it."""
    blocks = (
        " \\\n    ".join([entry.line, *(f"--hash=sha256:{one}" for one in sorted(set(found)))])
        for entry, found in zip(entries, hashes, strict=True)
    )
    return "\n".join([*comments, *blocks]) + "\n"
