"""Nothing that a model writes becomes a script, a request, a style or an attribute of the page."""

from __future__ import annotations

import random

import pytest
from applied import applied
from html_rules import faults, text_of
from hypothesis import given, settings
from hypothesis import strategies as st

from glm4.markup import IncrementalRenderer, render, render_code
from glm4.markup.sanitizer import sanitize

_SHA = "0" * 64

HTML = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<iframe src='javascript:alert(1)'></iframe>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "<a href=javascript:alert(1)>x</a>",
    "<div style='position:fixed;inset:0'>x</div>",
    "<!--><img src=x onerror=alert(1)>-->",
    "<![CDATA[<script>alert(1)</script>]]>",
    "<?php echo 1 ?>",
    "<form action=/v1/agent/turns method=post><button>x</button></form>",
    "<meta http-equiv=refresh content='0;url=http://evil.example'>",
    "<base href=http://evil.example>",
    "<link rel=stylesheet href=http://evil.example/a.css>",
    "<style>*{display:none}</style>",
    "<template><script>alert(1)</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<textarea></textarea><script>alert(1)</script>",
    "<details open ontoggle=alert(1)>",
    "</p></div></main><script>alert(1)</script>",
    "<p id=composer name=session>",
]
LINKS = [
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](<java\nscript:alert(1)>)",
    "[x](&#106;avascript:alert(1))",
    "[x](javascript&colon;alert(1))",
    "[x](\x01javascript:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "[x](vbscript:msgbox(1))",
    "[x](file:///etc/passwd)",
    "[x](blob:http://localhost/1)",
    "[x](//evil.example/)",
    "[x](/v1/agent/conversations?delete=1)",
    "[x](ui/logout)",
    "[x](../../ui/session)",
    "[x](#composer)",
    f"[x](v1/agent/files/{_SHA}/../../conversations)",
    '[x](https://e.org "onmouseover=alert(1)")',
    '[x](https://e.org"onmouseover="alert(1))',
    "[x](https://e.org/'><script>alert(1)</script>)",
    "<javascript:alert(1)>",
    '<https://e.org/"onclick=alert(1)>',
    "[x]: javascript:alert(1)\n\n[x]",
    '[x]: https://e.org "a\\"onclick=alert(1)"\n\n[x]',
    "[https://bank.example](https://evil.example)",
    "[x](https://bank.example@evil.example/)",
    "[x](https://\u0430pple.com)",
    "[x](https://e.org/\u202egpj.exe)",
    "[x](http://[::1]:8080/)",
    "[x](http://[)",
    "[[x](https://a.example)](https://b.example)",
]
PICTURES = [
    "![x](https://evil.example/a.png?secret)",
    "![x](data:image/svg+xml,<svg onload=alert(1)>)",
    "![x](javascript:alert(1))",
    '![x" onerror="alert(1)](https://e.org)',
    "![<img src=x onerror=alert(1)>](https://e.org)",
    f"![x](v1/agent/files/{_SHA})",
    "![x][y]\n\n[y]: https://evil.example/a.png",
    "[![x](https://evil.example/a.png)](javascript:alert(1))",
    "![x](sandbox:/mnt/data/a.png)",
]
FORMULAS = [
    r"$\text{<script>alert(1)</script>}$",
    r"$\text{<img src=x onerror=alert(1)>}$",
    r"$\href{javascript:alert(1)}{x}$",
    r"$\url{javascript:alert(1)}$",
    r"$\htmlClass{x}{y} \cssId{composer}{y} \style{color:red}{y}$",
    r"$\includegraphics{https://evil.example/a.png}$",
    r"$\color{red;background:url(//evil.example)}{x}$",
    r"$\textcolor{red}{x}$",
    r"$$\begin{equation}\label{composer}x\end{equation}$$",
    r"$\eqref{x\"onclick=alert(1)}$",
    r"$\newcommand{\a}{\a\a}\a$",
    r"$\def\a{\a\a\a}\a$",
    "\\[" + "{" * 3000 + "\\]",
    "$$" + r"\frac{1}{" * 400 + "x" + "}" * 400 + "$$",
    r"\(</math><script>alert(1)</script>\)",
    '$$x" onclick="alert(1)$$',
    "```math\n</code><script>alert(1)</script>\n```",
    r"$\unicode{x3c}script\unicode{x3e}$",
    r"\begin{align}</div><img src=x onerror=alert(1)>\end{align}",
    r"$\mathchoice{\text{<b>}}{}{}{}$",
]
CODE = [
    "```html\n<script>alert(1)</script>\n```",
    '```"onclick=alert(1)\nx\n```',
    "```<script>\nx\n```",
    '```python"><img src=x onerror=alert(1)>\nx\n```',
    "```../../etc/passwd\nx\n```",
    "```{.python onclick=alert(1)}\nx\n```",
    "`</code><script>alert(1)</script>`",
    "    <script>alert(1)</script>",
    "```svg\n<svg onload=alert(1)>",
    "```\n</code></pre><script>alert(1)</script>",
    "```" + "x" * 10_000 + "\ny\n```",
    "```php\n<?php ?><script>\n```",
    "```diff\n-<b>\n+<i>\n```",
]
OTHERS = [
    "【3†<img src=x onerror=alert(1)>】",
    '【3†"onclick=alert(1)】',
    "【99999†x】【-1†x】【1e3†x】【٣†x】",
    "【3†javascript:alert(1)】",
    "[x【3†y】](javascript:alert(1))",
    "a\u202ecba\u2066 <b>\u2069",
    "\u2067[x](https://e.org)\u2069",
    "\x00<script\x00>alert(1)</script>",
    "\ud800<script>\udfff",
    "\x0b\x0c\x1b[31m\x7f\x85\u2028\u2029\ufeff",
    "\uf8fe|$|\uf8fe|$",
    "> " * 500 + "x",
    "- " * 500 + "x",
    "".join(" " * (2 * depth) + "- x\n" for depth in range(300)),
    "*" * 2_000 + "x" + "*" * 2_000,
    "[" * 2_000 + "x" + "](https://e.org)" * 2_000,
    "|" * 3_000 + "\n" + "|-" * 1_500,
    "[^1]\n\n[^1]: <script>alert(1)</script>",
    '[^"onclick=alert(1)]\n\n[^"onclick=alert(1)]: x',
    "[^1]\n\n[^1]: [^1] again",
    "- [x] <script>alert(1)</script>",
    "| a |\n|:-:|\n| <script>alert(1)</script> |",
    '# x {#composer onclick="alert(1)"}',
    "&lt;script&gt;alert(1)&lt;/script&gt; &#60;script&#62; &amp;lt;",
    "1234567890123456789. x",
]
PAYLOADS = [*HTML, *LINKS, *PICTURES, *FORMULAS, *CODE, *OTHERS]


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: ascii(payload[:40]))
def test_a_payload_does_nothing(payload: str) -> None:
    contexts = [payload, f"> {payload}", f"- a\n- {payload}", f"**x {payload} y**", f"| a |\n|---|\n| {payload} |"]
    for markdown in contexts:
        for block in render(markdown):
            assert faults(block) == [], block
            assert sanitize(block) == block


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: ascii(payload[:40]))
def test_a_payload_does_nothing_while_it_is_written(payload: str) -> None:
    renderer = IncrementalRenderer()
    blocks: list[str] = []
    step = max(1, len(payload) // 60)
    for start in range(0, len(payload), step):
        blocks = applied(blocks, renderer.feed(payload[start : start + step]))
        for block in blocks:
            assert faults(block) == [], block
    assert applied(blocks, renderer.finish()) == render(payload)


@pytest.mark.parametrize("payload", HTML)
def test_raw_html_is_shown_as_text(payload: str) -> None:
    assert "".join(map(text_of, render(f"`{payload}`"))) == payload
    text = "".join(map(text_of, render(f"a {payload}")))
    assert "".join(text.split()).startswith("a<")


@pytest.mark.parametrize(
    "payload", [*PAYLOADS, "python\nx", '"onclick=alert(1)', "<b>", "a b", "é"], ids=lambda payload: ascii(payload[:40])
)
def test_code_and_its_language_do_nothing(payload: str) -> None:
    for block in (render_code(payload, "html"), render_code(payload, None), render_code("x", payload)):
        assert faults(block) == [], block
        assert sanitize(block) == block


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        ("[https://bank.example](https://evil.example/a)", "(evil.example)"),
        ("[bank.example/login](https://evil.example/a)", "(evil.example)"),
        ("[x](https://bank.example@evil.example/)", "(evil.example)"),
        ("[x](https://\u0430pple.com)", "(xn--pple-43d.com)"),
        ("[x](https://127.0.0.1/a)", "(127.0.0.1)"),
        ("[x](https://0x7f000001/a)", "(0x7f000001)"),
        ("![logo.example](https://evil.example/a.png)", "(evil.example)"),
    ],
)
def test_the_host_is_shown_where_the_text_could_mislead(link: str, shown: str) -> None:
    assert f'<span class="host">{shown}</span>' in render(link)[0]


@pytest.mark.parametrize(
    "link",
    [
        "[docs](https://docs.python.org/3/)",
        "[python.org](https://www.python.org/)",
        "<https://e.org/a>",
        "[a](mailto:a@e.org)",
    ],
)
def test_an_honest_link_is_left_alone(link: str) -> None:
    block = render(link)[0]
    assert "<a href=" in block
    assert "host" not in block


_PIECES = st.sampled_from(
    [piece for payload in PAYLOADS if len(payload) < 200 for piece in (payload, payload[: len(payload) // 2])]
)
_GLUE = st.sampled_from(
    [
        "",
        " ",
        "\n",
        "\n\n",
        "\n> ",
        "\n- ",
        "|",
        "`",
        "$",
        "$$",
        "\\(",
        "\\[",
        "\\]",
        "**",
        "\n```\n",
        "](",
        "【1†",
        "】",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(_PIECES, _GLUE), max_size=8))
def test_payloads_mixed_do_nothing(pieces: list[tuple[str, str]]) -> None:
    for block in render("".join(piece + glue for piece, glue in pieces)):
        assert faults(block) == [], block
        assert sanitize(block) == block


def test_arbitrary_bytes_do_nothing() -> None:
    chance = random.Random(7)
    alphabet = "<>&\"'`$\\()[]{}|*_~#-+=!:/.^【†】 \n\tab1\x00\r中"
    for _ in range(300):
        for block in render("".join(chance.choices(alphabet, k=120))):
            assert faults(block) == [], block
            assert sanitize(block) == block


@pytest.mark.parametrize("payload", [*HTML, *FORMULAS, *OTHERS], ids=lambda payload: ascii(payload[:40]))
def test_the_sanitizer_holds_alone(payload: str) -> None:
    html = f"<div class='table onclick' id=a style=color:red>{payload}</div>"
    clean = sanitize(html.encode("utf-8", "replace").decode())
    assert [fault for fault in faults(clean) if "top-level" not in fault] == []
    assert sanitize(clean) == clean
