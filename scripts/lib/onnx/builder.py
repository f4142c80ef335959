"""The builder of onnxruntime-genai: which architectures it knows, and one call of it.

What the locked version gets wrong is mended in `lib.onnx.builder_mends`.
"""

import ast
import contextlib
import importlib.util
import io
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from lib.core.cli import extract_first_line, fail, report_loaded
from lib.onnx.builder_mends import BUILT_AS, adjust_config, mend_builder
from lib.onnx.methods import CALIBRATED

_PROVIDERS = {"trt-rtx": "NvTensorRtRtx"}  # where the builder's command line has another name
_NOT_OPTIONS = ("precision", "execution_provider", "score", "calibration")
# Built in 4 bits only from experts that are quantized already (MXFP4), which cannot be trained.
_QUANTIZED_ALREADY = ("GptOssForCausalLM",)


@cache
def list_architectures() -> frozenset[str]:
    """Return the architectures that the installed builder names, read from its source: it has no list to ask for."""
    spec = importlib.util.find_spec("onnxruntime_genai")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "models" / "builder.py").read_text(encoding="utf-8")
    names = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return frozenset(
        name for name in names if isinstance(name, str) and name.isidentifier() and "For" in name and name[0].isupper()
    )


def name_builder() -> str:
    """Return name and version of the builder, as messages give it."""
    return f"onnxruntime-genai {version('onnxruntime-genai')}"


def check_architecture(config: Any, label: str | Path) -> None:
    """Raise `UserError` when the installed builder cannot build the architecture of a model (PreTrainedConfig)."""
    from lib.models.trial import HINT

    name = (config.architectures or ["?"])[0]
    what = f"{name_builder()} cannot build {name}"
    if getattr(config, "hidden_size_per_layer_input", None):
        fail(f"{what}, the text part of a multimodal model, with embeddings of each layer", HINT, at=label)
    if name in _QUANTIZED_ALREADY:
        fail(
            f"{what} in 4 bits but from weights that are quantized already, and these cannot be trained", HINT, at=label
        )
    if BUILT_AS.get(name, name) not in list_architectures():
        fail(what, HINT, at=label)


def build(merged: Path, folder: Path, variant: Mapping[str, Any], options: list[str]) -> None:
    """Run the builder in this process. Raises `UserError` when it refuses the variant."""
    try:
        run_builder(merged, folder, variant, options)
    except MemoryError:
        raise
    except Exception as error:  # the builder raises anything from KeyError to AssertionError
        refuse_variant(f"the builder refuses it: {type(error).__name__}: {extract_first_line(error)}", error)


def run_builder(merged: Path, folder: Path, variant: Mapping[str, Any], options: list[str]) -> None:
    """Run the builder in this process. Exceptions of the builder pass through unchanged."""
    said = io.StringIO()
    provider = variant["execution_provider"]
    provider = _PROVIDERS.get(provider, provider)
    with tempfile.TemporaryDirectory() as scratch, _quiet(said), _no_checkout():
        from onnxruntime_genai.models.builder import create_model, parse_extra_options

        where = ("", str(merged), str(folder), variant["precision"], provider, scratch)
        report_loaded()
        try:
            prepared = parse_extra_options(*where, options)
            adjust_config(prepared["hf_details"]["hf_config"])
            mend_builder()
            create_model(*where, **prepared)
        finally:
            sys.stdout.write(said.getvalue())


def refuse_variant(what: str, error: Exception | None = None) -> NoReturn:
    """Raise `UserError` for a build that its options have led to; the log holds the whole of the error."""
    if error is not None:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    fail(what, "change the options of this variant")


def has_tied_head(model: Path) -> bool:
    """Tell whether a model's embeddings are its vocabulary head; many files leave it to their class's default."""
    from transformers import AutoConfig

    return bool(AutoConfig.from_pretrained(model, trust_remote_code=False).tie_word_embeddings)


def list_builder_options(variant: Mapping[str, Any], tied: bool) -> list[str]:
    """Return the variant's options as the builder's KEY=VALUE texts; null leaves its default, or ours.

    tied: the base model's embeddings are its vocabulary head. The builder then keeps one weight for both, in a form
    that cannot be loaded when the head is asymmetric or in 8 bits, and refuses it in QDQ form; apart, both load
    (tests/onnx/test_variants.py tries every combination).
    """
    calibrated = variant.get("algo_config") in CALIBRATED
    values = {name: value for name, value in variant.items() if name not in _NOT_OPTIONS and value is not None}
    if calibrated:  # the weights come rounded; the options are for the head
        values = {name: value for name, value in values.items() if name not in ("algo_config", "is_symmetric")}
    apart = (
        values.get("is_symmetric") is False
        or "last_matmul:int8" in values.get("matmul_mixed_precision", "")
        or values.get("use_qdq")
    )
    if tied and apart and values.get("algo_config", "default") == "default":
        values.setdefault("shared_embeddings", False)
    # The head for every token of a prompt is a fifth of a small model's time to the first token, and for long prompts
    # gigabytes of logits that nobody reads.
    values.setdefault("prune_lm_head", True)
    # A cache as short as the window cannot be as short as a prompt: ONNX Runtime 1.32 refuses the room.
    values.setdefault("windowed_kv_cache", False)
    return ["hf_token=false", *(f"{name}={_option(name, value)}" for name, value in values.items())]


def _option(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ("/" if name == "op_types_to_quantize" else ",").join(value)
    return str(value)


@contextlib.contextmanager
def _quiet(said: io.StringIO) -> Iterator[None]:
    """Keep the builder's lines back: it logs one for each node and draws a bar for each weight."""
    level = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _no_checkout() -> Iterator[None]:
    """Hide the git checkout that the builder's package may lie in.

    The builder writes that checkout's commit into the model, and it is ours where the environment lies in the project:
    each commit would change the bytes. Without one it takes its own package's commit.
    """
    before = os.environ.get("GIT_DIR")
    os.environ["GIT_DIR"] = os.devnull
    try:
        yield
    finally:
        os.environ.pop("GIT_DIR")
        if before is not None:
            os.environ["GIT_DIR"] = before
