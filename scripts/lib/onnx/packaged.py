"""Packaged models from strangers: everything in the folder is checked before ONNX Runtime or a tokenizer reads it.

`genai_config.json` is code in disguise: ONNX Runtime GenAI loads the library that `custom_ops_library` names, hands
unknown session options on to ONNX Runtime, and fills in names of layers as C's printf does. So it may hold what the
builder of onnxruntime-genai 0.18.0 writes with the options that slmflow gives it (`make_genai_config` in
builders/base.py and what subclasses change), what `build_onnx` and `check_tokenizer` write, and nothing else.

Where the ONNX file has its weights is left to ONNX Runtime, which refuses absolute paths, `..` and links that lead out
of the folder (tests/onnx/test_packaged.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lib.core.cli import UserError, extract_first_line, fail
from lib.core.forms import (
    BOOLEAN,
    NUMBER,
    TEXT,
    Form,
    allow_any_of,
    allow_integer,
    allow_matching,
    allow_null,
    allow_object,
    allow_object_of,
    allow_one_of,
    allow_open_object,
    list_of,
    read_form,
)
from lib.core.paths import check_bare_name, check_plain_files
from lib.data.templates import UNSURE, list_columns
from lib.data.tokenizer import Tokenizer, load_tokenizer

GENAI_CONFIG = "genai_config.json"
TEMPLATE = "template.json"
_AGAIN = "a packaged model has only what slmflow writes into it: package it again"

_MOST_TOKENIZER_BYTES = 256 << 20  # the largest that are known have 35 MB
_MOST_LAYERS = 10_000
_MOST_HEADS = 1 << 20  # and sizes of a head
_MOST_BEAMS = 32  # more, ONNX Runtime GenAI refuses
_LAYER_NAMES = allow_matching(r"[\w./]{0,100}%d[\w./]{0,100}")  # filled in with printf
_NAME = allow_matching(r"[\w./]{1,200}")
_SWITCH = allow_one_of("0", "1")
_OFFSET = allow_matching(r"\d{1,10}")


def _file_name(value: Any, name: str) -> str | None:
    """Allow the name of a file beside genai_config.json."""
    try:
        check_bare_name(value, at=name)
    except UserError as error:
        return str(error).partition(";")[0]
    return None


_PROVIDERS: dict[str, Form] = {
    "cuda": allow_object(optional={"enable_cuda_graph": _SWITCH}),
    "dml": allow_object(optional={"enable_graph_capture": _SWITCH}),
    "webgpu": allow_object(
        optional={
            "enableGraphCapture": _SWITCH,
            "validationMode": allow_one_of("disabled", "basic"),
            "multiRotaryCacheConcatOffset": _OFFSET,
        }
    ),
    "NvTensorRtRtx": allow_object(optional={"enable_cuda_graph": _SWITCH, "multi_rotary_cache_concat_offset": _OFFSET}),
}
_SESSION_OPTIONS = allow_object(
    optional={
        "log_id": allow_matching(r"[\w.-]{0,100}"),
        "provider_options": list_of(allow_object(optional=_PROVIDERS)),
        "intra_op_num_threads": allow_integer(1, 4096),
        # Three that the builder writes for some CUDA graphs; all others go unread to ONNX Runtime.
        "ep.cuda.fpa_intb_gemm": _SWITCH,
        "optimization.disable_specified_optimizers": allow_one_of("MatMulNBitsFusion"),
        "session.use_device_allocator_for_initializers": _SWITCH,
    }
)
_SLIDING_WINDOW = allow_object(
    {"window_size": allow_integer(1)},
    {
        "slide_key_value_cache": BOOLEAN,
        "slide_inputs": BOOLEAN,
        "layers": list_of(allow_integer(0, _MOST_LAYERS)),
        "cache_slack": allow_integer(),
    },
)
_PLAIN_TENSORS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "logits")
_STATES = ("key", "value", "key_scale", "value_scale", "conv", "recurrent")
_INPUTS = allow_object(
    optional=dict.fromkeys(_PLAIN_TENSORS, _NAME) | {f"past_{one}_names": _LAYER_NAMES for one in _STATES}
)
_OUTPUTS = allow_object(
    {"logits": _NAME},
    {f"present_{one}_names": _LAYER_NAMES for one in _STATES},
)
_DECODER = allow_object(
    {
        "session_options": _SESSION_OPTIONS,
        "filename": _file_name,
        "inputs": _INPUTS,
        "outputs": _OUTPUTS,
        "head_size": allow_integer(0, _MOST_HEADS),
        "hidden_size": allow_integer(),
        "num_attention_heads": allow_integer(0, _MOST_HEADS),
        "num_hidden_layers": allow_integer(0, _MOST_LAYERS),
        "num_key_value_heads": allow_integer(0, _MOST_HEADS),
    },
    {
        "sliding_window": _SLIDING_WINDOW,
        "layer_types": list_of(allow_matching(r"[a-z_]{1,50}")),
        "conv_cache_size": allow_integer(),
    },
)
_TOKEN_ID = allow_integer()
_TOKEN_IDS = allow_any_of(_TOKEN_ID, list_of(_TOKEN_ID, least=1))
_OTHER_TOKENS = ("bot_token_id", "eot_token_id", "bor_token_id", "eor_token_id", "image_token_id", "video_token_id")
_SEARCH = allow_object(
    {"max_length": allow_integer(1)},
    {
        "do_sample": BOOLEAN,
        "early_stopping": BOOLEAN,
        "past_present_share_buffer": BOOLEAN,
        "diversity_penalty": NUMBER,
        "length_penalty": NUMBER,
        "repetition_penalty": NUMBER,
        "temperature": NUMBER,
        "top_p": NUMBER,
        "top_k": allow_integer(),
        "min_length": allow_integer(),
        "no_repeat_ngram_size": allow_integer(),
        "num_beams": allow_integer(1, _MOST_BEAMS),
        "num_return_sequences": allow_integer(1, _MOST_BEAMS),
    },
)
_GENAI_CONFIG = allow_object(
    {
        "model": allow_object(
            {
                "type": allow_matching(r"[a-z0-9_-]{1,100}"),
                "context_length": allow_integer(1),
                "vocab_size": allow_integer(1),
                "eos_token_id": _TOKEN_IDS,
                "decoder": _DECODER,
            },
            {"bos_token_id": _TOKEN_ID, "pad_token_id": _TOKEN_ID} | dict.fromkeys(_OTHER_TOKENS, _TOKEN_ID),
        ),
        "search": _SEARCH,
    }
)

_PART = {"if": TEXT}  # the column that it depends on
_SEGMENTS = list_of(allow_any_of(allow_object({"text": TEXT}, _PART), allow_object({"column": TEXT}, _PART)), least=1)
_NAMES = list_of(TEXT, least=1)
_TEMPLATE = allow_object(
    {
        "task": allow_one_of("classification", "generation"),
        "target": TEXT,
        "columns": _NAMES,
        "prompt": _SEGMENTS,
        "completion": _SEGMENTS,
        "labels": allow_null(_NAMES),
        "max_length": allow_integer(1),
        "truncation": allow_one_of("reject", "left", "right"),
    },
    {
        "optional_columns": list_of(TEXT),
        "temperature": NUMBER,
        "decision": allow_object(optional={"precision": NUMBER, "coverage": NUMBER}),
        "threshold": allow_null(NUMBER),
        "coverage": NUMBER,
        "separators": list_of(TEXT),
        "conversation": allow_object(
            {"column": TEXT, "template": TEXT, "variables": allow_object_of(TEXT), "bos": TEXT},
        ),
    },
)
_CHAT_TEMPLATE = allow_null(allow_any_of(TEXT, list_of(allow_object({"name": TEXT, "template": TEXT}))))
_TOKENIZER_CONFIG = allow_open_object(optional={"chat_template": _CHAT_TEMPLATE})


def read_genai_config(folder: Path) -> dict[str, Any]:
    """Return genai_config.json of a model folder, whose files are plain and whose keys are all known.

    Everything that opens an ONNX model takes its configuration from here. Raises `UserError`.
    """
    if not (folder / GENAI_CONFIG).is_file():
        fail(
            f"not a model folder: it has no {GENAI_CONFIG}",
            "name the folder that build_onnx or package_model wrote",
            at=folder,
        )
    check_plain_files(folder)
    return read_form(folder / GENAI_CONFIG, _GENAI_CONFIG, _AGAIN, strict=True)


def read_packaged_template(folder: Path) -> dict[str, Any]:
    """Return template.json of a packaged model, whose parts belong together. Raises `UserError`."""
    file = folder / TEMPLATE
    if not file.is_file():
        fail(f"not a packaged model: it has no {TEMPLATE}", "name the folder that package_model wrote", at=folder)
    check_plain_files(folder)
    template = read_form(file, _TEMPLATE, _AGAIN, strict=True)
    if fault := _template_fault(template):
        fail(fault, _AGAIN, at=file)
    return template


def _template_fault(template: dict[str, Any]) -> str | None:
    """Return what does not go together in a template, or None."""
    columns, labels = template["columns"], template["labels"]
    *segments, end = template["completion"]
    if sorted(columns) != sorted(list_columns(template["prompt"])):
        return "columns must be those of the prompt, each once"
    if "text" not in end or [one["column"] for one in segments if "column" in one] != [template["target"]]:
        return "completion must have the target once and end with a text"
    if (template["task"] == "classification") != (labels is not None):
        return "labels belong to classification, and to nothing else"
    if labels is not None and (len(set(labels)) < len(labels) or "" in labels):
        return "labels must differ, and none may be empty"
    if not 0.001 < template.get("temperature", 1) < 1000:
        return "temperature must be a number around 1"
    if "threshold" in template and (labels is None or UNSURE in labels):
        return f"a threshold belongs to labels of which none is {UNSURE!r}"
    return None


@contextmanager
def explain_tokenizer_errors(folder: Path) -> Iterator[None]:
    """Turn what the library tokenizers raises for a text into `UserError`: Exception itself, and panics of Rust."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        fail(f"its tokenizer cannot read a text: {extract_first_line(error)}", _AGAIN, at=folder)


def load_packaged_tokenizer(folder: Path, texts: Sequence[str] = ()) -> Tokenizer:
    """Return the tokenizer in a packaged model's folder, which a child has tried on the first of `texts`.

    Raises `UserError` for all that keeps it from being read.
    """
    read_genai_config(folder)  # end tokens are read from it
    if (file := folder / "tokenizer_config.json").exists():
        read_form(file, _TOKENIZER_CONFIG, _AGAIN, strict=True)
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "config.json"):
        if (folder / name).exists() and (folder / name).stat().st_size > _MOST_TOKENIZER_BYTES:
            fail("too large for a file of its kind", _AGAIN, at=folder / name)
    try:
        return load_tokenizer(folder, texts)
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises Exception itself, and the panics of its Rust code
        fail(f"its tokenizer cannot be read: {extract_first_line(error)}", _AGAIN, at=folder)
