"""An error is copied into tickets: what opens a door in an address is dots, everything else stays."""

import pytest

from lib.core.escaping import hide_secrets

SECRET = "planted-5ecret"


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{SECRET}@host/path", f"azuremuser:{SECRET}@l://datastores/store", f"'user:{SECRET}@host:22'",
        f"az://box/rows?sv=1&sig={SECRET}&se=2", f"AccountKey={SECRET};EndpointSuffix=x", f"https://:{SECRET}@host", f"azureml://models/Phi:x/veruser:{SECRET}@ions/11",
    ],
)  # fmt: skip
def test_no_login_signature_or_key_is_repeated(text):
    assert SECRET in text
    assert SECRET not in hide_secrets(f"error: config.yaml:1: data: {text} is no address")


@pytest.mark.parametrize(
    "text", ["error: rows.csv:17: mail@host.org: no label", "a: b@c", "C:/x@y", "sigma=3", "az://box/a@b"]
)
def test_other_texts_stay(text):
    assert hide_secrets(text) == text
