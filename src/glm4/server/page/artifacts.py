"""Artifacts: HTML and SVG that a model wrote, shown in a frame where they can run but reach nothing.

A frame of `srcdoc` would have the page's policy, under which no script of theirs runs; so each has an address, of which
nobody knows who is not given it, with a policy of its own. It is a document of no origin: no cookies, no storage, no
requests, no way to the page around it.

WebRTC, which no policy knows, is taken away by a script at the start of each. A document inside of it would have it
again; those with an address are forbidden by the policy, and what could make one without (`srcdoc`, also written in
pieces, and `javascript:`) is refused: in the source here, and by the browser in what scripts do (Trusted Types).

Not covered: an artifact may use the processor, and show what looks like a part of the page, within its frame. If it
leads its frame to another host, the policy lets nothing be sent, but chromium has looked up and connected to the host
by then, so its name tells as much as fits in it. Browsers without Trusted Types refuse less, so what is secret is to stay out of artifacts.
"""

from __future__ import annotations

import re

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
    "base-uri 'none'; frame-ancestors 'self'; require-trusted-types-for 'script'; trusted-types default"
)
# Functions are bound before a script of the artifact can replace them. XML can write a name with entities.
_PRELUDE = """<!doctype html><script>{
const bound = (method) => Function.prototype.call.bind(method);
const at = bound(String.prototype.indexOf), small = bound(String.prototype.toLowerCase);
const refused = (html, sink) => at(sink, "write") >= 0 || at(sink, "srcdoc") >= 0
  || at(html, "srcdoc") >= 0 || at(html, "<!entity") >= 0;
window.trustedTypes?.createPolicy("default", {
  createHTML: (html, type, sink) => refused(small(html), small(sink)) ? null : html,
  createScript: (script, type, sink) => at(small(sink), "location") >= 0 ? null : script,
  createScriptURL: (url) => url,
});
for (const name of Object.getOwnPropertyNames(window)) if (/RTC|XSLT/.test(name)) delete window[name];
document.currentScript.remove();
}</script>"""
_FRAME_SOURCE = re.compile("srcdoc", re.IGNORECASE)
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
    document = (_STARTS[kind] + _FRAME_SOURCE.sub("src_doc", source)).encode()
    if len(document) > MAX_NBYTES:
        raise ApiError(413, f"an artifact may have {MAX_NBYTES >> 20} MB", "source", "too_large")
    return JSONResponse({"id": page_state(request).artifacts.keep(owner_of(request), document)}, headers=NO_STORE)


async def show_artifact(request: Request) -> Response:
    """An artifact, for a frame only: as a page of its own it would be shown under this server's name."""
    document = page_state(request).artifacts.find(owner_of(request), request.path_params["artifact_id"])
    if document is None:
        raise ApiError(404, "there is no such artifact any more; show it again", "artifact_id", "not_found")
    if request.headers.getlist("sec-fetch-dest") != ["iframe"]:
        raise ApiError(403, "an artifact is shown in a frame only", code="not_a_frame")
    headers = {**NO_STORE, "Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer",
               "Cross-Origin-Resource-Policy": "same-origin"}  # fmt: skip
    return Response(document, media_type="text/html; charset=utf-8", headers=headers)
