"""Read a configuration and say what is wrong with it: file, line, what to do.

The model is `lib.config`; this is how its errors reach the person who wrote the file.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lib.cli import fail
from lib.config import Config
from lib.variants import Section, Variant

# What people who come from Olive's recipe, peft or transformers type, and how it is called here.
_OTHER_NAMES = {
    "lora_r": "finetune.r",
    "lora_alpha": "finetune.alpha",
    "lora_dropout": "finetune.dropout",
    "use_dora": "finetune.method: dora",
    "use_rslora": "finetune.method: rslora",
    "load_in_4bit": "finetune.method: qlora",
    "bnb_4bit_quant_type": "finetune.quant_type",
    "bnb_4bit_use_double_quant": "finetune.double_quant",
    "compute_dtype": "finetune.dtype",
    "bnb_4bit_compute_dtype": "finetune.dtype",
    "num_train_epochs": "finetune.epochs",
    "warmup_ratio": "finetune.warmup_share",
    "strategy": "finetune.corpus_strategy",
    "max_seq_len": "finetune.source_max_len",
    "eval_dataset_size": "split.validation",
    "evaluation_strategy": "finetune.eval_steps",
    "data_files": "data.files",
    "text_cols": "corpus.text_template",
    "int4_block_size": "block_size",
    "int4_accuracy_level": "accuracy_level",
    "int4_is_symmetric": "is_symmetric",
    "int4_algo_config": "algo_config",
    "int4_nodes_to_exclude": "nodes_to_exclude",
    "int4_op_types_to_quantize": "op_types_to_quantize",
}


def load_config(values: dict[str, Any], sources: list[Path]) -> Config:
    """Validate a configuration that Snakemake has read.

    values: the merged dictionary. sources: the files it came from; errors name file and line there.
    Raises `UserError` with the first error: an unknown key with the nearest known name, a wrong type
    or value, keys that contradict each other.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        path = [part for part in first["loc"] if not _is_type_choice(part, values, first["loc"])]
        what, hint = _explain(first, path)
        # A contradiction between sections is reported at the root; its message starts with the key.
        file, line = _locate(path or what.partition(":")[0].partition(" ")[0].split("."), sources)
        fail(what, hint, at=file, line=line)


def check_yaml(path: Path) -> None:
    """Refuse what YAML lets pass: duplicate keys, of which the last would win, and broken syntax.

    Raises `UserError` with file and line.
    """
    try:
        tree = yaml.compose(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        fail("no such configuration file", "copy one from examples/ or name one with --configfile", at=path)
    except UnicodeDecodeError:
        fail("not UTF-8 text", "save it as UTF-8", at=path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        fail(f"not YAML: {error.problem}", "check quotes and indentation", at=path, line=mark.line + 1 if mark else 1)
    if not isinstance(tree, yaml.MappingNode):
        fail("not a mapping of keys to values", "start from one of the files in examples/", at=path, line=1)
    _refuse_duplicates(tree, path)


def _is_type_choice(part: int | str, values: Any, location: tuple[int | str, ...]) -> bool:
    """Pydantic adds the tried type of a union (`list[str]`, `literal['all-linear']`) to an error's path."""
    node = values
    for step in location:
        known = (isinstance(node, dict) and step in node) or (isinstance(node, list) and isinstance(step, int))
        if step == part:
            return not known and node is not None and not isinstance(node, dict)
        node = node[step] if known and not (isinstance(node, list) and step >= len(node)) else None  # type: ignore[operator]
    return False


def _explain(error: Any, path: list[int | str]) -> tuple[str, str]:
    name = ".".join(str(part) for part in path) or "the configuration"
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"{name} is not a known key", _suggest(path)
    if kind == "missing":
        return f"{name} is missing", "add it"
    if kind == "value_error":
        prefix = f"{name}: " if path else ""
        return prefix + str(error["ctx"]["error"]), ""
    if "[key]" in path:
        return (
            f"{'.'.join(map(str, path[:-2]))}: the name {path[-2]!r} cannot be used",
            "use a-z, 0-9 and - (not first)",
        )
    given = error["input"]
    if path == ["results"] and kind == "string_pattern_mismatch":
        return f"results: the folder {given!r} cannot be used", "use A-Z, a-z, 0-9 . _ / and - (not first)"
    shown = "" if isinstance(given, (dict, list)) else f" (found {given!r})"
    if "revision" in path and kind == "string_pattern_mismatch":
        return f"{name} is not a commit{shown}", "give the commit's 40 hex digits, a branch or tag can move"
    return f"{name}: {error['msg'][0].lower()}{error['msg'][1:]}{shown}", ""


def _suggest(path: list[int | str]) -> str:
    key = str(path[-1])
    if key in _OTHER_NAMES:
        return f"it is called {_OTHER_NAMES[key]} here"
    section: Any = Config
    for part in path[:-1]:
        section = _section_below(section, part)
        if section is None:
            return ""
    close = difflib.get_close_matches(key, section.model_fields, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    elsewhere = [
        f"{name}.{key}"
        for name in Config.model_fields
        if key in getattr(_section_below(Config, name), "model_fields", ())
    ]
    if elsewhere:
        return f"it belongs to {elsewhere[0]}"
    return f"known keys here: {', '.join(section.model_fields)}"


def _section_below(section: Any, part: int | str) -> Any:
    """The `Section` class that key `part` of `section` holds; for `variants` and its names, `Variant`."""
    if section is Variant and part not in Variant.model_fields:
        return Variant
    field = section.model_fields.get(part)
    if field is None:
        return None
    if part == "variants":
        return Variant
    kinds = getattr(field.annotation, "__args__", (field.annotation,))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _locate(path: Sequence[int | str], sources: list[Path]) -> tuple[str, int | None]:
    """File and line of a key, or of the deepest part of its path that a file holds; later files win."""
    best: tuple[int, str, int | None] = (-1, str(sources[-1]) if sources else "--config", None)
    for source in sources:
        node = yaml.compose(source.read_text(encoding="utf-8"))
        depth, line = 0, 1
        for part in path:
            child = _child(node, part)
            if child is None:
                break
            depth, line, node = depth + 1, child[0], child[1]
        if depth >= best[0]:
            best = (depth, str(source), line)
    return best[1], best[2]


def _child(node: Any, part: int | str) -> tuple[int, Any] | None:
    if isinstance(node, yaml.MappingNode):
        return next(((key.start_mark.line + 1, value) for key, value in node.value if key.value == str(part)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    return None


def _refuse_duplicates(node: Any, path: Path) -> None:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(item, path)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                fail(f"{key.value} stands twice (first in line {seen[key.value]})", "remove one", at=path, line=line)
            seen[key.value] = line
            _refuse_duplicates(value, path)
