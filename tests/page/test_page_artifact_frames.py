"""An artifact has no WebRTC, which no content policy knows, and makes no document in which it would have it again."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from page_browser import HANG_MS
from page_server import page_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_TELL = "parent.postMessage(['inner', typeof RTCPeerConnection], '*')"
_INNER = f"<script>{_TELL}</script>"
_ATTRIBUTE = f'"{html.escape(_INNER)}"'
_MARKUP = f"'<iframe src' + 'doc={_ATTRIBUTE}></iframe>'"
_NODE = "const a = document.createAttribute('src' + 'doc'); a.value = inner; "

# What an artifact has in it.
WRITTEN = {
    "direct": "<script>const made = typeof RTCPeerConnection</script>",
    "frame": f"<iframe srcdoc={_ATTRIBUTE}></iframe>",
    "case": f"<iframe SrcDoc={_ATTRIBUTE}></iframe>",
    "shadow": f"<div><template shadowrootmode=closed><iframe srcdoc={_ATTRIBUTE}></iframe></template></div>",
    "foreign object": f"<svg><foreignObject><iframe srcdoc={_ATTRIBUTE}></iframe></foreignObject></svg>",
    "script address": f'<iframe src="javascript:{html.escape(_TELL)}"></iframe>',
}
# What its script does, with a frame `f`.
DONE = {
    "property": "f['src' + 'doc'] = inner; document.body.append(f)",
    "attribute": "f.setAttribute('src' + 'doc', inner); document.body.append(f)",
    "attribute's node": f"{_NODE} f.setAttributeNode(a); document.body.append(f)",
    "named item": f"{_NODE} f.attributes.setNamedItem(a); document.body.append(f)",
    "markup": f"document.body.insertAdjacentHTML('beforeend', {_MARKUP})",
    "markup after tampering": "String.prototype.indexOf = () => -1; Function.prototype.call = () => -1;"
    f"String.prototype.toLowerCase = () => ''; document.body.insertAdjacentHTML('beforeend', {_MARKUP})",
    "written in pieces": f"document.write('<iframe src'); document.write('doc={_ATTRIBUTE}></iframe>')",
    "shadow markup": "const h = document.createElement('div'); document.body.append(h);"
    f"h.attachShadow({{mode: 'closed'}}).innerHTML = {_MARKUP}",
    "parsed": f"document.body.append(new DOMParser().parseFromString({_MARKUP}, 'text/html').body.firstChild)",
    "fragment": f"document.body.append(document.createRange().createContextualFragment({_MARKUP}))",
    "XSLT": "new XSLTProcessor()",
    "a policy of its own": "f.srcdoc = trustedTypes.createPolicy('mine', {createHTML: (s) => s}).createHTML(inner);"
    "document.body.append(f)",
    "script address": "f.src = 'javascript:' + tell; document.body.append(f)",
    "data": "f.src = 'data:text/html,' + encodeURIComponent(inner); document.body.append(f)",
    "blob": "f.src = URL.createObjectURL(new Blob([inner], {type: 'text/html'})); document.body.append(f)",
    "popup": "window.open('about:blank').eval(tell)",
}
_HARMLESS = "document.body.insertAdjacentHTML('beforeend', '<p id=shown>shown</p>')"


_SHOW = """(address) => new Promise((done) => {
    const through = (event) => {
        if (event.data[0] !== "through") return;
        removeEventListener("message", through);
        done();
    };
    addEventListener("message", through);
    const frame = document.createElement("iframe");
    frame.src = address;
    frame.setAttribute("sandbox", "allow-scripts");
    document.body.append(frame);
})"""


def artifact(body: str, script: str = "") -> str:
    """An artifact that passes on what is told inside of it, and tells when it is through."""
    words = {"inner": _INNER, "tell": _TELL}
    constants = "".join(f"const {name} = {json.dumps(text)};".replace("</", "<\\/") for name, text in words.items())
    return (
        "<!doctype html><html><body><script>"
        "addEventListener('message', (event) => parent.postMessage(event.data, '*'));</script>"
        f"{body}<script>{constants} try {{ const f = document.createElement('iframe'); {script} }} catch {{}}"
        "parent.postMessage(['through', typeof RTCPeerConnection], '*')</script></body></html>"
    )


def test_an_artifact_has_no_webrtc_and_makes_no_document_that_has(browser: Browser, tmp_path: Path) -> None:
    tried = [artifact(body) for body in WRITTEN.values()] + [artifact("", script) for script in DONE.values()]
    with page_server(tmp_path, {}) as served:
        page = browser.new_page()
        page.set_default_timeout(HANG_MS)
        page.goto(f"{served.url}/ui")
        page.evaluate("window.told = []; addEventListener('message', (event) => told.push(event.data))")
        for source in [*tried, artifact("", _HARMLESS)]:
            made = httpx.post(f"{served.url}/ui/artifacts", json={"kind": "html", "source": source}).json()["id"]
            page.evaluate(_SHOW, f"ui/artifacts/{made}")
        page.wait_for_timeout(500)  # for what would come later
        told = page.evaluate("told")
        assert told == [["through", "undefined"]] * (len(tried) + 1)
        assert "about:srcdoc" not in [frame.url for frame in page.frames]
        # What artifacts do all the time works.
        assert page.frames[-1].evaluate("document.getElementById('shown').textContent") == "shown"
        page.close()
