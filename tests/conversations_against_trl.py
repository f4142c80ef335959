"""Which tokens of a conversation TRL's assistant-only loss trains, and which slmflow does: `make test-trl`.

Chat templates of five families as TRL ships them, each with a tiny tokenizer that has its control tokens. TRL takes its
own training variant of a template, with marks for transformers' assistant mask; slmflow takes the original. TRL also
trains white space around a turn and the end-of-text token behind the last one. No engine generates what comes behind
the end token of a turn, so slmflow leaves it out, and the comparison does so, too.
"""

import random
import sys
import tempfile
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from trl.chat_template_utils import get_training_chat_template

from lib.core.cli import UserError
from lib.data.conversations import render_messages
from lib.data.tokenizer import load_tokenizer
from lib.training.batching import IGNORED, encode_rows
from support.tiny_models import TEXTS, tiny_tokenizer

COUNT = 300  # conversations for each template


class Family(NamedTuple):
    """Control tokens of a family: the end of a turn first. has_calls: its template writes calls of tools."""

    tokens: list[str]
    bos: str | None = None
    has_system: bool = True
    has_calls: bool = False


FAMILIES = {
    "llama3": Family(["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"], "<|begin_of_text|>"),
    "qwen2_5": Family(["<|im_end|>", "<|im_start|>"], has_calls=True),
    "qwen3": Family(["<|im_end|>", "<|im_start|>"], has_calls=True),
    "gemma": Family(["<end_of_turn>", "<start_of_turn>"], "<bos>", has_system=False),
    "gemma3": Family(["<end_of_turn>", "<start_of_turn>"], "<bos>"),
    "phi3": Family(["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]),
    "phi3_5": Family(["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]),
}


def build_tokenizer(family: Family, template: str, folder: Path) -> Any:
    roles = {"eos_token": family.tokens[0], "pad_token": "<pad>", **({"bos_token": family.bos} if family.bos else {})}
    tokenizer = tiny_tokenizer(["<pad>", *family.tokens, *([family.bos] if family.bos else [])], roles, template)
    tokenizer.save_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids(family.tokens[0])
    (folder / "config.json").write_text(f'{{"eos_token_id": {end}}}')
    return tokenizer


def draw_conversation(draw: random.Random, family: Family) -> list[dict[str, Any]]:
    def text() -> str:
        words = " ".join(draw.choices(" ".join(TEXTS).split(), k=draw.randint(1, 8)))
        return draw.choice(["", "\n", "- ", '"']) + words + draw.choice(["", ".", "\n\n1. two", "  x"])

    turns = [{"role": "system", "content": text().strip()}] if family.has_system and draw.random() < 0.4 else []
    for _ in range(draw.randint(1, 4)):
        turns.append({"role": "user", "content": text().strip()})
        if family.has_calls and draw.random() < 0.3:
            call = {"name": "look", "arguments": {"at": text(), "n": draw.randint(0, 9)}}
            said = draw.choice(["", text().strip()])
            turns.append({"role": "assistant", "content": said, "tool_calls": [{"type": "function", "function": call}]})
            turns.append({"role": "tool", "content": text().strip()})
        turns.append({"role": "assistant", "content": text().strip()})
    return turns


def trim(ids: list[int], tokenizer: Any) -> list[int]:
    """Leave out white space before a turn, and what stands behind its end token."""
    end = tokenizer.eos_token_id
    ids = ids[: ids.index(end) + 1] if end in ids else ids
    while ids and not tokenizer.decode(ids[:1]).strip():
        ids = ids[1:]
    return ids


def mark_turns(ids: list[int], is_trained: list[bool]) -> list[list[int]]:
    """Return the runs of ids that are trained."""
    return [[id_ for id_, _ in run] for trained, run in groupby(zip(ids, is_trained, strict=True), key=lambda one: one[1])
            if trained]  # fmt: skip


def compare(name: str, family: Family, draw: random.Random) -> str:
    """Compare random conversations; returns what was found in a line. Raises AssertionError with the first difference."""
    template = (files("trl") / f"chat_templates/{name}.jinja").read_text()
    with tempfile.TemporaryDirectory() as folder:
        theirs = build_tokenizer(family, template, Path(folder))
        ours = load_tokenizer(Path(folder))
        conversations = [draw_conversation(draw, family) for _ in range(COUNT)]
        try:
            rendered, only_last = render_messages(ours, [(one, None) for one in conversations], only_last=False), False
        except UserError:
            rendered, only_last = render_messages(ours, [(one, None) for one in conversations], only_last=True), True
        training = get_training_chat_template(theirs)
        turns = 0
        for messages, one in zip(conversations, rendered, strict=True):
            assert not isinstance(one, str), (messages, one)
            row = {"id": "0" * 64, "prompt": one.prompt, "completion": one.completion, "spans": one.spans}
            (example,) = encode_rows(ours, [row], loss="completion", max_length=10_000)
            found = mark_turns(example["input_ids"], [label != IGNORED for label in example["labels"]])
            marked = theirs.apply_chat_template(
                messages, chat_template=training, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
            wanted = mark_turns(marked["input_ids"], [bool(mask) for mask in marked["assistant_masks"]])
            wanted = [trimmed for run in wanted if (trimmed := trim(run, theirs)) not in ([], [theirs.eos_token_id])]
            wanted = wanted[-1:] if only_last else wanted
            assert found == wanted, (name, messages, *map(theirs.decode, found), *map(theirs.decode, wanted))
            turns += len(found)
    kind = "the last turn of each, since the original renders earlier ones otherwise" if only_last else "all"
    return f"{name}: {COUNT} conversations, {turns} turns of the assistant ({kind}): the same ids"


if __name__ == "__main__":
    for name, family in FAMILIES.items():
        print(compare(name, family, random.Random(0)), file=sys.stderr)
