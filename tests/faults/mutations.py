"""Seeded changes of valid files: types swapped, keys dropped and doubled, huge numbers, nesting, odd text, cuts, bits."""

import json
import random
import re
import struct
from collections.abc import Callable
from typing import Any


class Raw(str):
    """Text that stands in JSON as it is."""


OUTSIDE = "../outside/pwned"  # seen from the workspace; from its folders, the others
STRANGE: list[Any] = [
    None, True, -1, 0, 1.5, 10**30, -(10**30), 2**62, "", "x", [], {}, [[]], [None], {"a": None}, {"": ""}, "x" * 100_000,
    OUTSIDE, f"../{OUTSIDE}", f"../../{OUTSIDE}", "/etc/passwd", ".", "..", "a\0b", "\ud800", "$(touch OWNED)", "{{ 7*7 }}", "a\nb", "\x1b[31m", "Ünï",
    Raw("1" * 5000), Raw("[" * 3000 + "]" * 3000), Raw("[" * 985 + "]" * 985), Raw("NaN"), Raw("-Infinity"), Raw("1e999"),
    Raw('{"a":' * 600 + "1" + "}" * 600), Raw('"\\ud83d"'),
]  # fmt: skip


def mutate_json(value: Any, draw: random.Random) -> bytes:
    """Return JSON with one to three changes of its nodes."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        value = _changed(value, draw)
    return dump(value)


def dump(value: Any) -> bytes:
    """Return JSON in which `Raw` texts stand as they are."""
    raw: list[str] = []

    def masked(node: Any) -> Any:
        if isinstance(node, Raw):
            raw.append(str(node))
            return f"@@raw{len(raw) - 1}@@"
        if isinstance(node, dict):
            return {key: masked(child) for key, child in node.items()}
        return [masked(child) for child in node] if isinstance(node, list) else node

    text = json.dumps(masked(value), indent=1)
    text = re.sub(r'"@@raw(\d+)@@"', lambda found: raw[int(found[1])], text)
    return re.sub(r'"@@twice@@(.*?)"', r'"\1"', text).encode("utf-8", "surrogatepass")


def nodes(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every node; of long lists the first few."""
    found = [path]
    if isinstance(value, dict):
        for key in list(value)[:40]:
            found += nodes(value[key], (*path, key))
    elif isinstance(value, list):
        for place in range(min(len(value), 3)):
            found += nodes(value[place], (*path, place))
    return found


def _changed(value: Any, draw: random.Random) -> Any:
    paths = nodes(value)
    path = draw.choice(paths)
    if not path:
        return draw.choice(STRANGE) if draw.random() < 0.3 else _changed(value, draw) if len(paths) > 1 else None
    parent = value
    for step in path[:-1]:
        parent = parent[step]
    how = draw.choice(["strange", "strange", "strange", "drop", "twice", "other", "rename"])
    if how == "drop" or (how in ("twice", "rename") and isinstance(parent, list)):
        del parent[path[-1]]
    elif how == "twice":
        parent[f"@@twice@@{path[-1]}"] = draw.choice(STRANGE)
    elif how == "rename":
        parent[draw.choice([f"{path[-1]}x", OUTSIDE, "", "a\nb", "\ud800"])] = parent.pop(path[-1])
    elif how == "other":
        parent[path[-1]] = _at(value, draw.choice(paths))
    else:
        parent[path[-1]] = draw.choice(STRANGE)
    return json.loads(json.dumps(value)) if how == "other" and not _has_raw(value) else value


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return json.loads(json.dumps(value)) if not _has_raw(value) else "other"


def _has_raw(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_raw(child) for child in value.values())
    return isinstance(value, Raw) or (isinstance(value, list) and any(map(_has_raw, value)))


def mutate_bytes(whole: bytes, draw: random.Random) -> bytes:
    """Return the bytes cut, with bits flipped, with a piece repeated, left out or foreign."""
    start, length = draw.randrange(len(whole)), draw.choice([1, 4, 64, 4096])
    end = min(len(whole), start + length)
    changes: list[Callable[[], bytes]] = [
        lambda: whole[:start],
        lambda: whole[start:],
        lambda: flip(whole, draw, 1),
        lambda: flip(whole, draw, 20),
        lambda: whole[:start] + whole[end:],
        lambda: whole[:end] + whole[start:end] * 20 + whole[end:],
        lambda: whole[:start] + bytes(end - start) + whole[end:],
        lambda: whole[:start] + b"\xff" * (end - start) + whole[end:],
        lambda: (
            whole[:start] + draw.choice([b"\0", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b'"', b"\x1a"]) + whole[start:]
        ),
        lambda: b"",
    ]
    return draw.choice(changes)()


def flip(whole: bytes, draw: random.Random, count: int, most: int | None = None) -> bytes:
    changed = bytearray(whole)
    for _ in range(count):
        changed[draw.randrange(min(most or len(changed), len(changed)))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def mutate_text(whole: bytes, draw: random.Random, pieces: list[str]) -> bytes:
    """Return text with a line gone, doubled or swapped, or with one of `pieces` in it; or other bytes."""
    lines = whole.decode().splitlines(keepends=True)
    place, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    how = draw.choice(["piece", "piece", "drop", "twice", "swap", "bytes"])
    if how == "bytes":
        return mutate_bytes(whole, draw)
    if how == "drop":
        del lines[place]
    elif how == "twice":
        lines.insert(other, lines[place])
    elif how == "swap":
        lines[place], lines[other] = lines[other], lines[place]
    else:
        column = draw.randrange(len(lines[place]) + 1)
        lines[place] = lines[place][:column] + draw.choice(pieces) + lines[place][column:]
    return "".join(lines).encode("utf-8", "surrogatepass")


def mutate_safetensors(whole: bytes, draw: random.Random) -> bytes:
    """Return a safetensors file whose header is changed: as JSON, as bytes, or in its length."""
    length = struct.unpack("<Q", whole[:8])[0]
    header, data = whole[8 : 8 + length], whole[8 + length :]
    how = draw.choice(["json", "json", "json", "bytes", "length", "cut"])
    if how == "json":
        header = mutate_json(json.loads(header), draw)
    elif how == "bytes":
        header = mutate_bytes(header, draw)
    elif how == "cut":
        return mutate_bytes(whole, draw)
    length = draw.choice([0, 1, 2**63, 2**64 - 1, len(header) + 1, 100_000_001]) if how == "length" else len(header)
    return struct.pack("<Q", length) + header + data
