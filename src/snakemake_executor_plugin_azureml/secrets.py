"""Environment variables of a job are shown to everybody who may see the job: no secret belongs there."""

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from snakemake_interface_common.exceptions import WorkflowError

_SOUNDS_SECRET = re.compile(
    r"TOKEN(?!I[ZS])|SECRET|PASSW(OR)?D|PASSPHRASE|CREDENTIAL|CONN(ECTION)?_?STR"
    r"|(API|ACCESS|ACCOUNT|PRIVATE|SIGNING|STORAGE|SSH)_?KEY"
    # Whole words: MONKEY is no key, SASKIA no signature, PWD alone the working folder.
    r"|(^|[^A-Z])(KEYS?|SAS|PAT|JWT|AUTH)([^A-Z]|$)|[^A-Z]PWD([^A-Z]|$)",
    re.IGNORECASE,
)
# Shapes of secrets, as those who hand them out document them: the name of a variable need not say what it holds.
_LOOKS_SECRET = re.compile(
    r"(?<![A-Za-z0-9])("
    r"hf_[A-Za-z0-9]{20,}|api_org_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"  # GitHub
    r"|gl(pat|dt|rt|cbt|ptt|ft|soat|imt|agent|oas)-[\w-]{16,}"  # GitLab
    r"|(AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])"  # Amazon
    r"|AIza[\w-]{35}|ya29\.[\w-]{20,}"  # Google
    r"|sk-(proj|ant|svcacct|admin|or)-[\w-]{16,}|sk-[A-Za-z0-9]{32,}|[rs]k_(live|test)_\w{10,}"  # OpenAI and others
    r"|xox[a-z]-[\w-]{10,}|xapp-[\w-]{10,}|https://hooks\.slack\.com/services/"  # Slack
    r"|pypi-A[\w-]{30,}|npm_[A-Za-z0-9]{36}|dckr_pat_[\w-]{20,}"  # package registries
    r"|eyJ[\w-]{6,999}\.eyJ[\w-]{2,}"  # JSON Web Token
    r")"
    r"|-----BEGIN [A-Z0-9 ]*PRIVATE KEY|AGE-SECRET-KEY-1"
    r"|://[^\s/?#@:]*:[^\s/?#@]+@"  # a password in an address
    r"|(?i:[?&;]sig=|SharedAccessSignature\s*=|(?<!\w)(Account|SharedAccess)Key\s*=)"  # Azure
    r"|(?i:(?<!\w)(password|pwd|client_secret|access_token|api_?key)\s*=\s*[^\s;&])"
    r"|(?i:(?<!\w)(bearer|basic)\s+(?=\S*\d)[\w.~+/=-]{16,})"  # a header of HTTP
)
_VAULT = re.compile(r"[\w-]+\.(vault\.azure\.(net|cn)|vault\.usgovcloudapi\.net)", re.IGNORECASE)
_EMULATOR = re.compile(r"BlobEndpoint=http://(127\.0\.0\.1|localhost)[:/][^;@]*(;|$)", re.IGNORECASE)
_NUMBER = re.compile(r"[\d.]{1,7}")  # of tokens
_SWITCH = re.compile(r"true|false|yes|no|on|off|none|", re.IGNORECASE)


def check_no_secrets(variables: Mapping[str, str]) -> None:
    """Raise `WorkflowError`, which names no value, for the first variable that seems to hold a secret."""
    for name, value in variables.items():
        if is_secret(name, value):
            raise WorkflowError(
                f"{name} seems to be a secret, and everybody who sees a job of Azure Machine Learning can read its "
                "environment variables; take it out of --envvars, and let jobs read it from Key Vault themselves."
            )


def is_secret(name: str, value: str) -> bool:
    """Return whether a variable holds a secret, by the shape of its value or by its name."""
    if _is_place(value):
        return False
    if _LOOKS_SECRET.search(value):
        return True
    is_setting = _SWITCH.fullmatch(value) or (_NUMBER.fullmatch(value) and "TOKENS" in name.upper())
    return bool(_SOUNDS_SECRET.search(name)) and not is_setting


def _is_place(value: str) -> bool:
    """Return whether a value is a secret's place in a key vault, or a storage emulator's well-known key on loopback."""
    if _EMULATOR.search(value) and value.lower().count("endpoint=") == 1:
        return True
    try:
        url = urlsplit(value)
        host = url.hostname or ""
    except ValueError:
        return False
    is_plain = not url.query and not url.fragment and "@" not in url.netloc
    return url.scheme == "https" and is_plain and url.path.startswith("/secrets/") and bool(_VAULT.fullmatch(host))
