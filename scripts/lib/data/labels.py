"""Labels and their spellings: which texts are one label, and how `data.labels` says so."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from lib.data.rows import normalize

# As `data.labels` gives them: the labels, or for each label the other spellings that mean it.
Labels = Sequence[str] | Mapping[str, Sequence[str]]
Counts = Mapping[str, int]

# Characters that show nothing, beside those of the category Cf (zero-width signs, soft hyphens, marks of direction).
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_MOST_NAMED = 5
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,9})?")


def map_spellings(labels: Labels) -> dict[str, str]:
    """Return the label that each spelling of `data.labels` stands for."""
    others = labels if isinstance(labels, Mapping) else {}
    return {label: label for label in labels} | {text: label for label in others for text in others[label]}


def normalize_label(text: str) -> Hashable:
    """Return what a label means, whatever its spelling: 0 and 0.0, true and True, NFC and NFD are one.

    White space around and within counts once, signs that show nothing count as nothing.
    """
    seen = normalize(text if text.isascii() and text.isprintable() else _without_invisible(text))
    if seen.casefold() in ("true", "false"):
        return seen.casefold()
    try:
        return Decimal(seen) if _NUMBER.fullmatch(seen) else seen
    except InvalidOperation:  # beyond what a Decimal holds
        return seen


def _without_invisible(text: str) -> str:
    rest = _INVISIBLE.sub("", text)
    return "".join(one for one in rest if one.isspace() or unicodedata.category(one) not in ("Cf", "Cc"))


def normalize_caseless(text: str) -> Hashable:
    """Return `normalize_label` without regard to case and to compatible characters (full-width letters, ligatures)."""
    return normalize_label(unicodedata.normalize("NFKC", text).casefold())


def group_undecided_spellings(
    counts: Counts, labels: Labels | None, value: Callable[[str], Hashable]
) -> list[dict[str, int]]:
    """Group the spellings that `value` takes for one label where `data.labels` does not say what they are.

    counts: rows of each spelling. Groups come with the most frequent spelling first.
    """
    decided = map_spellings(labels) if labels else {}
    groups: defaultdict[Hashable, dict[str, int]] = defaultdict(dict)
    for text, count in {**dict.fromkeys(decided, 0), **counts}.items():
        groups[value(text)][text] = count
    found = [group for group in groups.values() if len(group) > 1 and group.keys() - decided.keys()]
    if decided:
        found = [group for group in found if group.keys() & decided.keys()]
    return [dict(sorted(group.items(), key=lambda item: (-item[1], item[0]))) for group in found]


def join_labels(groups: Iterable[Counts], counts: Counts, labels: Labels | None) -> dict[str, list[str]]:
    """Return the `data.labels` that takes each group for one label: the one listed, else its shortest spelling."""
    decided = map_spellings(labels) if labels else {}
    result = _as_mapping(counts, labels)
    for group in groups:
        plainest = min(group, key=lambda text: (len(text), -group[text], text))
        label = next((decided[text] for text in group if text in decided), plainest)
        others = [text for text in group if text != label and text not in decided]
        result = {name: spellings for name, spellings in result.items() if name not in others}
        result[label] = [*result[label], *others]
    return dict(sorted(result.items()))


def separate_labels(groups: Iterable[Counts], counts: Counts, labels: Labels | None) -> dict[str, list[str]]:
    """Return the `data.labels` that keeps every spelling of the groups a label of its own."""
    decided = map_spellings(labels) if labels else {}
    own: dict[str, list[str]] = {text: [] for group in groups for text in group if text not in decided}
    return dict(sorted({**own, **_as_mapping(counts, labels)}.items()))


def format_labels_line(labels: Mapping[str, Sequence[str]]) -> str:
    """Write `data.labels` as a line of YAML, with escapes for what cannot be seen."""
    if not any(labels.values()):
        return f"labels: [{', '.join(map(quote, labels))}]"
    pairs = (f"{quote(label)}: [{', '.join(map(quote, others))}]" for label, others in labels.items())
    return f"labels: {{{', '.join(pairs)}}}"


def quote(text: str) -> str:
    """Write a text in double quotes, as YAML and JSON read it, with escapes for what cannot be seen."""
    is_composed = unicodedata.is_normalized("NFC", text)
    visible = "LNPSM" if is_composed else "LNPS"
    return '"' + "".join(_escape(one, visible) for one in text) + '"'


def format_counts(group: Counts) -> str:
    """Say how often each spelling occurs: `"0" (15 rows) and "0.0" (15 rows)`."""
    named = [f"{quote(_cut(text))} ({count:,} row{'s' * (count != 1)})" for text, count in group.items()]
    if len(named) > _MOST_NAMED:
        named = [*named[: _MOST_NAMED - 1], f"{len(named) - _MOST_NAMED + 1:,} more"]
    return f"{', '.join(named[:-1])} and {named[-1]}"


def describe_spellings(groups: Sequence[Counts], counts: Counts, labels: Labels | None) -> dict[str, Any] | None:
    """Return the groups with the lines for `data.labels` that join them and that keep them apart; None without any."""
    if not groups:
        return None
    join, keep = (format_labels_line(choose(groups, counts, labels)) for choose in (join_labels, separate_labels))
    return {"groups": groups, "join": join, "keep": keep}


def _as_mapping(counts: Counts, labels: Any) -> dict[str, list[str]]:
    """Return the labels with their other spellings; without any given, those that occur."""
    if isinstance(labels, Mapping):
        return {label: list(others) for label, others in labels.items()}
    return {label: [] for label in labels or counts}


def _cut(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"


def _escape(one: str, visible: str) -> str:
    if one in '"\\':
        return f"\\{one}"
    if one == " " or (unicodedata.category(one)[0] in visible and not _INVISIBLE.match(one)):
        return one
    return f"\\u{ord(one):04x}" if ord(one) < 0x10000 else f"\\U{ord(one):08x}"
