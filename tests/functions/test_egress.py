"""Which URLs may be called: SECURITY §4.4, row by row, at registration and at send. No network is needed."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Sequence
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.egress import (
    EgressFailed,
    EgressPolicy,
    EgressRefused,
    Resolver,
    check_url,
    exchange,
    is_public,
    lookup,
    open_download,
    origin_of,
)
from functions.egress.lookup import vetted_addresses

PUBLIC = EgressPolicy()
DEVELOPMENT = EgressPolicy(allow=("10.0.0.0/8", "127.0.0.1", "[::1]:9000", "minio", "hooks.test:8000"))

FORBIDDEN_HOSTS = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "100.64.0.1", "100.127.255.255", "100.100.100.200", "169.254.169.254", "168.63.129.16", "192.0.0.8",
    "192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "198.19.255.255", "192.88.99.1", "224.0.0.1",
    "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "[::]", "[::1]", "[fe80::1]", "[febf::1]", "[fec0::1]", "[fc00::1]", "[fd00:ec2::254]", "[ff02::1]",
    "[64:ff9b::7f00:1]", "[64:ff9b::8.8.8.8]", "[64:ff9b:1::1]", "[2002:7f00:1::]", "[2002:a9fe:a9fe::]",
    "[2001:0:7f00:1::]", "[2001:db8::1]", "[2001:2::1]", "[2001:10::1]", "[3fff::1]", "[3ffe::1]",
    "[5f00::1]",
    "[100::1]", "[::127.0.0.1]", "[::a9fe:a9fe]", "[0:0:0:0:0:ffff:7f00:1]", "[::ffff:127.0.0.1]",
    "[::ffff:8.8.8.8]", "[::ffff:a9fe:a9fe]",
    "localhost", "LOCALHOST", "localhost.", "LOCALHOST.", "a.localhost", "printer.local",
    "metadata.google.internal",
    "router.home.arpa", "minio", "kubernetes",
]  # fmt: skip

UNREADABLE_HOSTS = [
    # getaddrinfo reads these as addresses; each other parser reads something else.
    "0", "127.1", "127.0.1", "2130706433", "017700000001", "0x7f000001", "0x7f.0.0.1", "0x7f.1",
    "0177.0.0.1",
    "127.000.000.001", "2852039166", "0xa9fea9fe", "169.254.43518", "0251.0376.0251.0376", "1.2.3.4.5",
    "256.1.1.1",
    "8.8.8.8.", "169.254.169.254.", "08.8.8.8", "8.8.8", "0x", "0x.0x.0x.0x", "example.1", "1.example.0x1f",
    "①②⑦.⓪.⓪.①", "127。0。0。1", "１２７.０.０.１", "127.0.0．1",
    # Not names.
    "", ".", "..", "a..b", ".example.com", "example.com..", "-a.example", "a-.example", "ex ample.com",
    "exa\tmple.com",
    "example.com\n", "example.com\r\nHost: x", "example.com%00.evil", "example.com%2f.evil",
    "%31%32%37.0.0.1",
    "exam\x00ple.com", "example.com\u200b", "example.com\u202e", "example.com\u3000", "exa\u00admple.com",
    "a" * 64 + ".example",
    ".".join(["a" * 63] * 4) + ".example", "example.com;x", "example.com,evil.com", "exämple.com\ud800",
    "a*b.example",
    "example.com:", "example.com:x", "example.com:-1", "example.com:80:80", "example.com:４４３", "::1",
    "fe80::1",
    # Addresses in brackets that are none.
    "[127.0.0.1]", "[]", "[::1", "::1]", "[::g]", "[::1]x", "[fe80::1%25eth0]", "[fe80::1%eth0]",
    "[v1.x]", "[[::1]]",
    "[::1].example.com", "[2606:4700::1111]:", "[2606:4700:::1111]", "[example.com]",
    # A user name can look like the host.
    "user@example.com", "user:pw@example.com", "@example.com", "8.8.8.8@127.0.0.1",
    "example.com:80@127.0.0.1",
    # Browsers take a backslash for a slash.
    "example.com\\@127.0.0.1", "127.0.0.1\\.example.com", "\\\\127.0.0.1",
]  # fmt: skip

ALLOWED = {
    "https://hooks.example.com/a?b=c": "https://hooks.example.com/a?b=c",
    "https://example.com": "https://example.com/",
    "HTTPS://EXAMPLE.com./x": "https://example.com/x",
    "https://example.com:443/": "https://example.com/",
    "https://example.com:8443/": "https://example.com:8443/",
    "https://example.com?b=c": "https://example.com/?b=c",
    "https://example.com/a#part": "https://example.com/a",
    "https://example.com/#@127.0.0.1/": "https://example.com/",
    "https://example.com/ü?q=日": "https://example.com/%C3%BC?q=%E6%97%A5",
    "https://example.com/a%2Fb?c=%00": "https://example.com/a%2Fb?c=%00",
    "https://example.com/a\"<>`{|}^b": "https://example.com/a%22%3C%3E%60%7B%7C%7D%5Eb",
    "https://example.com/user@127.0.0.1": "https://example.com/user@127.0.0.1",
    "https://172.32.0.1/": "https://172.32.0.1/",
    "https://8.8.8.8:8443/x": "https://8.8.8.8:8443/x",
    "https://[2606:4700::1111]/": "https://[2606:4700::1111]/",
    "https://[2606:4700:0:0::1111]:8443/": "https://[2606:4700::1111]:8443/",
    "https://bücher.example/": "https://xn--bcher-kva.example/",
    "https://BÜCHER.example/": "https://xn--bcher-kva.example/",
    "https://bu\u0308cher.example/": "https://xn--bcher-kva.example/",
    "https://xn--bcher-kva.example/": "https://xn--bcher-kva.example/",
    "https://faß.example/": "https://xn--fa-hia.example/",
    "https://аpple.example/": "https://xn--pple-43d.example/",
    "https://a_b.example/": "https://a_b.example/",
    "https://1.example/": "https://1.example/",
    "https://0x7f.example/": "https://0x7f.example/",
}  # fmt: skip


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", FORBIDDEN_HOSTS + UNREADABLE_HOSTS)
def test_a_forbidden_host_is_refused_with_either_scheme(scheme: str, host: str) -> None:
    with pytest.raises(EgressRefused) as caught:
        check_url(f"{scheme}://{host}/", PUBLIC)
    assert caught.value.code == "url_refused"


@pytest.mark.parametrize("host", UNREADABLE_HOSTS)
def test_what_cannot_be_read_is_refused_whatever_an_operator_allows(host: str) -> None:
    everything = EgressPolicy(allow=("0.0.0.0/0", "::/0", "example.com", "localhost"))
    with pytest.raises(EgressRefused):
        check_url(f"https://{host}/", everything)


@pytest.mark.parametrize("host", FORBIDDEN_HOSTS + UNREADABLE_HOSTS)
async def test_what_is_refused_at_registration_is_refused_at_send_without_a_look_up(host: str) -> None:
    async def resolver(_host: str, _port: int) -> Sequence[str]:
        raise AssertionError("it was looked up")

    with pytest.raises(EgressRefused):
        await exchange(PUBLIC, "POST", f"https://{host}/", {}, b"", resolver=resolver)
    with pytest.raises(EgressRefused):
        async with open_download(PUBLIC, f"https://{host}/", resolver=resolver):
            pass


@pytest.mark.parametrize(
    "url",
    [
        "", "https", "https:", "https:/", "https://", "https:///x", "http:///x", "//example.com/", "/x",
        "example.com",
        "https:example.com", "https:/example.com", " https://example.com/", "https://example.com/ ",
        "https://example.com/a b", "https://example.com/a\tb", "https://example.com/a\nb",
        "https://example.com/\x00",
        "https://example.com/\x7f", "https://example.com/\ud800", "ht\ttps://example.com/",
        "https://example.com/\\x",
        "ftp://example.com/", "file:///etc/passwd", "file://example.com/x", "gopher://example.com/",
        "dict://example.com/",
        "unix:/run/docker.sock", "data:text/plain,x", "javascript:alert(1)", "ws://example.com/",
        "httpss://example.com/",
        "http+unix://x/", "jar:https://example.com/", "url:https://example.com/",
        "https://example.com/" + "x" * 8192, "https://" + "ü" * 2000,
    ],
)  # fmt: skip
def test_what_is_no_url_of_the_web_is_refused(url: str) -> None:
    for policy in (PUBLIC, DEVELOPMENT):
        with pytest.raises(EgressRefused):
            check_url(url, policy)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("mark", ["#", "?", "/", "#?/", "?#"])
def test_the_host_ends_where_path_query_or_fragment_begins(scheme: str, mark: str) -> None:
    with pytest.raises(EgressRefused):
        check_url(f"{scheme}://127.0.0.1{mark}@example.com/", PUBLIC)
    assert check_url(f"https://example.com{mark}@127.0.0.1/", PUBLIC).host == "example.com"


@pytest.mark.parametrize(
    "port", [0, 1, 21, 22, 25, 465, 587, 2375, 5432, 6379, 9000, 10250, 65535, 65536, 99999]
)
def test_only_ports_of_the_web_may_be_called(port: int) -> None:
    with pytest.raises(EgressRefused) as caught:
        check_url(f"https://example.com:{port}/", PUBLIC)
    assert caught.value.reason == "port"


def test_a_number_of_many_digits_is_no_port() -> None:
    with pytest.raises(EgressRefused):
        check_url(f"https://example.com:{'4' * 5000}/", PUBLIC)


def test_plain_http_is_refused_unless_an_operator_allows_the_target() -> None:
    with pytest.raises(EgressRefused) as caught:
        check_url("http://example.com/", PUBLIC)
    assert caught.value.reason == "scheme"
    assert check_url("http://hooks.test:8000/", DEVELOPMENT).trusted


@pytest.mark.parametrize(("url", "called"), ALLOWED.items())
def test_a_public_url_is_allowed_and_called_in_one_spelling(url: str, called: str) -> None:
    target = check_url(url, PUBLIC)
    assert target.url == called
    assert check_url(target.url, PUBLIC) == target


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Example.com/a", "https://example.com:443"),
        ("http://example.com/b?c", "http://example.com:80"),
        ("https://[2606:4700::1111]:8443/", "https://[2606:4700::1111]:8443"),
        ("not a url", "not a url"),
    ],
)
def test_urls_of_one_server_have_one_origin(url: str, origin: str) -> None:
    assert origin_of(url) == origin


@given(st.text(max_size=60), st.text(alphabet="0123456789.x[]:%@\\/#?abf。①", max_size=30))
def test_no_text_is_more_than_refused(text: str, host: str) -> None:
    for url in (text, f"https://{text}", f"https://{host}/", f"https://example.com/{text}"):
        try:
            target = check_url(url, PUBLIC)
        except EgressRefused:
            continue
        assert target.url.isascii()
        assert target.literal is None or is_public(target.literal)
        assert not any(c.isspace() for c in target.url)


@given(st.ip_addresses())
def test_an_address_is_allowed_as_a_literal_exactly_if_it_is_public(address: object) -> None:
    found = ip_address(str(address))
    url = f"https://[{found}]/" if found.version == 6 else f"https://{found}/"
    if is_public(found):
        assert check_url(url, PUBLIC).literal == found
    else:
        with pytest.raises(EgressRefused):
            check_url(url, PUBLIC)


# What an operator allows and denies


@pytest.mark.parametrize(
    "url",
    [
        "http://10.1.2.3/", "https://10.1.2.3:9999/", "http://127.0.0.1:31337/", "http://[::1]:9000/",
        "http://minio:9000/",
        "http://MINIO:1/", "https://minio/", "http://hooks.test:8000/",
    ],
)  # fmt: skip
def test_an_allowed_target_may_be_private_plain_and_on_any_port(url: str) -> None:
    assert check_url(url, DEVELOPMENT).trusted


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.2/", "http://11.0.0.1/", "https://192.168.0.1/", "http://[::1]:9001/",
        "http://[::1]/",
        "http://2130706433/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:10.0.0.1]/",
        "http://user@minio/",
    ],
)  # fmt: skip
def test_what_is_beside_an_allowed_target_stays_refused(url: str) -> None:
    with pytest.raises(EgressRefused):
        check_url(url, DEVELOPMENT)


def test_an_entry_with_a_port_opens_no_other_port() -> None:
    assert not check_url("https://hooks.test:8443/", EgressPolicy(allow=("hooks.test:8000",))).trusted
    with pytest.raises(EgressRefused):
        check_url("http://hooks.test:8001/", EgressPolicy(allow=("hooks.test:8000",)))


@pytest.mark.parametrize(
    "entry",
    [
        "",
        " ",
        "10.0.0.1/8",
        "10.0.0.0/33",
        "300.1.1.1",
        "127.0.0.1:0",
        "host:99999",
        "a b",
        "http://x",
        "host/",
        "*.x",
        "1",
    ],
)
def test_an_entry_that_means_nothing_is_an_error_at_once(entry: str) -> None:
    with pytest.raises(ValueError):
        EgressPolicy(allow=(entry,))
    with pytest.raises(ValueError):
        EgressPolicy(deny=(entry,))


def test_a_denied_target_is_refused_although_it_is_public_or_allowed() -> None:
    ours = EgressPolicy(
        allow=("1.1.1.0/24", "api.example"), deny=("1.1.1.1", "8.8.8.0/24", "api.example", "x.example:8443")
    )
    for url in ("https://1.1.1.1/", "https://8.8.8.8/", "https://api.example/", "https://x.example:8443/"):
        with pytest.raises(EgressRefused):
            check_url(url, ours)
    assert check_url("https://1.1.1.2/", ours).trusted
    assert check_url("https://x.example/", ours)


# What a name leads to


def answering(*addresses: str) -> Resolver:
    async def resolver(_host: str, _port: int) -> Sequence[str]:
        return addresses

    return resolver


async def vetted(url: str, policy: EgressPolicy, *addresses: str) -> list[str]:
    found = await vetted_addresses(check_url(url, policy), policy, answering(*addresses))
    return [str(address) for address in found]


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["10.0.0.1", "8.8.8.8"], ["8.8.8.8", "fe80::1%1"],
        ["::1"], ["169.254.169.254"],
        ["8.8.8.8", "::ffff:8.8.8.8"], ["64:ff9b::808:808"], ["0.0.0.0"], ["2606:4700::1111", "fd00::1"],
        [f"8.8.{n // 256}.{n % 256}" for n in range(500)],
    ],
)  # fmt: skip
async def test_one_forbidden_answer_refuses_the_name(addresses: list[str]) -> None:
    with pytest.raises(EgressRefused) as caught:
        await vetted("https://example.com/", PUBLIC, *addresses)
    assert not any(address in caught.value.message for address in addresses)


async def test_all_public_answers_are_vetted_ipv4_first() -> None:
    found = await vetted("https://example.com/", PUBLIC, "2606:4700::1111", "8.8.8.8", "1.1.1.1", "8.8.8.8")
    assert found == ["1.1.1.1", "8.8.8.8", "2606:4700::1111"]


async def test_a_name_may_lead_into_an_allowed_network_and_nowhere_else() -> None:
    assert await vetted("http://nas:9000/", DEVELOPMENT, "10.0.0.5") == ["10.0.0.5"]
    assert await vetted("http://localhost:9000/", DEVELOPMENT, "127.0.0.1", "::1") == ["127.0.0.1", "::1"]
    assert await vetted("https://example.com/", DEVELOPMENT, "8.8.8.8") == ["8.8.8.8"]
    for url, address in [
        ("http://example.com/", "8.8.8.8"),
        ("https://example.com:9000/", "8.8.8.8"),
        ("https://nas/", "8.8.8.8"),
        ("https://example.com/", "192.168.0.1"),
        ("http://localhost:9001/", "::1"),
    ]:
        with pytest.raises(EgressRefused):
            await vetted(url, DEVELOPMENT, address)


async def test_an_allowed_host_may_have_any_address_but_a_denied_one() -> None:
    policy = EgressPolicy(allow=("minio",), deny=("10.0.0.9",))
    assert await vetted("http://minio:9000/", policy, "192.168.0.1", "127.0.0.1") == [
        "127.0.0.1",
        "192.168.0.1",
    ]
    with pytest.raises(EgressRefused):
        await vetted("http://minio:9000/", policy, "192.168.0.1", "10.0.0.9")


async def test_a_name_that_leads_to_our_own_address_is_refused() -> None:
    with pytest.raises(EgressRefused):
        await vetted("https://example.com/", EgressPolicy(deny=("8.8.8.8",)), "8.8.8.8")


async def test_a_name_without_an_address_fails_and_may_be_tried_again() -> None:
    async def nothing(_host: str, _port: int) -> Sequence[str]:
        raise OSError("no such host")

    for resolver in (nothing, answering(), answering("not an address")):
        with pytest.raises(EgressFailed) as caught:
            await exchange(PUBLIC, "POST", "https://example.com/", {}, b"", resolver=resolver)
        assert caught.value.kind == "dns"


async def test_a_look_up_that_hangs_fails_after_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hanging(_host: str, _port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(lookup, "RESOLVE_S", 0.05)
    with pytest.raises(EgressFailed) as caught:
        await exchange(PUBLIC, "POST", "https://example.com/", {}, b"", resolver=hanging)
    assert caught.value.kind == "dns"


async def test_the_system_resolver_knows_localhost_and_not_a_name_that_cannot_be() -> None:
    assert "127.0.0.1" in await lookup.system_resolver("localhost", 80)
    with pytest.raises(OSError):
        await lookup.system_resolver("name.invalid", 80)


async def test_hanging_look_ups_are_bounded_and_hold_no_shared_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()

    def hanging(*_: object, **__: object) -> list[object]:
        release.wait(20)
        raise OSError("the name server did not answer")

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    monkeypatch.setattr(lookup, "MOST_LOOKUPS", 8)
    monkeypatch.setattr(lookup, "RESOLVE_S", 0.1)
    started = time.monotonic()
    failures = await asyncio.gather(
        *(exchange(PUBLIC, "POST", f"https://h{n}.example/", {}, b"") for n in range(20)),
        return_exceptions=True,
    )
    assert {failure.kind for failure in failures if isinstance(failure, EgressFailed)} == {"dns"}
    assert len(failures) == 20
    assert await asyncio.to_thread(lambda: "free") == "free"
    assert time.monotonic() - started < 5
    assert lookup._lookups == 8
    release.set()
    async with asyncio.timeout(5):
        while lookup._lookups:
            await asyncio.sleep(0.01)
