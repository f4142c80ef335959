"""Convert a Microsoft Olive configuration into slmflow's: every key is carried over, or named with the reason."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from lib.config.loader import load_config
from lib.config.schema import Config
from lib.core.cli import UserError, fail
from lib.core.yaml_files import SAFE_LOADER, check_yaml_text
from lib.olive.base_model import convert_base_model
from lib.olive.builds import convert_builds, convert_places
from lib.olive.document import Block, Document
from lib.olive.draft import FILL_IN, Draft
from lib.olive.render import render_config, wrap_comment
from lib.olive.rows import convert_rows
from lib.olive.training import convert_training

# Keys that only Olive 0.6 and its predecessors read.
_OLD_KEYS = (
    *("eval_dataset_size", "hf_config", "model_loading_args", "from_pretrained_args", "params_config", "dataset_type"),
    *("component_kwargs", "corpus_strategy", "source_max_len", "use_ort_trainer", "pair_format"),
)


@dataclass(frozen=True)
class Conversion:
    """text: YAML with comments. config: the same, validated. has_training: whether it trains, or brings an adapter."""

    text: str
    config: Config
    has_training: bool


def convert_document(
    document: Document,
    name: str,
    *,
    pass_name: str | None = None,
    is_folder: Callable[[str], bool] = lambda path: False,
) -> Conversion:
    """Return slmflow's configuration for one of Olive's.

    name: of the file, for the first line. pass_name: which training pass, where there are several. is_folder: whether a
    model's name is a folder. Raises `UserError` when the pass is not there.
    """
    old = sorted(key for key in _OLD_KEYS if key in document.names)
    draft = Draft(document, is_old=bool(old))
    training = _choose_training(document, pass_name, name)
    if training is not None:
        convert_training(draft, training)
    else:
        _replace_training(draft)
    convert_rows(draft, training)
    convert_base_model(draft, is_folder)
    convert_places(draft)
    convert_builds(draft)
    _finish(draft, training)
    text = "\n".join([*_render(draft, name, old)]) + "\n"
    return Conversion(text, _validate(text, name), training is not None or "finetune.adapter" in draft.values)


def _replace_training(draft: Draft) -> None:
    """Set what stands in place of a training: the adapter that the model has, or none where it is only quantized."""
    for block in draft.document.select("input_model"):
        if adapter := draft.take_typed(block, str, "input_model", "adapter_path"):
            draft.set("finetune.adapter", adapter, "Olive's file brings it: nothing is trained")
            return
    if draft.document.select("builder"):
        draft.set("finetune.method", "none", "Olive's file has no training pass: the base model is quantized as it is")


def _choose_training(document: Document, pass_name: str | None, name: str) -> Block | None:
    passes = document.select("training")
    if pass_name is None:
        return passes[0] if passes else None
    chosen = next((block for block in passes if block.name == pass_name), None)
    if chosen is None:
        fail(
            f"no training pass {pass_name!a}", f"there are: {', '.join(one.name for one in passes) or 'none'}", at=name
        )
    return chosen


def _finish(draft: Draft, training: Block | None) -> None:
    """Set what Olive never says, leave out what slmflow does in any case, and settle the rest."""
    draft.values.setdefault("results", "results-mine")
    for block in draft.document.select("training"):
        if block is not training:
            draft.leave_block(block, "one training in a run: import it with --pass, into a file of its own")
    for block in draft.document.select("merge"):
        draft.take_entry(block, "merge", "type")
    draft.settle()


def _render(draft: Draft, name: str, old: list[str]) -> Iterator[str]:
    """Yield the lines: what this is, the configuration, lines for a profile, and what was left out."""
    yield from wrap_comment(f"Made of {name} by scripts/import_olive.py.")
    version = f"0.6 ({', '.join(old)})" if old else "0.13"
    yield from wrap_comment(f"Read as Olive {version} reads it; keys that it leaves out have its defaults here.")
    body = list(render_config(draft.values, draft.comments))
    if count := sum(line.count(FILL_IN) for line in body):
        yield from wrap_comment(f"{FILL_IN} marks what Olive's file does not say ({count}).")
    yield from body
    if draft.profile:
        yield ""
        yield from wrap_comment("Where it runs belongs into a profile (docs/azure.md, docs/gpu.md):")
        for line, origin in draft.profile.items():
            yield from wrap_comment(line)
            yield from wrap_comment(f"    from {origin}", hanging="    ")
    if left := draft.list_left():
        yield ""
        yield from wrap_comment("Not carried over:")
        for line in left:
            yield from wrap_comment(f"- {line}", hanging="  ")


def _validate(text: str, name: str) -> Config:
    """Return the configuration as slmflow reads it. Raises `UserError` when it is not valid: a fault of ours."""
    try:
        check_yaml_text(text, "the converted configuration")
        return load_config(yaml.load(text, Loader=SAFE_LOADER), [])
    except UserError as error:
        fail(f"what it becomes is not valid ({error})", "report this file: the importer should have told it", at=name)


def find_folder_beside(path: Path) -> Callable[[str], bool]:
    """Return a function that tells whether a name is a folder, seen from a configuration file."""
    return lambda name: len(name) < 4096 and "\0" not in name and (path.parent / name).is_dir()
