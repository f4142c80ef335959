"""Olive's `input_model` as the section base_model."""

import re
from collections.abc import Callable

from lib.azure.machine_learning import parse_model
from lib.olive.addresses import add_client_lines, find_model_address
from lib.olive.document import Block
from lib.olive.draft import FILL_IN, ZEROS, Draft
from lib.olive.render import format_value

# Commit and number of parameters of the models that pages about Olive use, as the hub has them.
_KNOWN = {"phi-3-mini-4k-instruct": ("f39ac1d28e925b323eae81227eaba4464caced4e", 3_821_079_552)}
_HUB = re.compile(r"(?:https://huggingface\.co/)?([\w.-]+(?:/[\w.-]+)?)/?")
_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z])", re.IGNORECASE)
_FOLDER = "models/mine"


def convert_base_model(draft: Draft, is_folder: Callable[[str], bool]) -> None:
    """Set the section base_model. is_folder: whether a name is that of a folder beside Olive's file."""
    blocks = draft.document.select("input_model")
    if not blocks:
        draft.set("base_model.path", _FOLDER, f"{FILL_IN}: Olive's file names no model")
        _set_parameters(draft, "")
        return
    block = blocks[0]
    kind = draft.take_entry(block, "input_model", "type")
    if kind is not None and block.type not in ("hfmodel", "pytorchmodel"):
        draft.leave(kind, "such a model cannot be fine-tuned: name the model it was made from")
    add_client_lines(draft, block)
    if block.find("address", "type") is not None:
        named = block.find("input_model", "model_name")
        address, comment = find_model_address(draft, block)
        _set_source(draft, address, comment, str(named.value) if named is not None else "")
        _set_asset_type(draft, block)
    elif name := draft.take_typed(block, str, "input_model", "model_path", "model_name"):
        _set_named(draft, block, name, is_folder)
    else:
        draft.set("base_model.path", _FOLDER, f"{FILL_IN}: Olive's file names no model")
        _set_parameters(draft, "")


def _set_named(draft: Draft, block: Block, name: str, is_folder: Callable[[str], bool]) -> None:
    if name.startswith("azureml:"):
        short = re.fullmatch(r"azureml:([\w.-]+):([\w.-]+)", name)
        _set_source(draft, f"azureml://models/{short[1]}/versions/{short[2]}" if short else name, "", name)
        return
    hub = _HUB.fullmatch(name)
    if hub is None or is_folder(name) or name.startswith(".") or name.endswith(".gguf"):
        draft.set("base_model.path", name, "" if is_folder(name) else "a folder with safetensors, or a .gguf file")
        _set_parameters(draft, name)
        return
    draft.set("base_model.hub.id", hub[1])
    _set_revision(draft, block, hub[1])
    _set_parameters(draft, hub[1])


def _set_revision(draft: Draft, block: Block, name: str) -> None:
    entry = draft.take_entry(block, "load_kwargs", "revision")
    if entry is not None and re.fullmatch("[0-9a-f]{40}", str(entry.value)):
        draft.set("base_model.hub.revision", entry.value)
        return
    if entry is not None:
        draft.leave(entry, "a branch or tag, which can move")
    known = _KNOWN.get(name.rpartition("/")[2].lower())
    if known:
        draft.set("base_model.hub.revision", known[0], "Olive takes the latest; this one is known to work")
    else:
        draft.set("base_model.hub.revision", ZEROS, f"{FILL_IN}: the commit of the model, 40 hex digits")


def _set_source(draft: Draft, address: str | None, comment: str, name: str) -> None:
    """Set base_model.source, or the path where the address is that of a local model."""
    if address is not None and not address.startswith("azureml:"):
        draft.set("base_model.path", address)
    else:
        fault = _find_fault(address)
        if fault is not None:
            shown = format_value(address) if address else comment
            comment = f"{FILL_IN}: {fault if address else 'Olive has ' + shown}"
            address = "azureml://registries/azureml/models/NAME/versions/1"
        draft.set("base_model.source", address, comment)
        if "/paths/" in str(address):
            draft.set("base_model.sha256", "0" * 64, f"{FILL_IN}: the run tells it")
    _set_parameters(draft, f"{address} {name}")


def _set_asset_type(draft: Draft, block: Block) -> None:
    entry = block.find("input_model", "model_file_format")
    if entry is not None and str(entry.value).lower() == "pytorch.mlflow" and "base_model.source" in draft.values:
        draft.taken.add(entry.path)
        draft.set("base_model.asset_type", "mlflow_model")


def _find_fault(address: str | None) -> str | None:
    if address is None:
        return "no address"
    try:
        parse_model(address)
    except ValueError as error:
        return str(error)
    return None


def _set_parameters(draft: Draft, name: str) -> None:
    """Set the number of parameters: known, guessed from the name (7b), or any."""
    known = next((facts for part, facts in _KNOWN.items() if part in name.lower()), None)
    size = _SIZE.search(name.replace("_", "-"))
    if known:
        draft.set("base_model.parameters", known[1])
    elif size:
        count = round(float(size[1]) * (1e9 if size[2].lower() == "b" else 1e6))
        draft.set(
            "base_model.parameters",
            max(1, min(count, 10**15)),
            f"{FILL_IN}: guessed from the name; the run tells the right number when the model comes",
        )
    else:
        draft.set("base_model.parameters", 10**9, f"{FILL_IN}: the run tells the right number when the model comes")
