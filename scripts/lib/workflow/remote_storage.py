"""Runs whose jobs share no files with this machine: their storage, their environment, and their lineage."""

import json
import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lib.core.cli import fail
from lib.provenance.run_card import CODE, describe_code
from lib.workflow.input_content import compare_by_content
from lib.workflow.metadata_overlay import correct_metadata, keep_records_of_failed_jobs
from lib.workflow.modules import is_first_module
from lib.workflow.snakemake_metadata import agree, compare


def prepare_storage(workflow: Any) -> None:
    """Patch the storage plugin, and put the storage account and the commit of the code into the environment of scripts.

    Raises `UserError` when jobs would lack sources: Snakemake sends them what git tracks, and the configuration.
    """
    if workflow.storage_settings.default_storage_provider == "azure":
        from lib.azure.blobs import ACCOUNT
        from lib.workflow.azure_storage_plugin import mend_storage_plugin

        mend_storage_plugin()
        settings = workflow.storage_provider_settings.get("azure")
        account = settings and settings.get_field_settings("account_name").get(None)
        if account:
            os.environ[ACCOUNT] = account
    if workflow.is_main_process:
        _check_sources(workflow.configfiles)
        os.environ[CODE] = json.dumps(describe_code())


def has_secret_address() -> bool:
    """Return whether jobs are told where the hub's token is kept; the address itself is not secret."""
    return "SLMFLOW_HF_TOKEN_SECRET" in os.environ


def _check_sources(configuration: list[str]) -> None:
    known = subprocess.run(["git", "ls-files", "scripts"], capture_output=True, text=True)
    if not known.stdout:
        fail(
            "jobs get their sources through git, but this folder is not a git repository",
            "clone it with git, or: git init; git add .",
        )
    for file in configuration:
        if os.path.relpath(file).startswith(".."):
            fail("remote jobs cannot read files outside this folder", f"put it into {Path.cwd()}", at=file)


def find_storage_address(workflow: Any, path: str) -> str:
    """Return the address in the default storage of a path of the rules."""
    return f"{workflow.storage_settings.default_storage_prefix.rstrip('/')}/{path}"


def build_fetch_command(script: str, storage: str, results: str, what: Iterable[str]) -> list[str]:
    """Return the command that fetches some of the results from the storage; see scripts/fetch_results.py."""
    return ["python", script, "--storage", storage, "--results", results, *what]


def find_results_copy(output: str, results: str) -> str:
    """Return a job's local copy of the results folder. output: one of its outputs, which lies in this copy."""
    return output[: output.rindex(f"/{results}/") + 1] + results


def sync_metadata_before_run(workflow: Any, results: str, given: Iterable[str]) -> None:
    """Correct what Snakemake reads: its metadata by the results and their lineage, its inputs by their bytes.

    For every plan, in memory; a run also writes the corrections once it holds the lock of this folder.
    given: files and folders of the configuration that no rule makes.
    Raises `UserError` where it cannot, or where jobs elsewhere could not write to such a folder.
    """
    if workflow.storage_settings.default_storage_provider and not re.match(r"\w", results):
        fail(f"results: {results} is not a folder below this one", "remote jobs need one, such as results")
    if workflow.storage_settings.default_storage_provider == "azure":
        from lib.workflow import azure_storage_plugin, remote_lineage

        outputs = find_storage_address(workflow, results)
        found = remote_lineage.compare(outputs, results)
        azure_storage_plugin.list_once(outputs)
    else:
        outputs, found = results, compare(Path(results))
    add = not is_first_module(workflow)
    hashes = compare_by_content(given, outputs, found.lineage, found.corrections, add=add)
    correct_metadata(found.corrections, found.write, hashes.save, add=add)
    keep_records_of_failed_jobs()


def write_lineage_after_run(workflow: Any, results: str) -> None:
    """Write how the results were made, beside them."""
    if workflow.storage_settings.default_storage_provider == "azure":
        from lib.workflow import remote_lineage

        remote_lineage.write(find_storage_address(workflow, results), results)
    else:
        agree(Path(results), during_run=True)
