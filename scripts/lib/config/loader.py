"""Read a configuration and say what is wrong with it: file, line, what to do.

The model is `lib.config.schema`; this is how its errors reach the person who wrote the file.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from lib.config.schema import RESULTS, Config
from lib.config.sources import SHA256
from lib.config.variants import Section, Variant
from lib.core.cli import fail
from lib.core.yaml_files import SAFE_LOADER, check_yaml_text, find_fault, read_text
from lib.provenance.results_folder import find_fault as results_fault

# What people who come from Olive's recipe, peft or transformers type, and how it is called here.
_OTHER_NAMES = {
    "lora_r": "finetune.r",
    "alpha": "finetune.lora_alpha",
    "dropout": "finetune.lora_dropout",
    "use_dora": "finetune.method: dora",
    "use_rslora": "finetune.method: rslora",
    "load_in_4bit": "finetune.method: qlora",
    "bnb_4bit_quant_type": "finetune.quant_type",
    "bnb_4bit_use_double_quant": "finetune.double_quant",
    "compute_dtype": "finetune.dtype",
    "bnb_4bit_compute_dtype": "finetune.dtype",
    "epochs": "finetune.num_train_epochs",
    "warmup_ratio": "finetune.warmup_steps",
    "warmup_share": "finetune.warmup_steps",
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

_PATTERNS = {
    RESULTS: "use letters from A to Z, digits, and the signs . _ / and - (not first)",
    SHA256: "give 64 hex digits",
}


class Module(NamedTuple):
    """slmflow as part of another workflow, which declares it in a line of a Snakefile.

    keys: where its configuration stands in the files of that workflow; none where it is in no file.
    """

    name: str
    keys: tuple[str, ...]
    snakefile: str
    line: int | None


def load_config(values: dict[str, Any], sources: list[Path], module: Module | None = None) -> Config:
    """Return validate a configuration that Snakemake has read.

    values: the merged dictionary. sources: the files it came from; errors name file and line there. module: None unless
    these are the files of a workflow that has this configuration for a module.
    Raises `UserError` with the first error: an unknown key with the nearest known name, a wrong type
    or value, keys that contradict each other.
    """
    if (fault := find_fault(values)) is not None:
        file, line, _ = _locate([], sources, module)
        fail(f"cannot be read: {fault}", "mend it", at=file, line=line if module else None)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        loc = tuple(part for part in first["loc"] if part not in ("(list)", "(mapping)"))  # tags of a union
        path = [part for part in loc if part == "[key]" or not _is_type_choice(part, values, loc)]
        what, hint = _explain(first, path, _scalar(path, sources, module))
        # Contradictions are reported at the section that holds them, at the root those between sections; their message
        # starts with the key.
        file, line, _ = _locate(_find_named_keys(what) if first["type"] == "value_error" else path, sources, module)
        fail(f"module {module.name}: {what}" if module else what, hint, at=file, line=line)


def check_yaml(path: Path) -> None:
    """Refuse what YAML lets pass, as `check_yaml_text` does, and anything but a mapping.

    Raises `UserError` with file and line.
    """
    text = read_text(path)
    check_yaml_text(text, path)
    if not isinstance(yaml.compose(text, Loader=SAFE_LOADER), yaml.MappingNode):
        fail("not a mapping of keys to values", "start from one of the files in examples/", at=path, line=1)


def check_results_folder(
    results: str, sources: list[Path], home: Path, user_paths: Iterable[str], module: Module | None = None
) -> None:
    """Raise `UserError`, with file and line, when `results` names no folder of its own.

    home: folder of the project. user_paths: rows and models of the configuration. sources, module: as `load_config` has
    them.
    """
    if fault := results_fault(results, home, user_paths):
        file, line, _ = _locate(["results"], sources, module)
        of = f"module {module.name}: " if module else ""
        fail(f"{of}results: {results} {fault}", "name a folder of its own, such as results-tones", at=file, line=line)


def _is_type_choice(part: int | str, values: Any, location: tuple[int | str, ...]) -> bool:
    """Return whether pydantic added a part of an error's path: the tried type of a union (`list[str]`)."""
    node = values
    for step in location:
        known = (isinstance(node, dict) and step in node) or (isinstance(node, list) and isinstance(step, int))
        if step == part:
            return not known and node is not None and not isinstance(node, dict)
        is_item = not isinstance(node, list) or (isinstance(step, int) and 0 <= step < len(node))
        node = node[step] if known and is_item else None
    return False


def _explain(error: Any, path: list[int | str], scalar: Any) -> tuple[str, str]:
    """Return what is wrong and what to do. scalar: the YAML node that the error is about, None where no file has it."""
    name = ".".join(str(part) for part in path) or "the configuration"
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"{name} is not a known key", _suggest(path)
    if kind == "missing":
        return f"{name} is missing", "add it"
    if kind == "value_error":
        prefix = f"{name}: " if path else ""
        return prefix + str(error["ctx"]["error"]), ""
    if kind == "string_type" and not isinstance(error["input"], (dict, list)):
        return _explain_scalar(".".join(str(part) for part in _without_key(path)), error["input"], scalar)
    if "[key]" in path:
        return (
            f"{'.'.join(map(str, path[:-2]))}: the name {path[-2]!r} cannot be used",
            "use a-z, 0-9 and - (not first)",
        )
    given = error["input"]
    shown = "" if isinstance(given, (dict, list)) else f" (found {given!r})"
    if "revision" in path and kind == "string_pattern_mismatch":
        return f"{name} is not a commit{shown}", "give the commit's 40 hex digits, a branch or tag can move"
    if kind == "string_pattern_mismatch" and error["ctx"]["pattern"] in _PATTERNS:
        return f"{name} cannot be used{shown}", _PATTERNS[error["ctx"]["pattern"]]
    is_seed = any(str(part).endswith("seed") for part in path)
    hint = "a seed is a whole number from 0 to 4294967295" if is_seed else ""
    return f"{name}: {error['msg'][0].lower()}{error['msg'][1:]}{shown}", hint


def _explain_scalar(name: str, value: Any, scalar: Any) -> tuple[str, str]:
    """Return a value that YAML takes for something other than the text that it was meant to be."""
    if value is None and (scalar is None or not scalar.value):
        return f"{name} has no value", "give one"
    kinds = {True: "true", False: "false", None: "nothing"}
    kind = kinds[value] if value is None or isinstance(value, bool) else f"a {'date' if _is_date(value) else 'number'}"
    text = scalar.value if scalar is not None else str(value)
    return f"{name}: YAML reads {text} as {kind}", f'quote it: "{text}"'


def _is_date(value: Any) -> bool:
    return isinstance(value, date)


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
    """Return the `Section` class that key `part` of `section` holds; for `variants` and its names, `Variant`."""
    if section is Variant and part not in Variant.model_fields:
        return Variant
    field = section.model_fields.get(part)
    if field is None:
        return None
    if part == "variants":
        return Variant
    kinds = getattr(field.annotation, "__args__", (field.annotation,))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _find_named_keys(what: str) -> list[str]:
    """Return the keys that a message starts with: `data: labels: ...` and `data.labels: ...`."""
    found = re.match(r"[\w.-]+(: [\w.-]+(?=:))*", what)
    return found[0].replace(": ", ".").split(".") if found else []


def _without_key(path: list[int | str]) -> list[int | str]:
    """Return the path of a mapping, where pydantic names one of its keys."""
    return path[:-2] if path[-1:] == ["[key]"] else path


def _scalar(path: list[int | str], sources: list[Path], module: Module | None) -> Any:
    """Return the YAML node of a scalar; of a mapping whose key is no text, the first such key. None where no file has
    it.
    """
    _, _, node = _locate(_without_key(path), sources, module)
    if path[-1:] == ["[key]"] and isinstance(node, yaml.MappingNode):
        return next((key for key, _ in node.value if key.tag != "tag:yaml.org,2002:str"), None)
    return node if isinstance(node, yaml.ScalarNode) else None


def _locate(path: Sequence[int | str], sources: list[Path], module: Module | None) -> tuple[str, int | None, Any]:
    """Return file, line and node of a key, or of the deepest part of its path that a file holds; later files win.

    The node is None where no file holds the whole path. What a module is given in the Snakefile itself is in no file.
    """
    if module is not None and not module.keys:
        return module.snakefile, module.line, None
    path = [*(module.keys if module else ()), *path]
    best: tuple[int, str, int | None, Any] = (-1, str(sources[-1]) if sources else "--config", None, None)
    for source in sources:
        node = yaml.compose(read_text(source), Loader=SAFE_LOADER)
        depth, line = 0, 1
        for part in path:
            child = _child(node, part)
            if child is None:
                break
            depth, line, node = depth + 1, child[0], child[1]
        if depth >= best[0]:
            best = (depth, str(source), line, node if depth == len(path) else None)
    return best[1:]


def _child(node: Any, part: int | str) -> tuple[int, Any] | None:
    if isinstance(node, yaml.MappingNode):
        return next(((key.start_mark.line + 1, value) for key, value in node.value if key.value == str(part)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and 0 <= part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    return None
