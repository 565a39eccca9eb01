"""Artifacts: HTML and SVG that a model wrote, shown in a frame where they can run but reach nothing.

A frame of `srcdoc` would have the page's policy, under which no script of theirs runs; so each has an address, of which
nobody knows who is not given it, with a policy of its own. It is a document of no origin: no cookies, no storage, no
requests, no way to the page around it.

Not covered: an artifact may use the processor, and show what looks like a part of the page, within its frame. WebRTC,
which no policy knows, is taken away by a script at its start; what is secret is to stay out of artifacts all the same.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4.errors import InvalidRequestError
from glm4.server.agent.state import owner_of
from glm4.server.errors import ApiError
from glm4.server.page.state import NO_STORE, page_state
from glm4.server.state import server_state

MAX_NBYTES = 2 << 20

_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; media-src data: blob:; connect-src 'none'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'self'"
)
_PRELUDE = (
    "<!doctype html><script>for(const name of Object.getOwnPropertyNames(window))"
    "if(/RTC/.test(name))delete window[name];document.currentScript.remove()</script>"
)
_SVG = "<title>SVG</title><style>html,body{margin:0;height:100%}svg{max-width:100%;max-height:100%}</style>"
_STARTS = {"html": _PRELUDE, "svg": _PRELUDE + _SVG}
"""Kinds → what comes before the source. A document's own doctype and html element are still understood after it."""


async def add_artifact(request: Request) -> Response:
    """Keep an artifact for a while."""
    body = await server_state(request).read(request)
    kind, source = body.get("kind"), body.get("source")
    if not isinstance(kind, str) or kind not in _STARTS:
        raise InvalidRequestError(f"kind must be {' or '.join(_STARTS)}", param="kind")
    if not isinstance(source, str):
        raise InvalidRequestError("source must be a string", param="source")
    document = (_STARTS[kind] + source).encode()
    if len(document) > MAX_NBYTES:
        raise ApiError(413, f"an artifact may have {MAX_NBYTES >> 20} MB", "source", "too_large")
    return JSONResponse({"id": page_state(request).artifacts.keep(owner_of(request), document)}, headers=NO_STORE)


async def show_artifact(request: Request) -> Response:
    """An artifact, for a frame only: as a page of its own it would be shown under this server's name."""
    if request.headers.getlist("sec-fetch-dest") != ["iframe"]:
        raise ApiError(403, "an artifact is shown in a frame only", code="not_a_frame")
    document = page_state(request).artifacts.find(owner_of(request), request.path_params["artifact_id"])
    if document is None:
        raise ApiError(404, "there is no such artifact any more; show it again", "artifact_id", "not_found")
    headers = {**NO_STORE, "Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer",
               "Cross-Origin-Resource-Policy": "same-origin"}  # fmt: skip
    return Response(document, media_type="text/html; charset=utf-8", headers=headers)
