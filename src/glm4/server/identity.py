"""Who sends a request: what stored responses and cached prompts need to know of keys to tell clients apart."""

from __future__ import annotations

import hashlib

KEY_ID = "glm4.key"
"""In a request's state: `key_id` of the key it was sent with; absent if the server has no keys."""


def key_id(key: str) -> str:
    """A name for a key that does not tell the key, and is the same after a restart."""
    return hashlib.sha256(b"glm4 key " + key.encode()).hexdigest()[:32]


def cache_salt(key_id: str, given: str | None) -> str:
    """What separates the cached prompts of one party from those of others; "" for everybody's.

    Args:
        key_id: of the request's key; "" if all keys are one party.
        given: the request's own `cache_salt`.
    """
    if not key_id and given is None:
        return ""
    return hashlib.sha256(f"{key_id} {given!r}".encode()).hexdigest()[:32]
