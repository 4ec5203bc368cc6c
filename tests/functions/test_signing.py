"""Signatures of callbacks, as we make them and as receivers' libraries verify them."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from svix.webhooks import Webhook, WebhookVerificationError

from functions import signing
from functions.signing import SignatureInvalid, Signer, secret_bytes, verify

NOW = datetime(2026, 11, 25, 12, 0, 30, 500_000, tzinfo=UTC)
BODY = '{"type":"job.succeeded","data":{"name":"Zoë"}}'.encode()
OLD, NEW = signing.new_secret(), signing.new_secret()
KEPT = signing.new_key()
PUBLIC = signing.public_text(KEPT)


def headers(*secrets: str, at: datetime = NOW, body: bytes = BODY) -> dict[str, str]:
    signer = Signer(tuple(secret_bytes(secret) for secret in secrets), (signing.private_key(KEPT),))
    return signer.headers("msg_1", at, body)


def test_the_library_makes_the_same_signature_of_a_message() -> None:
    secret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
    body = b'{"email":"test@example.com","username":"test_user"}'
    at = datetime.fromtimestamp(1674087231, UTC)
    signer = Signer((secret_bytes(secret),))
    made = signer.headers("msg_27UH4WbU6Z5A5EzD8u03UvzRbpk", at, body)
    assert made == {
        "webhook-id": "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
        "webhook-timestamp": "1674087231",
        "webhook-signature": Webhook(secret).sign("msg_27UH4WbU6Z5A5EzD8u03UvzRbpk", at, body.decode()),
    }


@pytest.mark.parametrize("secret", [NEW, "a text, as it stands", "ключ"])
def test_what_we_sign_verifies_with_the_library(secret: str) -> None:
    now = datetime.now(UTC)
    given = headers(secret, OLD, at=now)
    key = secret if secret == NEW else base64.b64encode(secret.encode()).decode()
    for each in (key, OLD):
        Webhook(each).verify(BODY, given)
    with pytest.raises(WebhookVerificationError):
        Webhook(signing.new_secret()).verify(BODY, given)


def test_the_ed25519_signature_verifies_with_the_published_key() -> None:
    given = headers(NEW)
    signature = next(each for each in given["webhook-signature"].split() if each.startswith("v1a,"))
    content = f"msg_1.{given['webhook-timestamp']}.".encode() + BODY
    raw = base64.b64decode(PUBLIC.removeprefix("whpk_"))
    assert len(raw) == 32
    for key in (Ed25519PublicKey.from_public_bytes(raw), load_pem_public_key(signing.public_pem(KEPT).encode())):
        key.verify(base64.b64decode(signature.removeprefix("v1a,")), content)  # type: ignore[call-arg,union-attr]


@pytest.mark.parametrize(("key", "version"), [(NEW, "v1"), (OLD, "v1"), (PUBLIC, "v1a")])
def test_any_of_the_keys_verifies_a_message(key: str, version: str) -> None:
    given = headers(NEW, OLD)
    assert verify(given, BODY, [key], now=NOW) == version
    assert verify(given, BODY, [signing.new_secret(), key], now=NOW + timedelta(seconds=299)) == version


@pytest.mark.parametrize(
    ("change", "body", "words"),
    [
        ({}, BODY + b" ", "no signature"),
        ({"webhook-id": "msg_2"}, BODY, "no signature"),
        ({"webhook-timestamp": "1764072031"}, BODY, "no signature"),
        ({"webhook-signature": ""}, BODY, "no webhook-signature header"),
        ({"webhook-signature": "v1"}, BODY, "no signature"),
        ({"webhook-signature": "v1,=== v1a,AAAA v2,x"}, BODY, "no signature"),
        ({"webhook-timestamp": "soon"}, BODY, "no number"),
        ({"webhook-timestamp": "-1"}, BODY, "no number"),
        ({"webhook-timestamp": "1" * 13}, BODY, "no number"),
        ({"webhook-timestamp": "1664072030"}, BODY, "300 is the most"),
    ],
)
def test_a_message_that_was_changed_or_is_old_is_refused(change: dict[str, str], body: bytes, words: str) -> None:
    at = datetime.fromtimestamp(1764072030, UTC)
    given = headers(NEW, OLD, at=at) | change
    for key in (NEW, PUBLIC):
        with pytest.raises(SignatureInvalid, match=words):
            verify(given, body, [key], now=at)
    assert verify(headers(NEW, at=at), BODY, [NEW], now=None) == "v1"


@pytest.mark.parametrize("key", ["whsec_", "whsec_ü", "whsec_a", "whpk_", "whpk_AAAA", "whpk_?"])
def test_a_key_that_is_none_is_said_to_be(key: str) -> None:
    with pytest.raises(ValueError, match="stands behind"):
        verify(headers(NEW), BODY, [key], now=NOW)
