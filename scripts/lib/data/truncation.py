"""Rows that are longer than `corpus.max_length`: the longest value gives way, nothing else."""

from collections.abc import Callable, Mapping

from lib.data.templates import Template, render_completion, render_prompt
from lib.data.tokenizer import Tokenizer


def shorten_values(
    tokenizer: Tokenizer,
    template: Template,
    values: Mapping[str, str],
    answer: str,
    *,
    max_length: int,
    side: str,
    count: Callable[[str], int] | None = None,
) -> dict[str, str] | None:
    """Return input values with which prompt and answer take at most `max_length` tokens.

    The longest value loses its end (`side` right) or its start (left), half of it at a time at most,
    so that two long values shrink together. Control tokens, fixed text and answer stay whole; None
    when these alone are too long.

    count: counts tokens, where that goes faster than by the tokenizer itself.
    """
    fitted = dict(values)
    completion = render_completion(template, answer)
    count = count or (lambda text: len(tokenizer.encode(text)))
    while (excess := count(render_prompt(template, fitted) + completion) - max_length) > 0:
        spans = {name: tokenizer.locate(fitted[name]) for name in fitted}
        longest = max(fitted, key=lambda name: len(spans[name]))
        cut = _cut(fitted[longest], spans[longest], excess, side)
        if not cut:
            return None
        fitted[longest] = cut
    return fitted


def _cut(value: str, spans: list[tuple[int, int]], excess: int, side: str) -> str:
    """Return `value` without `excess` of its tokens, or half of them; a character is never cut in two."""
    dropped = min(excess, (len(spans) + 1) // 2)
    if dropped >= len(spans):
        return ""
    rest = value[: spans[-dropped][0]] if side == "right" else value[spans[dropped - 1][1] :]
    rest = rest.strip()
    return rest if len(rest) < len(value) else ""  # tokens without characters: nothing to win here
