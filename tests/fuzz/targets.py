"""What is fuzzed: each function takes any bytes, and lets nothing pass but a refusal in one line.

A target is a reader of files that others made. To add one, add it to TARGETS with an example of what it reads.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from lib.azure.machine_learning import parse_data, parse_model  # noqa: E402
from lib.config.loader import check_yaml, load_config  # noqa: E402
from lib.core.cli import UserError  # noqa: E402
from lib.core.files import read_json, read_jsonl  # noqa: E402
from lib.core.paths import check_name, resolve_below  # noqa: E402
from lib.data.readers import read_rows  # noqa: E402
from lib.data.templates import parse_segments  # noqa: E402
from lib.olive.convert import convert_document  # noqa: E402
from lib.olive.document import read_document  # noqa: E402
from lib.provenance.lineage import read_lineage  # noqa: E402
from lib.provenance.manifests import read_manifest  # noqa: E402


class Target(NamedTuple):
    """call: what any bytes are given to. example: bytes that it reads, which a fuzzer changes."""

    call: Callable[[bytes], None]
    example: bytes


def with_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    """Return a call that writes its bytes to a file of that name in an empty folder, and has it read."""

    def call(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder, suppress(UserError):
            path = Path(folder) / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            read(path)
            assert {file.name for file in Path(folder).rglob("*") if file.is_file()} == {path.name}

    return call


def load_configuration(path: Path) -> None:
    import yaml

    check_yaml(path)
    load_config(yaml.safe_load(path.read_text(encoding="utf-8")), [path])


def admit_name(data: bytes) -> None:
    """Whatever is admitted lies below its folder."""
    name = data.decode("utf-8", "surrogateescape")
    with suppress(UserError):
        check_name(name, at="index")
        assert resolve_below(Path("/folder"), name, at="index").as_posix() == f"/folder/{name}"
        assert name.isprintable() or " " in name


def parse_address(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for parse in (parse_data, parse_model):
        with suppress(ValueError):  # what the configuration's model makes a line of
            parse(text)


def parse_template(data: bytes) -> None:
    with suppress(UserError, ValueError):
        parse_segments(data.decode("utf-8", "replace"))


def import_olive(path: Path) -> None:
    convert_document(read_document(path), path.name)


def read_all(path: Path) -> None:
    for _ in read_rows(path):
        pass


_JOB = {"rule": "a", "outputs": {"results/a": "0" * 64}, "sources": {}, "record": {"input": [], "input_checksums": {}}}
TARGETS = {
    "configuration": Target(
        with_file("config.yaml", load_configuration), (SCRIPTS.parent / "config.yaml").read_bytes()
    ),
    "rows.json": Target(with_file("rows.json", read_all), b'[{"text": "a", "tone": "b"}, {"text": 1}]'),
    "rows.jsonl": Target(with_file("rows.jsonl", read_all), b'{"text": "a"}\n{"text": null}\n'),
    "rows.csv": Target(with_file("rows.csv", read_all), b'text,tone\n"a ""b""",c\n'),
    "json": Target(with_file("a.json", read_json), b'{"a": [1, 2.5e3, "\\u00e9"]}'),
    "jsonl": Target(with_file("a.jsonl", lambda path: list(read_jsonl(path))), b'{"a": 1}\n{"b": 2}\n'),
    "lineage": Target(
        with_file("lineage.json", lambda path: read_lineage(path.parent)), json.dumps({"jobs": [_JOB]}).encode()
    ),
    "manifest": Target(
        with_file("a.manifest.json", lambda path: read_manifest(path.parent / "a")),
        b'{"files": {}, "size_bytes": 0, "inputs": {}, "settings": {}}',
    ),
    "olive": Target(
        with_file("olive.json", import_olive), (SCRIPTS.parent / "benchmarks/olive/seed.json").read_bytes()
    ),
    "template": Target(parse_template, b"### Text: {text}\n### Tone: {tone}"),
    "address": Target(parse_address, b"azureml://registries/azureml/models/Phi-3/versions/11"),
    "name": Target(admit_name, b"onnx/model.onnx.data"),
}
