"""Strings that would run something if any of them became markup, a script or an address of the page.

`PAYLOADS` goes to model output, tool results, titles, names of files and tools, imported conversations, citations and
addresses. `BEACON` stands for the address of another server of the test: nothing may ever ask for it.
"""

from __future__ import annotations

BEACON = "BEACON"
FLAG = "window.pwned=1;fetch('BEACON/run')"

PAYLOADS: tuple[str, ...] = (
    f"<script>{FLAG}</script>",
    f'<img src=x onerror="{FLAG}">',
    '<img src="BEACON/image.png">',
    f'<svg onload="{FLAG}"></svg>',
    f"<svg><script>{FLAG}</script></svg>",
    f'<svg><animate onbegin="{FLAG}" attributeName=x dur=1s></svg>',
    '<iframe srcdoc="<script>parent.pwned=1</script>"></iframe>',
    '<iframe src="BEACON/frame"></iframe>',
    '<iframe src="javascript:parent.pwned=1"></iframe>',
    '<object data="BEACON/object"></object>',
    '<embed src="BEACON/embed">',
    '<link rel=stylesheet href="BEACON/style.css">',
    "<style>body{background:url(BEACON/style.png)}</style>",
    '<base href="BEACON/">',
    '<meta http-equiv=refresh content="0;url=BEACON/refresh">',
    f'<details open ontoggle="{FLAG}">x</details>',
    f'<video src=x onerror="{FLAG}"></video>',
    f'<body onload="{FLAG}">',
    f'<input autofocus onfocus="{FLAG}">',
    f'<form action="javascript:{FLAG}"><button>x</button></form>',
    f'<math><mtext><table><mglyph><style><img src=x onerror="{FLAG}">',
    f'<math href="javascript:{FLAG}">x</math>',
    f'<noscript><p title="</noscript><img src=x onerror={FLAG}>">',
    f"<template><script>{FLAG}</script></template>",
    f'<a href="javascript:{FLAG}">x</a>',
    '<div style="background:url(BEACON/css.png)">x</div>',
    f"[link](javascript:{FLAG})",
    f"[link](JaVaScRiPt:{FLAG})",
    f"[link](&#106;avascript:{FLAG})",
    "[link](data:text/html,<script>parent.pwned=1</script>)",
    "[link](vbscript:msgbox(1))",
    f"[link](\x01javascript:{FLAG})",
    f"[link]: javascript:{FLAG}\n\n[link]",
    f"<javascript:{FLAG}>",
    "![image](BEACON/markdown.png)",
    f'![image](x"onerror="{FLAG})',
    '![x][ref]\n\n[ref]: BEACON/reference.png "t"',
    f'```html" onmouseover="{FLAG}\n<script>{FLAG}</script>\n```',
    f"```\n</code></pre><script>{FLAG}</script>\n```",
    f'$\\text{{<img src=x onerror="{FLAG}">}}$',
    f"$$\\href{{javascript:{FLAG}}}{{x}}$$",
    f'$\\style{{background:url(BEACON/tex.png)}}{{x}}$ and \\(\\class{{x" onclick="{FLAG}}}{{y}}\\)',
    f'| a | b |\n|---|---|\n| <img src=x onerror="{FLAG}"> | ![i](BEACON/table.png) |',
    f"- [ ] <script>{FLAG}</script>",
    f'【1†<img src=x onerror="{FLAG}">】',
    f"[^1]\n\n[^1]: <script>{FLAG}</script>",
    f'"><script>{FLAG}</script>',
    f"'-{FLAG}-'",
    f"${{{FLAG}}} {{{{constructor.constructor('{FLAG}')()}}}}",
    f"</textarea><script>{FLAG}</script>",
    f'<!--<img src="--><img src=x onerror={FLAG}>">',
    f"<scr<script>ipt>{FLAG}</scr</script>ipt>",
    f'\u202e<img src=x onerror="{FLAG}">',
    f'<x-element is="script" onpointerover="{FLAG}">x</x-element>',
    '<a href="BEACON/ping" ping="BEACON/ping" id=app name=app>clobber</a><form id=app><input name=api></form>',
)

ALLOWED_ATTRIBUTES = """
() => {
  // Everything that is in the document, against what a page that runs nothing foreign can have.
  const wrong = [];
  for (const element of document.querySelectorAll("*")) {
    const name = element.localName;
    const place = `<${name}> in ${element.parentElement?.className ?? ""}`;
    if (["script", "link", "meta", "base"].includes(name) && document.body.contains(element)) wrong.push(place);
    const never = ["object", "embed", "applet", "frame", "frameset", "animate", "set", "foreignobject", "style"];
    if (never.includes(name.toLowerCase())) wrong.push(place);
    if (name === "iframe" && !element.getAttribute("sandbox")) wrong.push(place);
    for (const { name: attribute, value } of element.attributes) {
      if (/^on/i.test(attribute)) wrong.push(`${place} has ${attribute}`);
      if (["srcdoc", "formaction", "ping", "is"].includes(attribute)) wrong.push(`${place} has ${attribute}`);
      if (["href", "src", "action", "xlink:href", "data", "poster"].includes(attribute)) {
        const address = new URL(value, location.href);
        const here = address.origin === location.origin;
        const known = name === "a" ? ["http:", "https:", "mailto:"] : ["http:", "https:"];
        if (address.protocol === "blob:" && here && ["a", "img"].includes(name)) continue;
        if (!known.includes(address.protocol)) wrong.push(`${place}: ${attribute}=${value}`);
        if (name !== "a" && !here) wrong.push(`${place}: ${attribute}=${value}`);
      }
      const leaves = attribute === "href" && name === "a" && element.origin !== location.origin;
      if (leaves && !(element.relList.contains("noopener") && element.relList.contains("noreferrer"))) {
        wrong.push(`${place} without rel: ${value}`);
      }
    }
  }
  return wrong;
}
"""
"""Names what is in the document of a page and must not be."""
