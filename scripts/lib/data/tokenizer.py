"""The tokenizer as every rule uses it: text to ids, nothing added, nothing formatted.

`prompt` and `completion` already hold their control tokens as text, so everything encodes with
`add_special_tokens=False`. The file `tokenizer.json` is read by the `tokenizers` library itself:
no torch, no transformers, a start in milliseconds. `fetch_model` has checked that it gives the ids
that transformers gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.core.cli import fail
from lib.core.forms import (
    INTEGER,
    TEXT,
    allow_any_of,
    allow_integer,
    allow_null,
    allow_open_object,
    check_form,
    list_of,
    read_form,
)
from lib.data.tokenizer_trial import check_tokenizer_file

if TYPE_CHECKING:  # who only names the type, as templates do, starts without the library
    import tokenizers

_TOKEN_ID = allow_integer(0, 2**32 - 1)
_END = allow_open_object(optional={"eos_token_id": allow_null(allow_any_of(_TOKEN_ID, list_of(_TOKEN_ID)))})


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer and the facts about it that templates need.

    bos: text of the token that the tokenizer puts before every text, or None if it wants none.
    end_ids: ids at which generation stops (generation_config's `eos_token_id`, else config's).
    eos: text of the tokenizer's end-of-sequence token.
    control: texts of all control tokens; a value that contains one cannot be carried as text.
    chat_template: Jinja source of the chat template, or None.
    variables: the special tokens' texts by role (`bos_token`, ...), as chat templates name them.
    """

    backend: "tokenizers.Tokenizer"
    bos: str | None
    eos: str
    end_ids: frozenset[int]
    control: tuple[str, ...]
    chat_template: str | None
    variables: dict[str, str]

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def locate(self, text: str) -> list[tuple[int, int]]:
        """Return the character range of each token of a text."""
        return self.backend.encode(text, add_special_tokens=False).offsets

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend.decode(ids, skip_special_tokens=False)

    def token(self, id_: int) -> str:
        """Return text of one token as the vocabulary writes it (control tokens are their own text)."""
        text = self.backend.id_to_token(id_)
        if text is None:
            fail(f"the tokenizer has no token {id_}", "the model and its tokenizer do not belong together")
        return text

    def describe(self, ids: Sequence[int], place: int) -> str:
        """Return id and text of one of `ids` for a message, or that they end before it."""
        return f"{ids[place]} {self.backend.id_to_token(ids[place])!r}" if place < len(ids) else "its end"


def is_cut_between_tokens(tokenizer: Tokenizer, text: str, spans: Sequence[Sequence[int]]) -> bool:
    """Return whether character ranges of a text begin and end between tokens."""
    offsets = tokenizer.locate(text)
    starts, ends = {start for start, _ in offsets}, {end for _, end in offsets}
    return all(start in starts and end in ends for start, end in spans)


def load_tokenizer(model: Path, texts: Sequence[str] = ()) -> Tokenizer:
    """Read the tokenizer of a model folder (`tokenizer.json`, `tokenizer_config.json`, configs).

    A child process reads it first, and hard texts and the first of `texts` with it.
    Raises `UserError` when the folder has no `tokenizer.json`, one that does harm, or no end-of-sequence token.
    """
    import tokenizers

    source = model / "tokenizer.json"
    if not source.is_file():
        fail("the base model has no tokenizer.json", "choose a model that ships its tokenizer", at=model)
    check_tokenizer_file(source, model, texts)
    backend = tokenizers.Tokenizer.from_file(str(source))
    backend.no_padding()
    backend.no_truncation()
    file = model / "tokenizer_config.json"
    config = read_form(file, allow_open_object()) if file.is_file() else {}
    added = backend.get_added_tokens_decoder().values()
    variables = {
        key: name for key, value in config.items() if key.endswith("_token") and (name := _text(value)) is not None
    }
    end_ids = read_end_token_ids(model)
    eos = variables.get("eos_token") or backend.id_to_token(min(end_ids)) or ""
    return Tokenizer(
        backend=backend,
        bos=_find_added_bos(backend, variables.get("bos_token")),
        eos=eos,
        end_ids=end_ids,
        control=tuple(sorted({token.content for token in added if token.special})),
        chat_template=_chat_template(model, config),
        variables={**variables, "eos_token": eos},
    )


def read_end_token_ids(model: Path) -> frozenset[int]:
    """Return ids that end a text: generation_config.json decides, config.json where it is silent.

    An ONNX folder has genai_config.json instead.

    Raises `UserError` when neither names one: such a model never stops.
    """
    for name in ("generation_config.json", "config.json", "genai_config.json"):
        if (model / name).is_file():
            nested = name == "genai_config.json"
            config = read_form(model / name, allow_open_object({"model": _END}) if nested else _END)
            value = (config["model"] if nested else config).get("eos_token_id")
            if value not in (None, []):
                return frozenset([value] if isinstance(value, int) else value)
    fail("no eos_token_id in generation_config.json or config.json", "the model would never stop: add it", at=model)


def read_max_tokens(model: Path) -> int:
    """Return how many tokens a model reads at most, by its config.json; behind a sliding window it goes on reading.

    Of two contexts (longrope: Phi-3.5, Phi-4-mini) the shorter one counts: in a batch with a longer text transformers
    gives all texts the frequencies of the longer context, and the same row would get other scores. Ministral 3 scales
    its queries in the longer one, which no built model does.
    """
    limits = dict.fromkeys(("max_position_embeddings", "original_max_position_embeddings"), allow_null(INTEGER))
    scaling = allow_open_object(optional=limits)
    form = allow_open_object(
        optional={**limits, "rope_parameters": allow_null(scaling), "rope_scaling": allow_null(scaling)}
    )
    config = read_form(model / "config.json", form)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaled = rope if rope.get("llama_4_scaling_beta") else {}
    return min(part.get(name) or 1 << 30 for part in (config, scaled) for name in limits)


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """Return ids of prompt and completion, the completion encoded behind its prompt.

    Raises `UserError` when `ids(prompt)` is not a prefix of `ids(prompt + completion)`: the first
    token of the answer in training would then never occur when the model is asked.
    """
    prompts = tokenizer.encode_batch([prompt for prompt, _ in pairs])
    wholes = tokenizer.encode_batch([prompt + completion for prompt, completion in pairs])
    return [
        (head, encode_completion(*pair, head, whole)) for pair, head, whole in zip(pairs, prompts, wholes, strict=True)
    ]


def encode_completion(prompt: str, completion: str, head: list[int], whole: list[int]) -> list[int]:
    """Return the ids of a completion behind its prompt. Raises `UserError` as `encode_pairs`.

    head, whole: the ids of the prompt, and of prompt and completion.
    """
    if whole[: len(head)] != head:
        fail(
            f"the tokenizer joins the end of the prompt {prompt[-20:]!r} with the start of the answer"
            f" {completion[:20]!r}",
            "end the prompt part of corpus.text_template with a newline or a control token, not with a space",
        )
    return whole[len(head) :]


def find_first_difference(expected: Sequence[int], found: Sequence[int]) -> int | None:
    """Return the place of the first id that differs, None where all are equal."""
    if list(expected) == list(found):
        return None
    pairs = enumerate(zip(expected, found, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(expected), len(found)))


def find_shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Number of ids that all rows begin with; each row keeps at least one id of its own."""
    most = max(0, min(map(len, rows)) - 1)
    first = rows[0]
    return next((place for place in range(most) if any(ids[place] != first[place] for ids in rows)), most)


def _text(value: Any) -> str | None:
    """Return a special token in tokenizer_config.json is a string or an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _find_added_bos(backend: "tokenizers.Tokenizer", bos: str | None) -> str | None:
    ids = backend.encode("a", add_special_tokens=True).ids
    return bos if bos is not None and ids and ids[0] == backend.token_to_id(bos) else None


def _chat_template(model: Path, config: dict[str, Any]) -> str | None:
    path = model / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            fail("not UTF-8 text", "save it again", at=path)
    named = list_of(allow_open_object(optional={"template": allow_null(TEXT)}))
    form = allow_open_object(optional={"chat_template": allow_null(allow_any_of(TEXT, named))})
    template = check_form(config, form, at=model / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several named templates: the one called default
        found: dict[str, Any] = next((item for item in template if item.get("name") == "default"), {})
        template = found.get("template")
    return template
