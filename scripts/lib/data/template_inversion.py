"""What a row was before the template was put around it: the input, the target, and the answer of a model."""

import re
from collections.abc import Iterator
from itertools import islice, product
from typing import NoReturn

from lib.core.cli import fail
from lib.data.templates import Segment, Template, list_conditions, render_completion


class InputReader:
    """Reads from prompts what they were rendered from; for many prompts of one template."""

    def __init__(self, template: Template) -> None:
        separators = template.get("separators")
        self._separators = re.compile("|".join(re.escape(text) for text in separators)) if separators else None
        self._segments = template["prompt"]
        self._conditions = list_conditions(self._segments)
        self._pieces = _pieces(self._segments)  # with every part that depends on a column

    def extract(self, prompt: str) -> str:
        """Return the column values that a prompt was rendered from, or the turns of a conversation, one a line.

        Raises `UserError` when it was not rendered from the template.
        """
        if self._separators:
            return "\n".join(piece.strip() for piece in self._separators.split(prompt) if piece.strip())
        for pieces in self._list_pieces():
            if (values := _split_prompt(pieces, prompt)) is not None:
                return "\n".join(values)
        _fail_foreign(prompt)

    def _list_pieces(self) -> Iterator[list[str]]:
        """Yield the fixed texts with every part that depends on a column, then with fewer of them."""
        yield self._pieces
        for present in islice(product((True, False), repeat=len(self._conditions)), 1, None):
            absent = {name for name, is_there in zip(self._conditions, present, strict=True) if not is_there}
            yield _pieces([segment for segment in self._segments if segment.get("if") not in absent])


def extract_input(template: Template, prompt: str) -> str:
    """Return what a prompt was rendered from, as `InputReader.extract` does for many."""
    return InputReader(template).extract(prompt)


def _split_prompt(pieces: list[str], prompt: str) -> list[str] | None:
    """Return the column values that a prompt was rendered from, or None when other segments made it."""
    first, *between = pieces
    if not prompt.startswith(first) or (not between and prompt != first):
        return None
    values: list[str] = []
    place = len(first)
    # By hand, for a regular expression tries every way to divide a prompt of many columns that does not fit.
    for text in between[:-1]:
        if (found := prompt.find(text, place)) < 0:
            return None
        values.append(prompt[place:found])
        place = found + len(text)
    for text in between[-1:]:
        if not prompt.endswith(text) or (end := len(prompt) - len(text)) < place:
            return None
        values.append(prompt[place:end])
    return values


def _pieces(segments: list[Segment]) -> list[str]:
    """Return the fixed texts of a prompt: before the first column, between each two, and behind the last."""
    pieces = [""]
    for segment in segments:
        if "column" in segment:
            pieces.append("")
        else:
            pieces[-1] += segment["text"]
    return pieces


def extract_target(template: Template, completion: str) -> str:
    """Return the target that a completion was rendered from.

    Raises `UserError` when it was not rendered from the template.
    """
    target = extract_answer(template, completion)
    if render_completion(template, target) != completion:
        _fail_foreign(completion)
    return target


def extract_answer(template: Template, text: str) -> str:
    """Return the answer in a completion, or in what a model says, without the template's own text.

    References and answers of every engine go through this, so that a model that says exactly the completion has
    answered with the target. Text before or behind the answer that a model leaves out is not missed. Without the end
    token the text was cut off, perhaps inside the text behind the answer.
    """
    before, behind, end = extract_fixed_texts(template)
    complete = text.endswith(end)
    answer = re.sub(rf"\A{_loose(before)}", "", text.removesuffix(end).strip())
    # No more of it than the answer has signs: a template may be somebody's, and end with a book.
    signs = [size for size, sign in enumerate(behind) if not sign.isspace()]
    longest = signs[len(answer)] if len(signs) > len(answer) else len(behind)
    for size in [len(behind)] if complete else range(longest, 0, -1):
        part = behind[:size]
        if found := re.search(rf"{_loose(part)}\Z", answer):
            return answer[: found.start()].strip()
    return answer.strip()


def extract_fixed_texts(template: Template) -> tuple[str, str, str]:
    """Return what a template writes before the answer and behind it, and the end token."""
    *segments, end = template["completion"]
    place = next(place for place, segment in enumerate(segments) if "column" in segment)
    before, behind = ("".join(one["text"] for one in part) for part in (segments[:place], segments[place + 1 :]))
    return before, behind, end["text"]


def find_word_places(word: str, text: str) -> list[int]:
    """Return where `word` stands in `text` as a word of its own, whatever its case.

    Without a regular expression: to compile one for each of thousands of labels takes minutes.
    """
    word, text = word.casefold(), text.casefold()
    places: list[int] = []
    place = text.find(word)
    while place >= 0:
        end = place + len(word)
        stands_alone = not (_is_word_sign(text[max(0, place - 1) : place]) or _is_word_sign(text[end : end + 1]))
        if stands_alone:
            places.append(place)
        place = text.find(word, max(end, place + 1) if stands_alone else place + 1)
    return places


def _is_word_sign(sign: str) -> bool:
    return sign.isalnum() or sign == "_"


def _loose(text: str) -> str:
    """Return a pattern of the text with any white space: tokenizers drop some beside a control token."""
    return r"\s*".join(re.escape(word) for word in text.split())


def _fail_foreign(text: str) -> NoReturn:
    fail(f"{text[:60]!r} does not follow the template", "rows and template are of different runs: make both again")
