"""Whom connections trust: the certificate authorities of this machine and of its user."""

from __future__ import annotations

import contextlib
import os
import ssl


def tls_context() -> ssl.SSLContext:
    """The system's certificates, certifi's (Python on macOS has no others), and the user's own bundle."""
    context = ssl.create_default_context()
    with contextlib.suppress(ImportError, OSError):
        import certifi

        context.load_verify_locations(certifi.where())
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if bundle := os.environ.get(name):
            with contextlib.suppress(OSError):
                context.load_verify_locations(bundle)
    return context
