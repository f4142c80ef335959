"""Files of a model or dataset repository on the Hugging Face hub, at one commit, checked by hash.

Downloads go to the hub's own cache (HF_HOME) and stay there: files that were complete when a
download was interrupted are not fetched again. HF_ENDPOINT and HF_HUB_OFFLINE work as always. The
only token used is that of the variable HF_TOKEN, or of the secret that SLMFLOW_HF_TOKEN_SECRET names.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from lib.core.cli import fail, report_progress
from lib.core.paths import check_bare_name

# sha256 for a file in large file storage, git's sha1 for a small one. Where the hub is out of reach the
# cache must do, which names files by these; None where it has no links, so that its names say nothing.
Hashes = dict[str, str | None]


def read_hub_token() -> str | bool:
    """Return the token of HF_TOKEN, or the secret of Key Vault that SLMFLOW_HF_TOKEN_SECRET names.

    False keeps the library from looking elsewhere for one. Raises `UserError` when the vault does not give it.
    """
    if token := os.environ.get("HF_TOKEN"):
        return token
    if secret := os.environ.get("SLMFLOW_HF_TOKEN_SECRET"):
        from lib.azure.identity import read_vault_secret

        return read_vault_secret(secret)
    return False


def download_files(id_: str, revision: str, choose: Callable[[list[str]], list[str]]) -> Path:
    """Download files of the model repository `id_` at the commit `revision`; returns their folder.

    choose: picks from the names of all top-level files those to download; may refuse by `fail`.
    Raises `UserError` when repository or commit do not exist, access is refused, the network fails,
    or a file's hash is not the one that the hub states; such a file is removed from the cache.
    """
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        fail(f"revision {revision!r} of {id_} is not a commit", "a branch changes: write the 40 hex digits of a commit")
    with explain_hub_errors(id_, revision):
        hashes = _list_files(id_, revision)
        chosen = [check_bare_name(name, at=id_) for name in choose(sorted(hashes))]
        report_progress(f"downloading {id_}: {len(chosen)} files")
        # Brackets would be a pattern; names in model repositories have none.
        folder = Path(snapshot_download(id_, revision=revision, allow_patterns=chosen, token=read_hub_token()))
    for name in chosen:
        _check_hash(folder / name, hashes[name], id_)
    return folder


def check_data_file(id_: str, revision: str, name: str) -> None:
    """Download a file of the dataset repository `id_` into the cache, where `datasets` will find it.

    Raises `UserError` as `download_files`. The cache names a file by the hash that the hub stated.
    """
    with explain_hub_errors(id_, revision):
        path = Path(hf_hub_download(id_, name, repo_type="dataset", revision=revision, token=read_hub_token()))
    _check_hash(path, path.resolve().name, id_)


def _list_files(id_: str, revision: str) -> Hashes:
    try:
        entries = HfApi(token=read_hub_token()).list_repo_tree(id_, revision=revision)
        return {
            entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
            for entry in entries
            if isinstance(entry, RepoFile)
        }
    except OfflineModeIsEnabled:
        folder = Path(snapshot_download(id_, revision=revision, allow_patterns="config.json", local_files_only=True))
        return {path.name: _hash_in_cache(path) for path in folder.iterdir() if path.is_file()}


def _hash_in_cache(file: Path) -> str | None:
    name = file.resolve().name
    return name if file.is_symlink() and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name) else None


def _check_hash(file: Path, expected: str | None, id_: str) -> None:
    """Compare the content of a file: huggingface_hub compares sizes only."""
    if expected is None:
        return
    if len(expected) == 64:
        with open(file, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    else:
        content = file.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if found != expected:
        file.resolve().unlink()
        file.unlink(missing_ok=True)
        fail(f"{file.name} of {id_} came with hash {found}, the hub states {expected}", "start again to fetch it again")


@contextmanager
def explain_hub_errors(id_: str, revision: str) -> Iterator[None]:
    """Turn the errors of huggingface_hub into `UserError`s that say what to do."""
    try:
        yield
    except GatedRepoError:
        fail(f"{id_} is gated and refused access", _hint_at_token())
    except RevisionNotFoundError:
        fail(f"{id_} has no commit {revision}", "check the revision on the repository's page")
    except RepositoryNotFoundError:
        fail(
            f"the hub has no repository {id_} that you may read", f"check the id; if it is private: {_hint_at_token()}"
        )
    except HFValidationError:
        fail(f"{id_!r} is not the id of a repository", "write it as owner/name")
    except LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, HfHubHTTPError):
            _explain_status(error.__cause__, id_)
        _unreachable(id_, error.__cause__ or error)
    except HfHubHTTPError as error:
        _explain_status(error, id_)
    except httpx2.TransportError as error:
        _unreachable(id_, error)
    except OSError as error:
        if "Consistency check failed" not in str(error):
            raise
        fail(f"the download of {id_} was cut: {str(error).splitlines()[0]}", "start again: complete files are kept")


def _explain_status(error: HfHubHTTPError, id_: str) -> None:
    status = error.response.status_code
    if status in (401, 403):
        fail(f"the hub refused access to {id_} (HTTP {status})", _hint_at_token())
    fail(f"the download of {id_} failed (HTTP {status})", "start again later: complete files are kept")


def _unreachable(id_: str, error: BaseException) -> None:
    fail(
        f"{id_} cannot be downloaded: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        "check the network (HF_ENDPOINT, proxy, HF_HUB_OFFLINE), then start again: complete files are kept",
    )


def _hint_at_token() -> str:
    for name in ("HF_TOKEN", "SLMFLOW_HF_TOKEN_SECRET"):
        if os.environ.get(name):
            return f"the token in {name} has no access: accept the terms on its page, or use another token"
    return "accept the terms on its page and set HF_TOKEN to a token of yours"
