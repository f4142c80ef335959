"""A plan in words for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from lib.workflow.steps import STEPS
from lib.workflow.time_left import describe_time

_SHORT = 10.0  # seconds: shorter steps share a line
_MOST_CLASSES = 12
_OPEN, _CLOSE = "[[", "]]"


def format_plan(plan: Mapping[str, Any]) -> str:
    """Return the plan as lines. plan: as `scripts/check.py --json` prints it."""
    lines = [*_format_rows(plan["rows"]), *_format_trainings(plan["trainings"]), *_format_checks(plan["model_checks"])]
    if plan["jobs"]:
        lines += ["", *_format_jobs(plan["jobs"], plan["total"])]
        lines += [f"{plan['done']} steps are done already"] if plan["done"] else []
    else:
        lines += ["", "nothing to be done: all results are there"]
    lines += [_describe_speed(plan["speed"])] if plan["jobs"] else []
    return "\n".join(lines)


def _format_rows(rows: Mapping[str, Any]) -> list[str]:
    examined = "" if rows["examined"] == rows["rows"] else f", a sample of {rows['examined']:,} examined"
    reasons = [f"{count:,} {name.replace('_', ' ')}" for name, count in list(rows["set_aside"].items())[:3]]
    more = len(rows["set_aside"]) - len(reasons)
    aside = ", ".join([*reasons, *([f"{more} more reasons"] if more > 0 else [])]) or "none"
    tokens, splits = rows["tokens"], rows["splits"]
    lines = [
        f"rows      {rows['rows']:,} read{examined}, {rows['kept']:,} kept; set aside: {aside}",
        "splits    " + ", ".join(f"{name} {count:,}" for name, count in splits.items()),
        f"tokens    {tokens['mean']:.0f} a row on average, 95 % of the rows at most {tokens['p95']},"
        f" the longest {tokens['max']}",
    ]
    if rows["classes"]:
        lines.insert(1, f"classes   {_format_classes(rows['classes'])}")
    lines += ["", f"A row as the model sees it; what it learns to write stands between {_OPEN} and {_CLOSE}:"]
    return [*lines, *(f"    {line}" for line in _mark(rows["example"]).splitlines()), ""]


def _format_classes(classes: Mapping[str, int]) -> str:
    total = sum(classes.values())
    ranked = sorted(classes.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {100 * count / total:.0f} %" for name, count in ranked[:_MOST_CLASSES])
    more = len(ranked) - _MOST_CLASSES
    return f"{len(ranked)}: {shown}" + (f" and {more} more" if more > 0 else "")


def _mark(example: Mapping[str, Any]) -> str:
    text, place, marked = example["text"], 0, ""
    for start, end in example["learned"]:
        marked += text[place:start] + _OPEN + text[start:end] + _CLOSE
        place = end
    return marked + text[place:]


def _format_trainings(trainings: Mapping[str, Any]) -> list[str]:
    if not trainings:
        return ["training  none"]
    found: dict[tuple[Any, ...], list[str]] = {}
    for name, one in trainings.items():
        found.setdefault(tuple(one.values()), []).append(name)
    lines = []
    for (steps, sequences, epochs, tokens), names in found.items():
        which = names[0] if len(names) == 1 else f"{len(names)} runs ({names[0]}, …)"
        lines.append(
            f"training  {which}: {steps:,} steps, {sequences:,} sequences × {epochs:g} epochs, about {tokens:,} tokens"
        )
    return lines


def _format_checks(checks: Mapping[str, str]) -> list[str]:
    said = {
        "passed": "the base model's kind can be trained and built, as tried",
        "refused": f"refused when it was tried: {checks.get('reason')}",
        "not checked yet": "not checked yet: the run tries a small model of its kind first",
    }
    return [f"model     {said[checks['outcome']]}"]


def _format_jobs(jobs: Sequence[Mapping[str, Any]], total: Mapping[str, Any]) -> list[str]:
    """Return a table with a line for each rule, the short ones in one."""
    groups: dict[str, list[Mapping[str, Any]]] = {rule: [] for rule in STEPS}
    for job in jobs:
        groups.setdefault(job["rule"], []).append(job)
    long = {
        rule: own
        for rule, own in groups.items()
        if own and not all(job["seconds"] is not None and job["seconds"] < _SHORT for job in own)
    }
    short = [job for rule, own in groups.items() if rule not in long for job in own]
    table = [["step", "times", "time", "memory", "disk"]]
    table += [_format_line(STEPS.get(rule, rule), own) for rule, own in long.items()]
    table += [_format_line("short steps", short)] if short else []
    table.append(_format_line("all, one after the other", jobs))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    if total["not_estimated"]:
        lines.append(f"without {total['not_estimated']} steps whose time nobody has measured: the profile reserves it")
    return lines


def _format_line(name: str, jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    return [name, str(len(jobs)), _format_time(jobs), _format_size(_find_largest(jobs)), _format_size(_sum_disk(jobs))]


def _format_time(jobs: Sequence[Mapping[str, Any]]) -> str:
    known = [job for job in jobs if job["seconds"] is not None]
    if not known:
        reserved = sum(job["reserved_minutes"] or 0 for job in jobs)
        return f"at most {describe_time(60 * reserved)}" if reserved else "not known"
    low, high = (sum(job["seconds_range"][end] for job in known) for end in (0, 1))
    return f"{describe_time(sum(job['seconds'] for job in known))} ({describe_time(low)} to {describe_time(high)})"


def _find_largest(jobs: Sequence[Mapping[str, Any]]) -> float:
    return max((job["mem_mb"] or 0.0 for job in jobs), default=0.0)


def _sum_disk(jobs: Sequence[Mapping[str, Any]]) -> float:
    total: float = sum(job["disk_mb"] for job in jobs)
    return total


def _format_size(megabytes: float) -> str:
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 50 else ""


def _describe_speed(speed: Mapping[str, Any] | None) -> str:
    if speed is None:
        return "Times are those of two CPU cores without bfloat16 units; where these jobs run, they may differ."
    return (
        f"Times follow from products of matrices on this machine: {speed['float32'] / 1e9:,.0f} GFLOP/s in float32,"
        f" {speed['auto'] / 1e9:,.0f} in {speed['auto_dtype']}, and from finished steps of this results folder."
    )
