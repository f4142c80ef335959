"""Compare what programs with ONNX Runtime GenAI's own tokenizer will read with what the model is trained on.

Here all ids come from the library `tokenizers`, also when the model is asked. Other programs may use `og.Tokenizer`,
another implementation that reads some texts otherwise, or cannot read a tokenizer at all. All rows are compared before
the training. A difference is no error: report and model card tell it.
"""

import argparse
import json
import multiprocessing
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import onnx

from lib.core.cli import build_parser, die_with_parent, extract_first_line, report_loaded, report_progress, run
from lib.core.files import read_jsonl, write_json
from lib.core.layout import SPLITS
from lib.core.limits import limit_memory
from lib.data.corpus import load_template
from lib.data.templates import Template
from lib.data.tokenizer import Tokenizer, find_first_difference, load_tokenizer
from lib.data.tokenizer_check import TokenizerCheck, describe_check
from lib.data.tokenizer_trial import LIMITS
from lib.data.trained_chat_template import CHAT_TEMPLATE, find_question, render_trained_chat_template
from lib.provenance.manifests import read_manifest

_EXAMPLES = 5
_START_SECONDS = 600  # libraries may lie on a slow disk
_ROW_SECONDS = 60


class UnreadableError(Exception):
    """`og.Tokenizer` cannot read a tokenizer or a text; the message says why."""


def main(args: argparse.Namespace) -> None:
    read_manifest(args.tokenizer)
    rows = [place for split in SPLITS for place in _places(split, getattr(args, split))]
    check = check_rows(args.tokenizer, load_template(args.template), rows)
    write_json(args.output, check)
    report_progress(f"check_tokenizer: {describe_check(check)}")


def _places(split: str, file: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for line, row in enumerate(read_jsonl(file), start=1):
        yield split, line, row


def check_rows(base: Path, template: Template, rows: list[tuple[str, int, dict[str, Any]]]) -> TokenizerCheck:
    """Compare the ids of every row. rows: split, line and row."""
    tokenizer = load_tokenizer(base)
    differences, at, asked_otherwise = [], "", 0
    is_question = "conversation" not in template  # else its own template ships, and rows hold what that has rendered
    try:
        with tempfile.TemporaryDirectory() as folder:
            model = write_empty_model(folder, base, render_trained_chat_template(template))
            with open_onnx_tokenizer(model) as theirs:
                report_loaded()
                for split, line, row in rows:
                    at = f" at line {line} of {split}.jsonl"
                    if difference := compare_row(tokenizer, theirs, row):
                        differences.append({"split": split, "line": line, **difference})
                    if is_question:
                        ids = theirs.ask(find_question(template, row["prompt"]))
                        asked_otherwise += ids != tokenizer.encode(row["prompt"])
    except UnreadableError as error:
        said = f"{error}{at}"
        return {"rows": len(rows), "differ": None, "error": said, "examples": [], "asked_otherwise": None}
    return {
        "rows": len(rows),
        "differ": len(differences),
        "error": None,
        "examples": differences[:_EXAMPLES],
        "asked_otherwise": asked_otherwise if is_question else None,
    }


def compare_row(tokenizer: Tokenizer, theirs: "OnnxTokenizer", row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the first token that differs: of the prompt, as a program asks, or of the prompt with its completion."""
    texts = [row["prompt"], row["prompt"] + row["completion"]]
    for expected, found in zip(map(tokenizer.encode, texts), theirs.encode(texts), strict=True):
        place = find_first_difference(expected, found)
        if place is not None:
            tokens = {"trained": tokenizer.describe(expected, place), "onnx": tokenizer.describe(found, place)}
            return {"position": place, **tokens}
    return None


@contextmanager
def open_onnx_tokenizer(model: Path) -> Iterator["OnnxTokenizer"]:
    """Start `og.Tokenizer` in a process of its own: a long text or a foreign regular expression can crash or block it.

    model: a folder that ONNX Runtime GenAI loads. Raises `UnreadableError` when it cannot read its tokenizer.
    """
    context = multiprocessing.get_context("spawn")
    pipe, other_end = context.Pipe()
    process = context.Process(target=_serve_ids, args=(model, other_end))
    process.start()
    other_end.close()
    try:
        tokenizer = OnnxTokenizer(process, pipe)
        tokenizer.receive(_START_SECONDS)
        yield tokenizer
    finally:
        process.kill()
        process.join()


class OnnxTokenizer(NamedTuple):
    """The process of `og.Tokenizer`, and the pipe to it."""

    process: BaseProcess
    pipe: Connection

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, nothing added. Raises `UnreadableError`."""
        self.pipe.send_bytes(json.dumps(texts).encode("ascii"))
        return self.receive(_ROW_SECONDS)

    def ask(self, question: str) -> list[int]:
        """Return the ids of a user's turn through the chat template. Raises `UnreadableError`."""
        self.pipe.send_bytes(json.dumps(question).encode("ascii"))
        return self.receive(_ROW_SECONDS)[0]

    def receive(self, seconds: int) -> list[list[int]]:
        """Wait for what the process sends. Raises `UnreadableError`."""
        if not self.pipe.poll(seconds):
            raise UnreadableError(f"it needs more than {seconds} s for a text")
        try:
            reply: list[list[int]] | str = json.loads(self.pipe.recv_bytes())  # no pickle: its data are foreign
        except EOFError:
            self.process.join()
            code = self.process.exitcode or 0
            if code >= 0:
                raise RuntimeError(f"the process of og.Tokenizer ended with {code}") from None
            raise UnreadableError(f"it crashes with {signal.Signals(-code).name}") from None
        if isinstance(reply, str):
            raise UnreadableError(reply)
        return reply


def _serve_ids(folder: Path, pipe: Connection) -> None:
    """Send once that the tokenizer is loaded, then ids; a string is an error.

    A list that comes is texts; a text is what a user says, to be rendered by the chat template first.
    """
    import onnxruntime_genai as og

    from lib.onnx.runtime import open_onnx

    die_with_parent()

    def send(reply: list[list[int]] | str) -> None:
        pipe.send_bytes(json.dumps(reply).encode("ascii"))

    model = open_onnx(folder, threads=1).model
    limit_memory(LIMITS.megabytes)
    try:
        tokenizer = og.Tokenizer(model)
        send([])
        while True:
            asked = json.loads(pipe.recv_bytes())
            texts = asked if isinstance(asked, list) else [_render_question(tokenizer, asked)]
            send([tokenizer.encode(text).tolist() for text in texts])
    except Exception as error:  # its C++ code raises what it likes
        send(extract_first_line(error))


def _render_question(tokenizer: Any, question: str) -> str:
    """Render a user's turn as a program does that knows only chats; empty where the chat template does not work."""
    messages = json.dumps([{"role": "user", "content": question}], ensure_ascii=False)
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True))
    except RuntimeError:
        return ""


def write_empty_model(path: str, base: Path, chat_template: str = "") -> Path:
    """Write a model without weights that ONNX Runtime GenAI loads, with the tokenizer of `base`; returns its folder.

    og.Tokenizer exists for a loaded model only. The builder puts the same two files beside a model.
    """
    folder = Path(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, folder / name)
    (folder / CHAT_TEMPLATE).write_text(chat_template, encoding="utf-8")
    ids = onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["batch", "tokens"])
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", "tokens"])
    cast = onnx.helper.make_node("Cast", ["input_ids"], ["logits"], to=onnx.TensorProto.FLOAT)
    graph = onnx.helper.make_graph([cast], "empty", [ids], [logits])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), folder / "model.onnx")
    names = {"inputs": {"input_ids": "input_ids"}, "outputs": {"logits": "logits"}}
    sizes = ("head_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
    decoder = {"filename": "model.onnx", "session_options": {}, **names, **dict.fromkeys(sizes, 0)}
    model = {"type": "llama", "context_length": 1, "vocab_size": 1, "eos_token_id": 0, "decoder": decoder}
    config = {"model": model, "search": {"max_length": 1}}
    (folder / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--tokenizer", type=Path, required=True, help="folder of the base model's tokenizer")
    for split in SPLITS:
        arguments.add_argument(f"--{split}", type=Path, required=True, help=f"corpus rows of {split}")
    arguments.add_argument("--template", type=Path, required=True, help="corpus/template.json")
    arguments.add_argument("--output", type=Path, required=True, help="verdict to write")
    run(arguments, main)
