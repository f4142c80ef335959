"""The tables of docs/olive.md, made of the table of keys that the importer uses."""

from collections.abc import Iterator

from lib.olive.keys import KEYS, OTHER_PASSES, Key

_BEGIN, _END = "<!-- Made from scripts/lib/olive/keys.py by `make generated`; do not edit. -->", "<!-- end -->"
_HEADINGS = {
    "training": "Training passes: LoRA, QLoRA, DoRA, LoftQ, LoHa, LoKr",
    "training_args": "`training_args` of a training pass",
    "data_config": "`data_configs`",
    "load_dataset_config": "`load_dataset_config` of the data, or `params_config`",
    "pre_process_data_config": "`pre_process_data_config` of the data",
    "other_data_config": "`post_process_data_config` and `dataloader_config` of the data",
    "input_model": "`input_model`, `hf_config`",
    "load_kwargs": "`load_kwargs`, `model_loading_args`, `from_pretrained_args`",
    "address": "Addresses of Azure, in place of `model_path` or `data_files`",
    "merge": "Pass MergeAdapterWeights",
    "builder": "Pass ModelBuilder",
    "engine": "`engine`, or the same keys at the top",
    "system": "`systems`",
    "accelerator": "`accelerators` of a system",
    "azureml_client": "`azureml_client`",
}


def replace_tables(page: str) -> str:
    """Return a page with the tables between its two marks replaced by those of today."""
    before, _, rest = page.partition(_BEGIN)
    after = rest.partition(_END)[2]
    return "\n".join([before + _BEGIN, *_render_tables(), _END + after])


def _render_tables() -> Iterator[str]:
    for kind, heading in _HEADINGS.items():
        yield from (
            "",
            f"### {heading}",
            "",
            "| Olive | slmflow | what changes, or why it is left out |",
            "| --- | --- | --- |",
        )
        rows: dict[Key, list[str]] = {}
        for name, key in KEYS[kind].items():
            rows.setdefault(key, []).append(f"`{name}`")
        for key, names in rows.items():
            yield f"| {', '.join(names)} | {_format_target(key.to)} | {key.says} |"
    yield from ("", "### Passes without counterpart", "", "| type, in any case | why |", "| --- | --- |")
    reasons: dict[str, list[str]] = {}
    for name, reason in OTHER_PASSES.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        yield f"| {', '.join(names)} | {reason} |"
    yield ""


def _format_target(to: str) -> str:
    return f"`{to}`" if to and ", " not in to and " or " not in to else to
