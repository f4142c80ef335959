"""Olive's ModelBuilder passes, systems and engine: variants, results, and what belongs to a profile."""

import re
from collections.abc import Iterator
from typing import Any

from lib.config.variants import Variant
from lib.olive.addresses import VAULT_SECRET, add_client_lines, add_profile_line
from lib.olive.document import Block, Entry
from lib.olive.draft import Draft, find_value_fault
from lib.olive.keys import KEYS
from lib.olive.render import format_value

_PROVIDERS = {
    "CPUExecutionProvider": "cpu",
    "CUDAExecutionProvider": "cuda",
    "DmlExecutionProvider": "dml",
    "WebGpuExecutionProvider": "webgpu",
    "NvTensorRTRTXExecutionProvider": "trt-rtx",
}
_DEVICES = {"cpu": "cpu", "gpu": "cuda"}
_MIXED = {
    "k_quant_mixed": ("k_quant", "last_matmul:int8,mixed_layers:int8"),
    "k_quant_last": ("k_quant", "last_matmul:int8"),
    "rtn_last": ("rtn", "last_matmul:int8"),
}


def convert_builds(draft: Draft) -> None:
    """Set the section variants from the ModelBuilder passes and the accelerators of the target."""
    builders = [block for block in draft.document.select("builder") if not _is_metadata_only(draft, block)]
    if not builders:
        draft.set("variants.int4.precision", "int4", "Olive's file has no model built")
        return
    providers = _find_providers(draft)
    for block in builders:
        options = _read_options(draft, block)
        for provider in providers or ["cpu"]:
            _add_variant(draft, block, options, provider)
    found = [path for path in draft.values if path.startswith("variants.")]
    if not any(_is_scored(draft, path) for path in found):
        draft.set("variants.int4.precision", "int4", "for the CPU: what is scored and selected without a GPU")


def _is_metadata_only(draft: Draft, block: Block) -> bool:
    """Return whether a pass only describes a model that another one exports; it is then left out."""
    entry = block.find("builder", "metadata_only")
    if entry is None or entry.value is not True:
        return False
    draft.leave_block(block, "metadata_only builds no model; variants do")
    return True


def _is_scored(draft: Draft, path: str) -> bool:
    name = path.split(".")[1]
    return draft.values.get(f"variants.{name}.execution_provider", "cpu") == "cpu"


def _read_options(draft: Draft, block: Block) -> dict[str, Any]:
    """Return the options of a build by slmflow's names; those that it does not take are left out."""
    draft.take_entry(block, "builder", "type")
    options: dict[str, Any] = {}
    for entry in block.entries:
        key = KEYS[entry.kind].get(entry.key)
        name = key.to.rpartition(".")[2] if key is not None and key.to.startswith("variants.NAME.") else None
        if name is None or entry.value is None:
            continue
        draft.taken.add(entry.path)
        for option, value in _convert_option(name, entry):
            if (fault := find_value_fault(Variant, option, value)) is None or option == "precision":
                options.setdefault(option, value)
            else:
                draft.leave(entry, f"variants.NAME.{option} does not accept it: {fault}")
    return options


def _convert_option(name: str, entry: Entry) -> Iterator[tuple[str, Any]]:
    if name == "algo_config" and entry.value in _MIXED:
        yield name, _MIXED[entry.value][0]
        yield "matmul_mixed_precision", _MIXED[entry.value][1]
    elif name in ("op_types_to_quantize", "nodes_to_exclude") and isinstance(entry.value, str):
        yield name, entry.value.split("/") if name == "op_types_to_quantize" else entry.value.split(",")
    else:
        yield name, entry.value


def _add_variant(draft: Draft, block: Block, options: dict[str, Any], provider: str) -> None:
    """Set a variant; one that cannot be built is left out with the reason."""
    values = {"precision": "int4", **options, "execution_provider": provider}
    fault = _find_fault(values)
    if fault is not None:
        entry = block.find("builder", "precision") or block.find("builder", "type")
        assert entry is not None
        draft.leave(entry, fault)
        return
    name = _choose_name(draft, str(values["precision"]), provider)
    draft.set(f"variants.{name}.precision", values.pop("precision"))
    for option, value in values.items():
        if option != "execution_provider" or provider != "cpu":
            draft.set(f"variants.{name}.{option}", value)
    if provider != "cpu":
        draft.comment(
            f"variants.{name}.execution_provider",
            "built and not scored; score: true scores it here, on a GPU",
        )


def _find_fault(values: dict[str, Any]) -> str | None:
    from pydantic import ValidationError

    try:
        Variant.model_validate(values)
    except ValidationError as error:
        return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    return None


def _choose_name(draft: Draft, precision: str, provider: str) -> str:
    name = precision if provider == "cpu" else f"{precision}-{provider}"
    count = 1
    chosen = name
    while f"variants.{chosen}.precision" in draft.values:
        count += 1
        chosen = f"{name}-{count}"
    return chosen


def _find_providers(draft: Draft) -> list[str]:
    """Return the execution providers that models are built for, as slmflow calls them."""
    found: list[str] = []
    for entry in _find_accelerators(draft):
        draft.taken.add(entry.path)
        names = [entry.value] if isinstance(entry.value, str) else entry.value
        found += _map_providers(draft, entry, names)
    return list(dict.fromkeys(found))


def _find_accelerators(draft: Draft) -> list[Entry]:
    """Return what says for which providers a model is built: the engine, else the system that is its target."""
    engine = next(iter(draft.document.select("engine")), None)
    systems = draft.document.select("system")
    if engine is not None and (entry := engine.find("engine", "execution_providers")) is not None:
        return [entry]
    named = [engine.find("engine", key) for key in ("target", "host")] if engine else []
    targets = [system for entry in named if entry for system in systems if system.name == entry.value]
    entries = next((system.entries for system in [*targets, *systems]), [])
    told = [entry for entry in entries if (entry.kind, entry.key) == ("accelerator", "execution_providers")]
    devices = [entry for entry in entries if (entry.kind, entry.key) == ("accelerator", "device")]
    if told:
        draft.taken |= {entry.path for entry in devices}  # which the providers follow from
    return told or devices or [entry for entry in entries if (entry.kind, entry.key) == ("system", "accelerators")]


def _map_providers(draft: Draft, entry: Entry, names: Any) -> Iterator[str]:
    for name in names if isinstance(names, list) else []:
        provider = _PROVIDERS.get(name) if isinstance(name, str) else None
        provider = provider or _DEVICES.get(str(name).lower())
        if provider is None:
            draft.leave(entry, "providers: cpu, cuda, dml, webgpu, trt-rtx")
        else:
            yield provider


def convert_places(draft: Draft) -> None:
    """Set results from the engine, and collect what belongs to a profile: workspace, computes, images."""
    for block in [*draft.document.select("azureml_client"), *draft.document.select("system")]:
        add_client_lines(draft, block)
    for system in draft.document.select("system"):
        _convert_system(draft, system)
    for engine in draft.document.select("engine"):
        _convert_engine(draft, engine)


def _convert_system(draft: Draft, system: Block) -> None:
    if system.type in ("azureml", "localsystem"):
        draft.take_entry(system, "system", "type")
    has_gpu = _has_gpu(system)
    if (entry := draft.take_entry(system, "system", "aml_compute")) is not None:
        line = f"azureml-compute: {format_value(entry.value)}"
        if has_gpu:  # the rules without a GPU would pay for one
            quoted = format_value(f"'{entry.value}'")  # an expression there, so text stands in quotes within quotes
            line = f"set-resources: {{train_adapter: {{azureml_compute: {quoted}}}}}"
        add_profile_line(draft, line, f"{entry.path}{', a GPU' * has_gpu}")
    if (entry := draft.take_entry(system, "system", "base_image")) is not None:
        add_profile_line(draft, f"azureml-image: {format_value(entry.value)}", entry.path)
    if (entry := draft.take_entry(system, "system", "conda_file_path")) is not None:
        add_profile_line(
            draft,
            "azureml-conda-file: profiles/azureml/conda.yaml",
            f"{entry.path}, instead of {format_value(entry.value)}",
        )
    token = system.find("system", "hf_token")
    if token is not None and token.value is True:
        draft.taken.add(token.path)
        known = next((line for line in draft.profile if VAULT_SECRET in line), None)
        line = known or f"export {VAULT_SECRET}=https://VAULT.vault.azure.net/secrets/hf-token"
        add_profile_line(draft, line, f"{token.path}{'' if known else '; a variable of your shell'}")
    if system.type == "localsystem" and has_gpu:
        add_profile_line(draft, 'make run ARGS="--profile profiles/gpu ..."', f"{system.path}, a GPU")


def _has_gpu(system: Block) -> bool:
    told = [entry.value for entry in system.entries if entry.kind == "accelerator" or entry.key == "accelerators"]
    return any(sign in format_value(told).lower() for sign in ("gpu", "cuda"))


def _convert_engine(draft: Draft, engine: Block) -> None:
    output = draft.take_typed(engine, str, "engine", "output_dir")
    parts = re.findall(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", output or "")
    if parts:
        draft.set("results", f"results-{parts[-1]}", f"output_dir {format_value(output)}")
