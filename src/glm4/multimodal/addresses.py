"""Addresses that strangers name: one strict parser of URLs, and which IP addresses are on the public internet.

What is checked is what is connected to: nothing else in the package interprets such a URL. Spellings that programs read
differently (user names, backslashes, percent-encoded or numeric hosts, white space) are refused instead of repaired.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import quote, urljoin

MAX_URL_LENGTH = 8192
_DEFAULT_PORT = {"http": 80, "https": 443}
_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)(?:#.*)?", re.IGNORECASE | re.ASCII)
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:]+)(?::([0-9]{0,5}))?", re.IGNORECASE | re.ASCII)
_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
# Characters that the two versions of IDNA read differently: another domain than in a browser.
_AMBIGUOUS = "ßς\u200c\u200d"

# IANA's special-purpose registries, more widely than Python's `is_global`, which varies by version and takes multicast,
# and addresses that stand for another one, for global.
_SPECIAL = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "168.63.129.16/32",  # a public address, but within Azure it is the agent's service
        "169.254.0.0/16",  # link-local: the credentials of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "2001::/23",  # Teredo, benchmarks, ORCHID
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
    )
)
# Outside of it are ::1, v4-mapped addresses, NAT64, link-local, unique local and multicast ones.
_GLOBAL_IPV6 = ip_network("2000::/3")
_PRIVATE = tuple(
    ip_network(network)
    for network in (
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "::1/128",
        "fc00::/7",
    )
)
# Where clouds hand out credentials within private networks (elsewhere it is a link-local address).
_METADATA = (ip_address("100.100.100.200"), ip_address("fd00:ec2::254"))


class AddressError(ValueError):
    """A URL, host or redirect that is refused; the text says why and goes after "… cannot be fetched: "."""


@dataclass(frozen=True)
class Target:
    """A URL, taken apart.

    Attributes:
        scheme: "http" or "https".
        host: in lower case and ASCII, without a final dot; an IP address in its shortest form, without brackets.
        path: with the query, percent-encoded; begins with "/". The fragment is dropped.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORT[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The whole URL."""
        return f"{self.scheme}://{self.authority}{self.path}"


def parse_url(url: str) -> Target:
    """Take an http(s) URL apart.

    Raises:
        AddressError: it is not one, or one that could be misread.
    """
    _check_characters(url)
    match = _URL.fullmatch(url)
    if match is None:
        raise AddressError("it is not an http:// or https:// address")
    scheme, authority, path = match[1].lower(), match[2], match[3]
    if "@" in authority:
        raise AddressError("it holds a user name or password; leave out what is before the @")
    parts = _AUTHORITY.fullmatch(authority)
    port = int((parts and parts[2]) or _DEFAULT_PORT[scheme])
    if parts is None or not 0 < port < 1 << 16:
        raise AddressError("its host or port is malformed")
    path = quote(path if path.startswith("/") else f"/{path}", safe="!#$%&'()*+,/:;=?@[]~")
    return Target(scheme, normal_host(parts[1]), port, path)


def redirected(target: Target, location: str) -> Target:
    """Where a redirect leads.

    Args:
        location: the header, as `http.client` decodes it (Latin-1).

    Raises:
        AddressError: as `parse_url`, or from https to http.
    """
    try:
        location = location.encode("latin-1").decode()
        _check_characters(location)
        # What this library makes of it is only a text: it is parsed and checked like any other URL.
        following = parse_url(urljoin(target.url, location))
    except ValueError as error:
        reason = str(error) if isinstance(error, AddressError) else "it is malformed"
        raise AddressError(f"it redirects to another address, and that is refused: {reason}") from None
    if target.scheme == "https" and following.scheme == "http":
        raise AddressError("it redirects from https to unencrypted http")
    return following


def linked(base: Target, href: str) -> Target:
    """Where a link of a page leads, as browsers read it: white space at its ends and line breaks do not count, and
    other characters that a URL must not have are percent-encoded. It is checked like any other URL before a fetch.

    Args:
        base: the page, or what it names as its base.

    Raises:
        AddressError: it leads to no http(s) address, or to one that could be misread.
    """
    href = href.strip(" \t\n\f\r").translate({9: None, 10: None, 13: None, 32: "%20"})
    try:
        _check_characters(href)
        return parse_url(urljoin(base.url, href))
    except AddressError:
        raise
    except ValueError:
        raise AddressError("it is malformed") from None


def normal_host(host: str) -> str:
    """A host as `Target.host` has it.

    Args:
        host: a name in ASCII or Unicode, an IPv4 address, or an IPv6 address in brackets.

    Raises:
        AddressError: malformed; or an IPv4 address in octal, hexadecimal, or as one number.
    """
    try:
        if host.startswith("["):
            return IPv6Address(host[1:-1]).compressed
        if len(host) > 254 or any(character in _AMBIGUOUS for character in host):
            raise AddressError("write its host in ASCII (xn--…)")
        name = host.encode("idna").decode("ascii").lower().removesuffix(".")
        if _NUMBER.fullmatch(name.rpartition(".")[2]):
            return str(IPv4Address(name))
    except AddressError:
        raise
    except ValueError:
        raise AddressError("its host is malformed") from None
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise AddressError("its host is malformed")
    return name


def may_connect(address: str, *, private: bool = False) -> bool:
    """True for an IP address on the public internet; False for every other one, and for what is not an address.

    Args:
        private: accept loopback and private networks too, but still not where clouds hand out credentials.
    """
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if private and ip not in _METADATA and any(ip in network for network in _PRIVATE):
        return True
    unicast = ip.version == 4 or (ip in _GLOBAL_IPV6 and "%" not in address)
    return unicast and ip.is_global and not any(ip in network for network in _SPECIAL)


def _check_characters(url: str) -> None:
    if len(url) > MAX_URL_LENGTH:
        raise AddressError(f"it is longer than {MAX_URL_LENGTH} characters")
    # isprintable is False for control characters, line and paragraph separators, and halves of surrogate pairs.
    if any(character in " \\" or not character.isprintable() for character in url):
        raise AddressError("it has a space, a backslash or an invisible character; write it percent-encoded (%20)")
