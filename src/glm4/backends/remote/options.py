"""`RemoteOptions`: which server, and how long to wait for it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from glm4.backends.option_checks import check_numbers
from glm4.errors import InvalidRequestError

KEY_VARIABLE = "GLM4_REMOTE_API_KEY"


@dataclass(frozen=True)
class RemoteOptions:
    """How to use a server.

    Attributes:
        base_url: its address, http:// or https://, with or without /v1.
        remote_model: the name it serves the model under; None means its only model, or the one with our model's name.
        api_key: None means GLM4_REMOTE_API_KEY; if that is unset, no key is sent.
        max_model_len: prompt + output of one request, in tokens; None means the limit from the server or model files.
        max_num_seqs: requests in flight at once, each with its own connection and thread.
        connect_timeout: seconds to connect.
        first_token_timeout: seconds from a request to its first token, including retries and the server's queue.
        token_timeout: seconds between tokens.
        max_retries: retries if the server cannot be reached or is busy; never after the first token.
        retry_delay: seconds before the first retry; doubled for each one after it.
    """

    base_url: str = ""
    remote_model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    max_model_len: int | None = None
    max_num_seqs: int = 32
    connect_timeout: float = 10.0
    first_token_timeout: float = 600.0
    token_timeout: float = 60.0
    max_retries: int = 3
    retry_delay: float = 0.5

    def __post_init__(self) -> None:
        _check_url(self.base_url)
        if self.api_key is None:
            object.__setattr__(self, "api_key", os.environ.get(KEY_VARIABLE) or None)
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise InvalidRequestError("api_key must be printable ASCII, without line breaks", param="api_key")
        check_numbers(self)
        for name in ("connect_timeout", "first_token_timeout", "token_timeout", "retry_delay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidRequestError(f"{name} must be a number of seconds, not {value!r}", param=name)


def _check_url(url: str) -> None:
    """Raise InvalidRequestError unless `url` is the address of a server. Never shows a part that may be a password."""
    if not url:
        raise InvalidRequestError(
            "the remote backend needs the server's address: base_url (`--base-url http://127.0.0.1:8000`)",
            param="base_url",
        )
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not (url.isascii() and url.isprintable()) or " " in url:
        raise InvalidRequestError("base_url must be an address such as http://127.0.0.1:8000", param="base_url")
    if parts.username is not None or parts.password is not None:
        raise InvalidRequestError(f"base_url must not hold a password; use api_key or {KEY_VARIABLE}", param="base_url")
    if parts.query or parts.fragment:
        raise InvalidRequestError("base_url must end with its path, without ? and #", param="base_url")
