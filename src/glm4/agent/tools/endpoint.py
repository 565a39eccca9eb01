"""`Endpoint`: a JSON service that the operator named, which may be on this machine or in a private network.

Not covered: what the service answers is a stranger's; whoever asks checks the types of what comes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from glm4.errors import Glm4Error, InvalidRequestError
from glm4.multimodal.addresses import AddressError, Target, parse_url
from glm4.multimodal.fetch import Fetcher, FetchPolicy
from glm4.system.strict_json import finite_float, refuse_constant

_REFUSED = "the address cannot be fetched: "


def fetch_problem(error: InvalidRequestError) -> str:
    """Why a fetch failed, without the fetcher's advice, which is for people who send requests."""
    return str(error).removeprefix(_REFUSED).partition("; ")[0]


class ServiceError(Glm4Error):
    """A service that cannot be asked or has failed; says which one and what to do, and never shows its key."""


class Endpoint:
    """Asks one host and port, and no other: redirects are errors.

    Args:
        url: of the operator's, never from a model or a page.
        name: of the service, for errors.
        advice: what to check when it fails.
        headers: of every request; they may hold a key.

    Raises:
        InvalidRequestError: `url` is not an http(s) address.
    """

    def __init__(
        self, url: str, *, name: str, advice: str, headers: Mapping[str, str] = MappingProxyType({}),
        seconds: float = 20.0, max_nbytes: int = 4 << 20,
    ) -> None:  # fmt: skip
        try:
            self.target: Target = parse_url(url)
        except AddressError as error:
            raise InvalidRequestError(f"the address of {name} cannot be used: {error}") from None
        self._name, self._advice, self._headers = name, advice, dict(headers)
        host = f"[{self.target.host}]" if ":" in self.target.host else self.target.host
        self.fetcher = Fetcher(
            FetchPolicy(
                allowed_hosts=(), private_hosts=(host,), ports=(self.target.port,), max_nbytes=max_nbytes,
                total_timeout=seconds,
            )
        )  # fmt: skip

    def ask(self, query: str = "", body: Mapping[str, object] | None = None) -> Any:
        """What it answers: any JSON.

        Args:
            query: appended to the address: "?q=…".
            body: sent as JSON by POST; without one it is a GET.

        Raises:
            ServiceError: it cannot be reached, refuses, or answers something else than JSON.
        """
        headers, data = dict(self._headers), None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        try:
            found = self.fetcher.ask(self.target.url + query, headers=headers, body=data)
        except InvalidRequestError as error:
            raise self.error(fetch_problem(error)) from None
        try:
            return json.loads(found.data, parse_constant=refuse_constant, parse_float=finite_float)
        except (ValueError, RecursionError):
            raise self.error("its answer is not JSON") from None

    def error(self, problem: str) -> ServiceError:
        """An error of this service."""
        return ServiceError(f"{self._name} failed: {problem}; {self._advice}")
