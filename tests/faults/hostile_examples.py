"""Hostile files by hand: what once hurt, and what is known to hurt others; and pieces of text that the seed puts anywhere."""

import csv
import gzip
import io
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.finished import ADAPTER, MARK
from faults.mutations import OUTSIDE
from support.gguf_files import write_gguf
from support.workspaces import BASE

Example = Callable[[Path, dict[str, str]], object]
MODEL = "results/model"

PIECES: dict[str, list[Any]] = {
    "configuration": [
        "\0", "? [a, b]\n: c\n", "&a [*a]", "[" * 500, "\ud800", "!!python/object/apply:os.system ['touch OWNED']", "\t", "%",
        "<<: *a", "1" * 5000, "results: ..\n", "results: /\n", "results: -rf\n", "{{ x }}", "- ", ": ", "'", '"', "# ", "~",
        "token: ghp_abcdefghijklmnopqrstuvwxyz0123456789\n", "https://user:password@host/x", "\x1b[31m", "!!binary x", "|", ">",
    ],
    "rows": [
        "\0", '"', "'", ",", "\t", "{", "}", "[" * 990, "]", "\\", "\\u0000", "\\ud800", "\ufeff", "1" * 5000, "NaN", "1e999",
        "\u2028", "\r", "\x1b[31m", "<|im_end|>", "=HYPERLINK(1)", "x" * 200_000, '"a": 1, "a": 2, ', "null", "\x85",
    ],
    "templates": [
        "{{ 'a' * 10 ** 10 }}", "{% for a in range(10**9) %}{% for b in range(10**9) %}x{% endfor %}{% endfor %}",
        "{{ 1 / 0 }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ lipsum(n=10**7) }}", "{% include '/etc/passwd' %}",
        "{{ self._TemplateReference__context }}", "{{ 'x'.center(999999999) }}", "{{ '%999999999d' % 1 }}", "{% if %}", "{{",
        "{{ 2 ** (2 ** 30) }}", "{{ messages[99].content }}", "{{ undefined.a.b }}", "{{ raise_exception('no') }}", "\0", "{%",
        "{{ cycler.__init__.__globals__.os.popen('touch OWNED').read() }}", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{{ messages | tojson | length }}", "{{ strftime_now('%Y') }}", "{% set x = namespace(a=1) %}", "{# ", "<|im_end|>",
        "{{ range(10**12) | list }}", "{{ 'a' | int }}", "{{ dict(a=1).pop('b') }}", "{{ [].index(3) }}",
    ],
    "addresses": [
        ("data", "source", "azureml://datastores/store/paths/rows.jsonl"),
        ("data", "source", "azureml://subscriptions/00000000-0000-0000-0000-000000000000/resourcegroups/g/workspaces/w/datastores/s/paths/a/rows.csv"),
        ("base_model", "source", "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/11"),
        ("base_model", "source", "azureml://models/own/versions/3"),
        ("base_model", "hub", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("data", "hub", "cardiffnlp/tweet_eval"),
    ],
    "in addresses": [
        "..", "/", "//", "\0", "\n", "%00", "%2e%2e", f"?sig={MARK}", f"user:{MARK}@", ":", "AZUREML://", "{x}", "$(touch OWNED)", " ", "#",
        "\\", "é", "\ud83d", "x" * 3000, "[", "*", "azureml://", "../../outside/pwned", "",
    ],
}  # fmt: skip


def write_rows_as(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows in the format of the file's name."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return
    if name.endswith((".csv", ".tsv")):
        file = io.StringIO()
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if name.endswith(".tsv") else ",")
        writer.writeheader()
        writer.writerows(rows)
        text = file.getvalue()
    else:
        text = json.dumps(rows, indent=0) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode())


def write_gguf_model(model: Path, path: Path) -> None:
    write_gguf(model, path)


# Makers of examples


def text(name: str, content: str | bytes) -> Example:
    """A file with this content."""

    def example(workspace: Path, note: dict[str, str]) -> None:
        path = workspace / name
        if path.is_file():
            path.unlink()
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        note["rows"] = name

    return example


def edit(name: str, change: Callable[[Any], object]) -> Example:
    """A JSON file with one thing changed."""

    def example(workspace: Path, note: dict[str, str]) -> None:
        path = workspace / name
        value = json.loads(path.read_bytes())
        change(value)
        path.unlink()
        path.write_text(json.dumps(value), encoding="utf-8")

    return example


def link(name: str, target: str) -> Example:
    def example(workspace: Path, note: dict[str, str]) -> None:
        (workspace / name).unlink(missing_ok=True)
        (workspace / name).symlink_to(target)

    return example


def pipe(name: str) -> Example:
    def example(workspace: Path, note: dict[str, str]) -> None:
        (workspace / name).unlink(missing_ok=True)
        os.mkfifo(workspace / name)

    return example


def folder(name: str) -> Example:
    def example(workspace: Path, note: dict[str, str]) -> None:
        (workspace / name).unlink(missing_ok=True)
        (workspace / name).mkdir()
        note["rows"] = name

    return example


def index_that_leads_out(workspace: Path, note: dict[str, str]) -> None:
    """Hide a valid safetensors file beside the model's folder, and have the index name it."""
    base = workspace / BASE
    (workspace / "pwned.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    (base / "model.safetensors").rename(base / "model-00001-of-00001.safetensors")
    weight_map = {"model.embed_tokens.weight": "../pwned.safetensors", "x": OUTSIDE}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def gzip_bomb(workspace: Path, note: dict[str, str]) -> None:
    (workspace / "rows.jsonl.gz").write_bytes(gzip.compress(bytes(300_000_000), 1, mtime=0))
    note["rows"] = "rows.jsonl.gz"


def parquet_bomb(workspace: Path, note: dict[str, str]) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"phrase": ["x" * 400_000_000], "tone": ["calm"]})
    parquet.write_table(table, workspace / "rows.parquet", compression="zstd")
    note["rows"] = "rows.parquet"


def foreign_tensor_names(workspace: Path, note: dict[str, str]) -> None:
    """Name every tensor as torch.compile does."""
    path = workspace / BASE / "model.safetensors"
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = {f"_orig_mod.{name}": value for name, value in json.loads(whole[8 : 8 + length]).items() if name[0] != "_"}
    data = json.dumps(header).encode()
    path.unlink()
    path.write_bytes(struct.pack("<Q", len(data)) + data + whole[8 + length :])


def no_package_files(workspace: Path, note: dict[str, str]) -> None:
    shutil.rmtree(workspace / MODEL)
    (workspace / MODEL).mkdir()


def set_at(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(root: Any) -> None:
        for step in path[:-1]:
            root = root[step]
        root[path[-1]] = value

    return change


def replace_all(**values: Any) -> Callable[[Any], None]:
    return lambda root: root.update(values)


_ALIASES = "a: &a [x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
_NORMALIZERS = {
    "type": "Sequence",
    "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 45,
}
_NESTED_STARS = {"type": "Split", "pattern": {"Regex": "(a*)*b(x+x+)+y"}, "behavior": "Isolated", "invert": False}
_GENAI, _SESSION = f"{MODEL}/genai_config.json", ("model", "decoder", "session_options")
_GGUF_LOOP = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 0, 2**62)
_CONFIG = f"{ADAPTER}/adapter_config.json"
_VAULTS = [
    "https://v.vault.azure.net/secrets/../x",
    "hf_0123456789abcdefghij",
    "http://v.vault.azure.net/secrets/n",
    "\0",
]
_RESULTS = [".", "..", "/", "-rf", "data", "a\0b", "x" * 5000, "results/../..", "~"]

EXAMPLES: dict[str, list[Example]] = {
    "configuration": [
        *(text("config.yaml", content) for content in [
            "a: \0", "? [a, b]\n: c\n", "a: &a [*a]\n", "a: " + "[" * 500, "a: '\ud800'", _ALIASES, "", "[]", "1" * 5000,
            "!!python/object/apply:os.system ['touch OWNED']", "a: !!python/name:os.system\n", b"\xff\xfe\0", "a: 1\na: 2\n",
        ]),
        *(edit("config.yaml", replace_all(results=value)) for value in _RESULTS),
        folder("config.yaml"),
    ],
    "addresses": [edit("config.yaml", replace_all(vault=value)) for value in _VAULTS],
    "rows": [
        text("rows.jsonl", '{"a":' * 988 + "1" + "}" * 988 + "\n"), text("rows.json", "[" * 100_000),
        text("rows.jsonl", '{"phrase": ' + "1" * 5000 + "}\n"), text("rows.json", '[{"phrase": "\\ud800", "tone": "x"}]'),
        text("rows.json", "[{" + ", ".join(f'"k{number}": 1' for number in range(60_000)) + ', "k1": 2}]'),
        text("rows.csv", 'phrase,tone\n"' + "x" * 2_000_000), text("rows.csv", "phrase,tone\na\0b,c\n"), gzip_bomb,
        parquet_bomb, folder("rows.json"), text("rows.parquet", b"PAR1" + bytes(100) + b"PAR1"), text("rows.tsv", "a\tb\n" * 3),
    ],
    "templates": [text("results/base/chat_template.jinja", str(piece)) for piece in PIECES["templates"][:17]],
    "tokenizers": [
        edit(f"{BASE}/tokenizer.json", replace_all(normalizer=_NORMALIZERS)),
        edit(f"{BASE}/tokenizer.json", replace_all(normalizer={"type": "Prepend", "prepend": "x" * 10_000_000})),
        edit(f"{BASE}/tokenizer.json", replace_all(pre_tokenizer=_NESTED_STARS)),
        edit(f"{BASE}/tokenizer.json", set_at("added_tokens", 0, "id", value=2**32 - 1)),
        edit(f"{BASE}/tokenizer.json", set_at("added_tokens", 1, "id", value=0)),
        text(f"{BASE}/config.json", "[]"), text(f"{BASE}/generation_config.json", "[]"), text(f"{BASE}/tokenizer.json", "{}"),
        link(f"{BASE}/generation_config.json", "/etc/passwd"), pipe(f"{BASE}/generation_config.json"),
        edit(f"{BASE}/tokenizer_config.json", replace_all(auto_map={"AutoTokenizer": ["evil.py", None]})),
    ],
    "safetensors": [
        index_that_leads_out, foreign_tensor_names, text(f"{BASE}/model.safetensors", b""),
        text(f"{BASE}/model.safetensors", struct.pack("<Q", 2**63) + b"{}"), text(f"{BASE}/model.safetensors.index.json", "[]"),
        text(f"{BASE}/model.safetensors.index.json", '{"weight_map": {"x": 3}}'), pipe(f"{BASE}/model.safetensors"),
        link(f"{BASE}/model.safetensors", "/etc/passwd"), text(f"{BASE}/pytorch_model.bin", b"\x80\x04cos\nsystem\n."),
    ],
    "GGUF": [
        text("model.gguf", _GGUF_LOOP), text("model.gguf", b"GGUF"), text("model.gguf", b"GGUF" + b"\xff" * 100),
        text("model.gguf", b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0)), text("model.gguf", b""), pipe("model.gguf"),
    ],
    "adapters": [
        *(edit(_CONFIG, replace_all(target_modules=value)) for value in ("(a*)*b", ".*(x+x+)+y", [], ["../x"], 3, None)),
        *(edit(_CONFIG, replace_all(init_lora_weights=value)) for value in ("pissa", "olora", "loftq", "corda", "mica", 3)),
        *(edit(_CONFIG, replace_all(**{key: value})) for key, value in [
            ("r", 10**30), ("r", 0), ("lora_alpha", "x"), ("rank_pattern", {"(a*)*b": 3}), ("exclude_modules", "(a*)*b"),
            ("peft_type", "IA3"), ("auto_mapping", {"parent_library": "evil"}), ("base_model_name_or_path", OUTSIDE),
        ]),
        text(_CONFIG, "[]"), link(f"{ADAPTER}/adapter_model.safetensors", "/etc/passwd"),
    ],
    "manifests": [
        *(edit(f"results/{name}.manifest.json", set_at("files", OUTSIDE, value="0" * 64)) for name in ("assembled", "base", "selected")),
        text("results/assembled.manifest.json", "[]"), text("results/assembled.manifest.json", "[" * 5000),
        text("results/base.manifest.json", '{"files": 3}'), link("results/assembled.manifest.json", "/etc/passwd"),
    ],
    "lineage": [
        *(text("results/lineage.json", content) for content in [
            "[]", "{}", '{"jobs": 3}', '{"jobs": [3]}', '{"jobs": [{"outputs": 3}]}', '{"jobs": [{"outputs": {"a": 1}}]}', "[" * 5000,
            '{"jobs": [{"outputs": {"a": "b"}, "record": null, "rule": [], "sources": 3}]}', "", b"\xff",
        ]),
        edit("results/lineage.json", set_at("jobs", 0, "outputs", OUTSIDE, value="0" * 64)),
    ],
    "packaged models": [
        edit(_GENAI, set_at(*_SESSION, "custom_ops_library", value="evil.so")),
        edit(_GENAI, set_at(*_SESSION, "enable_profiling", value=OUTSIDE)),
        edit(_GENAI, set_at(*_SESSION, "optimized_model_filepath", value=OUTSIDE)),
        edit(_GENAI, set_at(*_SESSION, "enable_profiling", value="pwned")),
        edit(_GENAI, set_at("model", "decoder", "filename", value="../../../outside/model.onnx")),
        edit(_GENAI, set_at("model", "decoder", "filename", value="/etc/passwd")),
        text(_GENAI, "[]"), text(f"{MODEL}/template.json", "[]"), text(f"{MODEL}/template.json", '{"columns": 3}'),
        link(f"{MODEL}/model.onnx", "/etc/passwd"), link(f"{MODEL}/tokenizer.json", "/etc/passwd"), pipe(f"{MODEL}/template.json"),
        edit(f"{MODEL}/template.json", replace_all(labels=["\x1b[31mred", "=HYPERLINK(1)"])), no_package_files,
    ],
}  # fmt: skip
