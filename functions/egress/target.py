"""A URL taken apart once. What is called later is these parts, never the text again, so that no second
parser can see another host in it."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from urllib.parse import quote

import idna

from functions.egress.errors import EgressRefused
from functions.egress.policy import Address, EgressPolicy, is_public

LONGEST_URL_BYTES = 2048
PORTS = frozenset({80, 443, 8080, 8443})
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal", ".home.arpa", ".localdomain")

_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<query>\?[^#]*)?"
)
_AUTHORITY = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
# Everything that may stand in a path or query as it is (RFC 3986 §3.3, §3.4), and "%" for what is escaped
# already.
_KEEP = "/?%:@!$&'()*+,;=-._~"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a URL leads. ``host`` is ASCII (punycode), without brackets; ``path`` includes the query.

    ``trusted``: an operator allows this very host, whatever its addresses are. ``allowed_only``: it is http
    or has an unusual port or a local name, so all of its addresses must be allowed by an operator, public
    ones too.
    """

    scheme: str
    host: str
    port: int
    path: str
    literal: Address | None = None
    trusted: bool = False
    allowed_only: bool = False

    @property
    def authority(self) -> str:
        """What belongs in the Host header."""
        host = f"[{self.host}]" if isinstance(self.literal, IPv6Address) else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def origin(self) -> str:
        """Scheme, host and port, always written out: what limits and breakers count by."""
        host = f"[{self.host}]" if isinstance(self.literal, IPv6Address) else self.host
        return f"{self.scheme}://{host}:{self.port}"


def check_url(url: str, policy: EgressPolicy) -> Target:
    """What can be said without a look-up, at registration and before each request; raises
    ``EgressRefused``."""
    target = _parse(url)
    host, port, literal = target.host, target.port, target.literal
    if policy.denies_host(host, port) or (literal is not None and policy.denies_address(literal, port)):
        raise EgressRefused("address", "this host may not be called")
    if policy.allows_host(host, port) or (literal is not None and policy.allows_address(literal, port)):
        return replace(target, trusted=True)
    if literal is not None and not is_public(literal):
        raise EgressRefused("address", "the address is not a public one")
    unusual = _unusual(target)
    if unusual is None:
        return target
    if literal is None and policy.allows_networks:
        return replace(target, allowed_only=True)
    raise unusual


def origin_of(url: str) -> str:
    """The URL's origin for counting; the text itself if it cannot be parsed any more."""
    try:
        return _parse(url).origin
    except EgressRefused:
        return url


def _unusual(target: Target) -> EgressRefused | None:
    """Why only an operator's word can open this target; None for an ordinary one."""
    if target.scheme != "https":
        return EgressRefused("scheme", "the URL must begin with https://")
    if target.port not in PORTS:
        return EgressRefused("port", f"port {target.port} may not be called: 80, 443, 8080 and 8443 may")
    name = f".{target.host}"
    if target.literal is None and (name.endswith(_LOCAL_SUFFIXES) or "." not in target.host):
        return EgressRefused("address", "the host is a local name, not a public one")
    return None


def _parse(url: str) -> Target:
    _refuse_odd_characters(url)
    match = _URL.match(url)
    if match is None or match["scheme"].lower() not in _DEFAULT_PORTS:
        raise EgressRefused("scheme", "the URL must begin with https://")
    scheme, authority = match["scheme"].lower(), match["authority"]
    if "@" in authority:
        raise EgressRefused("syntax", "the URL must not contain a user name or password")
    if "%" in authority:
        raise EgressRefused("syntax", "the URL's host must not contain a percent sign")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise EgressRefused("syntax", "the URL's host cannot be read")
    port = _DEFAULT_PORTS[scheme] if parts["port"] is None else int(parts["port"])
    if not 1 <= port <= 65535:
        raise EgressRefused("port", f"there is no port {port}")
    path = quote((match["path"] or "/") + (match["query"] or ""), safe=_KEEP)
    if parts["v6"] is not None:
        literal = _ipv6(parts["v6"])
        return Target(scheme, str(literal), port, path, literal)
    host, address = _host(parts["host"])
    return Target(scheme, host, port, path, address)


def _refuse_odd_characters(url: str) -> None:
    try:
        size = len(url.encode())
    except UnicodeEncodeError:
        raise EgressRefused("syntax", "the URL is not valid text") from None
    if size > LONGEST_URL_BYTES:
        raise EgressRefused("syntax", f"the URL is longer than {LONGEST_URL_BYTES} bytes")
    # Control, format, private use, separators: invisible, and each parser strips others of them.
    if "\\" in url or any(unicodedata.category(c)[0] in "CZ" for c in url):
        raise EgressRefused("syntax", "the URL must not contain spaces, control characters or backslashes")


def _ipv6(text: str) -> IPv6Address:
    try:
        return IPv6Address(text)
    except AddressValueError:
        raise EgressRefused("syntax", "the URL's IPv6 address cannot be read") from None


def _host(text: str) -> tuple[str, IPv4Address | None]:
    """The name in ASCII, or the IPv4 address if it is written in the one way that every program reads
    alike."""
    name = _ascii(text).removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise EgressRefused("syntax", "the URL's host is not a valid name")
    if not _NUMBER.fullmatch(labels[-1]):
        return name, None
    # getaddrinfo takes 2130706433, 0x7f.1, 0177.0.0.1 and 127.1 for addresses.
    try:
        address = IPv4Address(name)
    except AddressValueError:
        address = None
    if address is None or text != str(address):
        raise EgressRefused("syntax", "the URL's IPv4 address must be written as four decimal numbers")
    return name, address


def _ascii(text: str) -> str:
    if text.isascii():
        return text.lower()
    try:
        # Without the mapping of UTS 46: look-alike digits and letters are no valid names of their own.
        return idna.encode(unicodedata.normalize("NFC", text.lower())).decode()
    except (idna.IDNAError, UnicodeError):
        raise EgressRefused("syntax", "the URL's host is not a valid name") from None
