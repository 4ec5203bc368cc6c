"""Signatures of webhooks: the vectors that the senders publish, and everything that must not pass."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from functions.verifying import SCHEMES, Event, Headers, Options, Received, Unverified, hidden_headers, sign, verify
from functions.verifying.digests import MOST_CANDIDATES, from_base64, from_hex
from functions.verifying.twilio import addresses, with_hash

NOW = 1614265330
STANDARD_KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
STANDARD = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": "1614265330",
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
STANDARD_BODY = b'{"test": 2432232314}'
SLACK_BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&"
    b"channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&"
    b"response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&"
    b"trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
)
SLACK_KEY = "8f742231b10e8888abcd99yyyzzz85a5"
TWILIO_BODY = b"CallSid=CA1234567890ABCDE&Caller=%2B14158675309&Digits=1234&From=%2B14158675309&To=%2B18005551212"
TWILIO_URL = "https://mycompany.com/myapp.php?foo=1&bar=2"
FORM = "application/x-www-form-urlencoded"
PRIVATE = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
PUBLIC = PRIVATE.public_key().public_bytes_raw()
HMAC = Options(header="x-sig", algorithm="sha256", encoding="hex", prefix="")
OPTIONS = {"hmac": HMAC}
SECRETS = {"standard": STANDARD_KEY, "discord": PUBLIC.hex()}
SIGNING = {"discord": (b"\x07" * 32).hex()}
SIGNED = [scheme for scheme in SCHEMES if scheme != "none"]


def check(
    scheme: str,
    headers: Any,
    body: bytes,
    *secrets: str,
    now: float = NOW,
    url: str = "https://rgrid/hooks/a/b/c",
    options: Options | None = None,
) -> str | None:
    pairs = list(headers.items() if isinstance(headers, dict) else headers)
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
    received = Received(Headers(raw), body, url, now)
    return verify(scheme, received, [each.encode() for each in secrets], options or OPTIONS.get(scheme, Options()))


def refuse(scheme: str, headers: Any, body: bytes, *secrets: str, **more: Any) -> str:
    with pytest.raises(Unverified) as caught:
        check(scheme, headers, body, *secrets, **more)
    return str(caught.value)


def signed(scheme: str, body: bytes = b'{"id": "e1"}', **more: Any) -> dict[str, str]:
    event = Event("m-1", NOW, body, "https://rgrid/hooks/a/b/c", {"content-type": FORM})
    secret = SIGNING.get(scheme, SECRETS.get(scheme, "secret"))
    return sign(scheme, event, secret.encode(), more.get("options", OPTIONS.get(scheme, Options())))


def own_check(scheme: str, headers: Any, body: bytes = b'{"id": "e1"}', *secrets: str, **more: Any) -> str | None:
    if scheme == "twilio":
        headers = {**dict(headers), "content-type": FORM}
    return check(scheme, headers, body, *(secrets or (SECRETS.get(scheme, "secret"),)), **more)


def test_the_vector_of_standard_webhooks() -> None:
    assert check("standard", STANDARD, STANDARD_BODY, STANDARD_KEY) == "msg_p5jXN8AQM9LWM0D4loKWxJek"
    svix = {name.replace("webhook-", "svix-"): value for name, value in STANDARD.items()}
    assert check("standard", svix, STANDARD_BODY, STANDARD_KEY) == "msg_p5jXN8AQM9LWM0D4loKWxJek"
    assert check("gitlab", STANDARD, STANDARD_BODY, STANDARD_KEY) == "msg_p5jXN8AQM9LWM0D4loKWxJek"


@pytest.mark.parametrize(
    ("secret", "body", "digest"),
    [
        (
            "It's a Secret to Everybody", b"Hello, World!",
            "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
        ),
        ("mysecret", b'{"foo":"bar"}', "4864d2759938a15468b5df9ade20bf161da9b4f737ea61794142f3484236bda3"),
    ],
)  # fmt: skip
def test_the_vectors_of_github(secret: str, body: bytes, digest: str) -> None:
    headers = {"X-Hub-Signature-256": f"sha256={digest}", "X-GitHub-Delivery": "d-1"}
    assert check("github", headers, body, secret) == "d-1"
    assert check("github", {"X-HUB-SIGNATURE-256": f"sha256={digest.upper()}"}, body, secret) is None


def test_the_vector_of_slack() -> None:
    headers = {
        "X-Slack-Signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
        "X-Slack-Request-Timestamp": "1531420618",
    }
    check("slack", headers, SLACK_BODY, SLACK_KEY, now=1531420618)
    refuse("slack", headers, SLACK_BODY + b"x", SLACK_KEY, now=1531420618)


def test_the_vector_of_twilio() -> None:
    headers = {"X-Twilio-Signature": "RSOYDt4T1cUTdK1PDd93/VVr8B8=", "Content-Type": FORM}
    check("twilio", headers, TWILIO_BODY, "12345", url=TWILIO_URL)
    check("twilio", headers, TWILIO_BODY, "12345", url=TWILIO_URL.replace(".com", ".com:443"))
    refuse("twilio", headers, TWILIO_BODY, "12345", url=TWILIO_URL.replace("https", "http"))
    refuse("twilio", headers, TWILIO_BODY + b"&Extra=1", "12345", url=TWILIO_URL)


def test_twilio_counts_equal_values_of_a_field_once_and_orders_by_name() -> None:
    text = TWILIO_URL + "A1" + "A2" + "b3"
    signature = base64.b64encode(hmac.digest(b"12345", text.encode(), "sha1")).decode()
    headers = {"x-twilio-signature": signature, "content-type": FORM}
    check("twilio", headers, b"b=3&A=2&A=1&A=2", "12345", url=TWILIO_URL)


def test_twilio_binds_a_json_body_by_its_hash_in_the_address() -> None:
    body = b'{"a": 1}'
    url = with_hash(TWILIO_URL, body)
    headers = sign("twilio", Event("i", NOW, body, url, {"content-type": "application/json"}), b"12345", Options())
    headers["content-type"] = "application/json"
    assert check("twilio", headers, body, "12345", url=url) == "i"
    assert "hash" in refuse("twilio", headers, b'{"a": 2}', "12345", url=url)
    plain = sign("twilio", Event("i", NOW, body, TWILIO_URL, {}), b"12345", Options())
    assert "no form" in refuse("twilio", plain, body, "12345", url=TWILIO_URL)
    refuse("twilio", headers, body, "12345", url=f"{url}&bodySHA256={hashlib.sha256(body).hexdigest()}")
    refuse("twilio", headers | {"content-type": FORM}, b"", "12345", url=url)


@pytest.mark.parametrize(
    ("url", "both"),
    [
        ("https://a.b/c?d", ["https://a.b/c?d", "https://a.b:443/c?d"]),
        ("https://a.b:443/c", ["https://a.b/c", "https://a.b:443/c"]),
        ("http://a.b:8080/c", ["http://a.b:8080/c", "http://a.b:8080/c"]),
        ("http://[::1]/c", ["http://[::1]/c", "http://[::1]:80/c"]),
    ],
)
def test_an_address_is_tried_with_and_without_its_usual_port(url: str, both: list[str]) -> None:
    assert list(addresses(url)) == both


def test_stripe_takes_any_of_its_v1_signatures_and_no_v0() -> None:
    body, good = b'{"id": "evt_1"}', ""
    good = hmac.digest(b"whsec_s", b"1614265330." + body, "sha256").hex()
    check("stripe", {"stripe-signature": f"t=1614265330,v1={'0' * 64},v1={good},v0=x"}, body, "whsec_s")
    refuse("stripe", {"stripe-signature": f"t=1614265330,v0={good}"}, body, "whsec_s")
    refuse("stripe", {"stripe-signature": f"t=1614265330,t=1614265330,v1={good}"}, body, "whsec_s")
    refuse("stripe", {"stripe-signature": f"v1={good}"}, body, "whsec_s")


def test_shopify_and_its_id() -> None:
    signature = base64.b64encode(hmac.digest(b"shpss", b"{}", "sha256")).decode()
    headers = {"X-Shopify-Hmac-SHA256": signature, "X-Shopify-Webhook-Id": "w-1"}
    assert check("shopify", headers, b"{}", "shpss") == "w-1"


def test_gitlabs_token_and_its_id() -> None:
    headers = {"X-Gitlab-Token": "tok", "Idempotency-Key": "k-1"}
    assert check("gitlab", headers, b"{}", "tok") == "k-1"
    refuse("gitlab", headers, b"{}", "tok2")
    # A signature that does not fit is not made up for by a token.
    refuse("gitlab", {**headers, **STANDARD}, b"{}", "tok")


def test_a_public_key_verifies_standard_webhooks_and_discord() -> None:
    message = b"m.1614265330.{}"
    signature = base64.b64encode(PRIVATE.sign(message)).decode()
    headers = {"webhook-id": "m", "webhook-timestamp": "1614265330", "webhook-signature": f"v1a,{signature}"}
    key = "whpk_" + base64.b64encode(PUBLIC).decode()
    assert check("standard", headers, b"{}", key) == "m"
    refuse("standard", headers, b"{} ", key)
    refuse("standard", headers, b"{}", STANDARD_KEY)
    # The public key is known to everybody: it must not serve as a key of a MAC.
    mac = base64.b64encode(hmac.digest(PUBLIC, message, "sha256")).decode()
    refuse("standard", {**headers, "webhook-signature": f"v1,{mac}"}, b"{}", key)
    check("discord", signed("discord"), b'{"id": "e1"}', PUBLIC.hex())
    refuse("discord", signed("discord"), b'{"id": "e2"}', PUBLIC.hex())
    assert "no public key" in refuse("discord", signed("discord"), b'{"id": "e1"}', "not hex")


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha384", "sha512"])
@pytest.mark.parametrize("encoding", ["hex", "base64"])
def test_an_hmac_in_any_header_algorithm_encoding_and_prefix(algorithm: str, encoding: str) -> None:
    options = Options("x-any", algorithm, encoding, "sig:")
    headers = sign("hmac", Event("i", NOW, b"{}", ""), b"key", options)
    assert headers["x-any"].startswith("sig:")
    check("hmac", headers, b"{}", "key", options=options)
    refuse("hmac", headers, b"{ }", "key", options=options)
    refuse("hmac", {"x-any": headers["x-any"][4:]}, b"{}", "key", options=options)
    other = Options("x-any", algorithm, "base64" if encoding == "hex" else "hex", "sig:")
    refuse("hmac", headers, b"{}", "key", options=other)


def test_a_token_as_a_bearer_or_in_a_header_of_its_own() -> None:
    check("token", {"Authorization": "bearer  tok"}, b"", "tok")
    refuse("token", {"Authorization": "Basic tok"}, b"", "tok")
    refuse("token", {"Authorization": "Bearer tok2"}, b"", "tok")
    own = Options(header="x-token", prefix="Token ")
    check("token", {"X-Token": "Token tok"}, b"", "tok", options=own)
    refuse("token", {"X-Token": "tok"}, b"", "tok", options=own)
    refuse("token", {"Authorization": "Bearer tok"}, b"", "tok", options=own)


@pytest.mark.parametrize("scheme", SIGNED)
def test_what_is_signed_here_is_verified_here(scheme: str) -> None:
    own_check(scheme, signed(scheme))


@pytest.mark.parametrize("scheme", [each for each in SIGNED if each not in ("gitlab", "token")])
def test_one_bit_of_the_body_is_enough(scheme: str) -> None:
    refuse_own = signed(scheme)
    with pytest.raises(Unverified):
        own_check(scheme, refuse_own, b'{"id": "e0"}')


@pytest.mark.parametrize("scheme", [each for each in SIGNED if each != "discord"])
def test_while_a_secret_is_rotated_the_old_and_the_new_one_are_good(scheme: str) -> None:
    other = "whsec_" + base64.b64encode(b"o" * 24).decode() if scheme == "standard" else "other"
    good = SECRETS.get(scheme, "secret")
    own_check(scheme, signed(scheme), b'{"id": "e1"}', other, good)
    own_check(scheme, signed(scheme), b'{"id": "e1"}', good, other)
    with pytest.raises(Unverified):
        own_check(scheme, signed(scheme), b'{"id": "e1"}', other, other + ("" if scheme == "standard" else "x"))


@pytest.mark.parametrize("scheme", SIGNED)
def test_headers_are_needed_once_and_not_twice(scheme: str) -> None:
    good = signed(scheme)
    own = {"webhook-id", "idempotency-key", "x-github-delivery", "x-shopify-webhook-id", "i-twilio-idempotency-token"}
    needed = [
        name for name in good
        if name not in own | {"x-github-event", "x-gitlab-event", "x-shopify-topic"} or scheme == "standard"
    ]  # fmt: skip
    for name in needed:
        for broken in ({**good, name: ""}, {each: value for each, value in good.items() if each != name}):
            with pytest.raises(Unverified):
                own_check(scheme, broken)
        if scheme != "twilio":
            refuse(scheme, [*good.items(), (name, good[name])], b'{"id": "e1"}', SECRETS.get(scheme, "secret"))
    assert needed


@pytest.mark.parametrize("scheme", ["standard", "stripe", "slack", "discord"])
def test_a_timestamp_is_good_for_five_minutes_both_ways(scheme: str) -> None:
    for off in (-300, -299, 299, 300):
        own_check(scheme, signed(scheme), now=NOW + off)
    for off in (-301, 301, -(10**9), 10**9):
        with pytest.raises(Unverified, match="300 s away"):
            own_check(scheme, signed(scheme), now=NOW + off)


@pytest.mark.parametrize(
    "text", ["1614265330.9", "-1614265330", " 1614265330 ", "1614265330\t", "1e9", "NaN", "١٦١٤٢٦٥٣٣٠", "0x60", "1" * 13]
)
def test_a_timestamp_is_digits_and_nothing_else(text: str) -> None:
    sent = text.encode().decode("latin-1")
    mac = hmac.digest(base64.b64decode(STANDARD_KEY[6:]), f"m.{sent}.".encode("latin-1"), "sha256")
    headers = {
        "webhook-id": "m", "webhook-timestamp": sent,
        "webhook-signature": f"v1,{base64.b64encode(mac).decode()}",
    }  # fmt: skip
    assert "timestamp" in refuse("standard", headers, b"", STANDARD_KEY)


@pytest.mark.parametrize(
    "signature",
    [
        "v1", "v1,", ",", "v1,,", STANDARD["webhook-signature"][3:], STANDARD["webhook-signature"] + ",x",
        STANDARD["webhook-signature"].replace("v1,", "v2,"), STANDARD["webhook-signature"].replace("v1,", "v1a,"),
        STANDARD["webhook-signature"] + "!", STANDARD["webhook-signature"].replace("OE=", "OE"),
        STANDARD["webhook-signature"].replace("OE=", "OF="), "v1, " + STANDARD["webhook-signature"][3:],
        "v1,é", "\t" + STANDARD["webhook-signature"], STANDARD["webhook-signature"].replace("/", "_"),
    ],
)  # fmt: skip
def test_a_signature_is_written_in_one_way(signature: str) -> None:
    refuse("standard", {**STANDARD, "webhook-signature": signature}, STANDARD_BODY, STANDARD_KEY)


def test_signatures_stand_beside_those_of_other_versions_and_keys_up_to_a_number() -> None:
    bad = "v1," + base64.b64encode(b"x" * 32).decode()
    several = f"v9,abc nonsense {bad} {STANDARD['webhook-signature']}"
    check("standard", {**STANDARD, "webhook-signature": several}, STANDARD_BODY, STANDARD_KEY)
    many = " ".join([bad] * MOST_CANDIDATES + [STANDARD["webhook-signature"]])
    reason = refuse("standard", {**STANDARD, "webhook-signature": many}, STANDARD_BODY, STANDARD_KEY)
    assert "more than 32" in reason
    header = {"stripe-signature": "t=1614265330," + ",".join(["v1=" + "0" * 64] * 1000)}
    assert "more than 32" in refuse("stripe", header, b"{}", "s")


def test_a_body_need_not_be_text() -> None:
    body = b"\xff\x00\xfe"
    for scheme in ("github", "stripe", "slack", "shopify", "standard", "discord", "hmac", "token"):
        own_check(scheme, signed(scheme, body), body)
    with pytest.raises(Unverified, match="form"):
        own_check("twilio", {"x-twilio-signature": "RSOYDt4T1cUTdK1PDd93/VVr8B8="}, body)


@pytest.mark.parametrize("scheme", SIGNED)
def test_without_a_secret_nothing_passes(scheme: str) -> None:
    assert "does not have the secret" in refuse(scheme, signed(scheme), b'{"id": "e1"}')


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_!!", "whsec_AAAA", "whpk_AAAA", "plain words", "é"])
def test_a_standard_secret_that_is_no_key_verifies_nothing(secret: str) -> None:
    assert "whsec_" in refuse("standard", STANDARD, STANDARD_BODY, secret)


def test_hex_and_base64_have_one_reading() -> None:
    assert from_hex("0aFF") == from_hex("0AfF") == b"\x0a\xff"
    assert [from_hex(text) for text in ("0a f", "0", "", "0x0a", "0a\n", "0á")] == [None] * 6
    assert from_base64("AA==") == b"\0"
    assert [from_base64(text) for text in ("AA", "AB==", "AA==\n", "A A=", "é", "AA==AA==", "-_8=")] == [None] * 7


def test_headers_with_secrets_are_known() -> None:
    assert {"authorization", "cookie", "x-gitlab-token"} <= hidden_headers("github", Options())
    assert "x-token" in hidden_headers("token", Options(header="x-token"))
    assert "x-sig" not in hidden_headers("hmac", HMAC)
