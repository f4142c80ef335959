"""Who this process is toward Azure: a person after `az login`, or the managed identity of a job's compute."""

import logging
import os
import re
from functools import cache
from typing import Any

from lib.core.cli import extract_first_line, fail

_SECRET = re.compile(r"((?i:https)://[\w.-]+(?::\d+)?)/secrets/([\w-]+)(?:/([\w-]+))?/?")

for _name in ("azure", "msal"):
    logging.getLogger(_name).setLevel(logging.ERROR)  # each attempt of each kind of identity, at INFO


@cache
def get_credential() -> Any:
    """Return a credential for azure's clients (`DefaultAzureCredential`).

    Azure Machine Learning names an identity that was chosen for the job in DEFAULT_IDENTITY_CLIENT_ID.
    """
    from azure.identity import DefaultAzureCredential

    chosen = os.environ.get("DEFAULT_IDENTITY_CLIENT_ID") or os.environ.get("AZURE_CLIENT_ID")
    return DefaultAzureCredential(managed_identity_client_id=chosen)


@cache
def read_vault_secret(url: str) -> str:
    """Return a secret of Key Vault by its address, https://VAULT.vault.azure.net/secrets/NAME, read once.

    Raises `UserError` when it is no such address, when there is no such secret, or when access is refused.
    """
    from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
    from azure.keyvault.secrets import SecretClient

    parts = _SECRET.fullmatch(url)
    if parts is None:
        # Not repeated: it may be the secret itself.
        fail("this is not a Key Vault secret URL", "write https://VAULT.vault.azure.net/secrets/NAME")
    vault, name, version = parts.groups()
    try:
        value = SecretClient(vault, get_credential()).get_secret(name, version).value
    except ResourceNotFoundError:
        fail(f"{vault} has no secret {name}", "check its name")
    except ClientAuthenticationError as error:
        fail(
            f"{vault} could not authenticate this program ({extract_first_line(error)})",
            "run: az login; in jobs, give the compute an identity",
        )
    except HttpResponseError as error:
        fail(
            f"{vault} refuses to give the secret ({extract_first_line(error)})",
            "this identity needs the role Key Vault Secrets User",
        )
    except AzureError as error:
        fail(f"{vault} does not answer ({extract_first_line(error)})", "check its name and the network")
    except ValueError as error:  # it asks for a token in another way, or for one of another service
        fail(f"{vault} does not answer as a key vault does ({extract_first_line(error)})", "check its name")
    return value or fail(f"the secret {name} of {vault} is empty", "write it again")
