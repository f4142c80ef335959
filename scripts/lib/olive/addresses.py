"""Addresses of Azure and of local files in an Olive configuration, and the workspace that they mean."""

import re
from typing import Any

from lib.olive.document import Block
from lib.olive.draft import FILL_IN, Draft
from lib.olive.render import format_value

_LOCAL = ("file", "folder", "local_file", "local_folder", "string_name", "localfile", "localfolder", "stringname")
CLIENT = {
    "subscription_id": "azureml-subscription-id",
    "resource_group": "azureml-resource-group",
    "workspace_name": "azureml-workspace",
}
VAULT_SECRET = "SLMFLOW_HF_TOKEN_SECRET"


def add_client_lines(draft: Draft, block: Block) -> None:
    """Move the workspace of a block to the lines for the profile."""
    for key, option in CLIENT.items():
        entry = draft.take_entry(block, "azureml_client", key)
        if entry is not None:
            add_profile_line(draft, f"{option}: {format_value(entry.value)}", entry.path)
    if (entry := draft.take_entry(block, "azureml_client", "keyvault_name")) is not None:
        name = str(entry.value) if re.fullmatch(r"[A-Za-z0-9-]+", str(entry.value)) else "VAULT"
        add_profile_line(
            draft,
            f"export {VAULT_SECRET}=https://{name}.vault.azure.net/secrets/hf-token",
            f"{entry.path} {format_value(entry.value)}; a variable of your shell",
        )


def add_profile_line(draft: Draft, line: str, origin: str) -> None:
    """Add a line for the profile, with where it comes from; several places may say the same."""
    known = draft.profile.get(line)
    draft.profile[line] = f"{known}, {origin}" if known else origin


def find_datastore(draft: Draft, block: Block) -> tuple[str | None, str]:
    """Return the azureml:// address or the local path of a block's address, and how it stands in Olive's file."""
    kind = str(draft.take(block, "address", "type")).lower()
    if kind in _LOCAL:
        path = draft.take_typed(block, str, "address", "path", "name")
        return path, format_value(path)
    if kind == "azureml_datastore":
        url = draft.take_typed(block, str, "address", "datastore_url")
        if url:
            return url, format_value(url)
        store = draft.take_typed(block, str, "address", "datastore_name")
        path = draft.take_typed(block, str, "address", "relative_path")
        address = f"azureml://datastores/{store}/paths/{path}"
        return (address if store and path else None), format_value(path)
    return None, kind


def find_model_address(draft: Draft, block: Block) -> tuple[str | None, str]:
    """Return the address of a registered model, and a comment on it."""
    kind = str(block.find("address", "type").value).lower()  # type: ignore[union-attr]
    if kind not in ("azureml_registry_model", "azureml_model"):
        address, shown = find_datastore(draft, block)
        return address, shown
    draft.take(block, "address", "type")
    name, version = (draft.take(block, "address", key) for key in ("name", "version"))
    registry = draft.take_typed(block, str, "address", "registry_name")
    place = f"registries/{registry or 'azureml'}/" if kind == "azureml_registry_model" else ""
    last = str(name).rpartition("/")[2]
    comment = f"{FILL_IN}: check the name, which has no owner in a registry; Olive's is {name}" if last != name else ""
    return f"azureml://{place}models/{last}/versions/{_show_version(version)}", comment


def _show_version(version: Any) -> str:
    return str(version) if version is not None else "latest"
