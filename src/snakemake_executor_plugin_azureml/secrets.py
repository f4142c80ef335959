"""Environment variables of a job are shown to everybody who may see the job: no secret belongs there."""

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from snakemake_interface_common.exceptions import WorkflowError

_SOUNDS_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL|CONNECTION_?STRING|SAS", re.IGNORECASE)
_LOOKS_SECRET = re.compile(r"AccountKey=|SharedAccessSignature=|[?&]sig=|^hf_[A-Za-z0-9]{20,}|^eyJ[\w-]+\.eyJ")


def check_no_secrets(variables: Mapping[str, str]) -> None:
    """Raises `WorkflowError`, which names no value, for the first variable that seems to hold a secret."""
    for name, value in variables.items():
        if (_SOUNDS_SECRET.search(name) or _LOOKS_SECRET.search(value)) and not _is_harmless(value):
            raise WorkflowError(
                f"{name} seems to be a secret, and everybody who sees a job of Azure Machine Learning can read its "
                "environment variables; take it out of --envvars, and let jobs read it from Key Vault themselves."
            )


def _is_harmless(value: str) -> bool:
    """Where a secret lies is none; nor is the well-known key of a storage emulator on loopback."""
    if re.search(r"BlobEndpoint=http://(127\.0\.0\.1|localhost)[:/]", value):
        return True
    try:
        url = urlsplit(value)
    except ValueError:
        return False
    return url.scheme == "https" and not url.query and not url.username
