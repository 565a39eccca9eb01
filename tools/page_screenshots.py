"""Make docs/page.png and docs/zh/page.png: `python tools/page_screenshots.py`.

The page, the server and the sandbox are the real ones; what the model says is written here.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / name) for name in ("", "page", "agent", "server")]

from page_actions import Chat  # noqa: E402
from page_browser import Watch, expect, open_browser  # noqa: E402
from page_model import call  # noqa: E402
from page_server import Served, page_server  # noqa: E402
from python_conversations import make_environment_once  # noqa: E402

CODE = """import numpy as np
import matplotlib.pyplot as plt

t = np.linspace(0, 10, 400)
plt.figure(figsize=(6, 2.4))
for damping in (0.1, 0.3, 0.6):
    plt.plot(t, np.exp(-damping * t) * np.cos(3 * t), label=f"$\\\\gamma$ = {damping}")
plt.legend()
plt.title("Damped oscillation")
plt.show()"""
QUESTIONS = {
    "en": "Plot a damped oscillation for three values of the damping.",
    "zh": "画出三种阻尼下的阻尼振动曲线。",
}
ANSWERS = {
    "en": r"""The curves are $x(t) = e^{-\gamma t}\cos(3t)$. The larger $\gamma$ is, the sooner the motion dies:

| damping | half of the amplitude after |
|---|---|
| 0.1 | 6.9 s |
| 0.3 | 2.3 s |
| 0.6 | 1.2 s |

$$t_{1/2} = \frac{\ln 2}{\gamma}$$""",
    "zh": r"""曲线为 $x(t) = e^{-\gamma t}\cos(3t)$。$\gamma$ 越大，振动衰减得越快：

| 阻尼 | 振幅减半所需时间 |
|---|---|
| 0.1 | 6.9 秒 |
| 0.3 | 2.3 秒 |
| 0.6 | 1.2 秒 |

$$t_{1/2} = \frac{\ln 2}{\gamma}$$""",
}
EARLIER = {
    "en": ("What does gMASK mean?", "Name three rivers in China", "A haiku about autumn"),
    "zh": ("gMASK 是什么意思？", "列举中国的三条河", "写一首关于秋天的俳句"),
}


def main() -> None:
    """Both pictures."""
    make_environment_once()
    for language, target in (("en", ROOT / "docs/page.png"), ("zh", ROOT / "docs/zh/page.png")):
        rules = {QUESTIONS[language]: (call("python", CODE), ANSWERS[language])}
        with (
            tempfile.TemporaryDirectory() as folder,
            page_server(Path(folder) / "s", rules, "python", functions=False) as served,
            open_browser() as browser,
        ):
            _take(browser, served, language, target)
        print(f"{target.relative_to(ROOT)}: {target.stat().st_size >> 10} kB")


def _take(browser: object, served: Served, language: str, target: Path) -> None:
    locale = {"en": "en-US", "zh": "zh-CN"}[language]
    watch = Watch(browser, served.url, locale=locale, viewport={"width": 1200, "height": 880})  # type: ignore[arg-type]
    chat = Chat(watch, language=language).ready()
    for text in EARLIER[language]:
        chat.ask(text)
        chat.fresh()
    chat.choose_tools("python")
    chat.ask(QUESTIONS[language])
    expect(chat.body().locator("img")).to_be_visible()
    chat.page.wait_for_timeout(500)
    chat.page.screenshot(path=target)
    watch.close()


if __name__ == "__main__":
    main()
