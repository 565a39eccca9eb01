"""Run by the python tool's own interpreter while its environment is made: matplotlib's settings and table of fonts.

Arguments: the environment's folder; the path it will have in the sandbox. Written are `matplotlib/matplotlibrc` and
`matplotlib/fontlist-….json` in the folder. No other font of the machine is in the table, so figures look the same
everywhere.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

_CJK = "Noto Sans CJK JP"
# What code in the wild asks for when it wants Chinese: all of them are the one font there is.
_ALIASES = (
    "SimHei", "SimSun", "Microsoft YaHei", "KaiTi", "FangSong", "STHeiti", "STSong", "Heiti SC", "Heiti TC",
    "PingFang SC", "Noto Sans CJK SC", "Noto Sans CJK TC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Arial Unicode MS", "Songti SC", "MS Gothic", "Malgun Gothic",
)  # fmt: skip


def main(folder: Path, target: str) -> None:
    """Write both files."""
    import matplotlib  # of the environment
    from matplotlib import font_manager

    manager: Any = font_manager.FontManager.__new__(font_manager.FontManager)
    manager.__dict__.update(font_manager.fontManager.__dict__)
    bundled = Path(matplotlib.get_data_path())
    manager.ttflist = [entry for entry in manager.ttflist if bundled in Path(entry.fname).parents]
    manager.afmlist = [entry for entry in manager.afmlist if bundled in Path(entry.fname).parents]
    manager.addfont(_font_file())
    entry = manager.ttflist.pop()
    path = entry.fname.replace(str(folder), target)
    for name in (_CJK, *_ALIASES):  # bold, too, or each bold title gets a line on standard error
        manager.ttflist += [dataclasses.replace(entry, fname=path, name=name, weight=weight) for weight in (400, 700)]
    settings = {
        "backend": "Agg",
        "font.family": f"DejaVu Sans, {_CJK}",
        "font.sans-serif": f"DejaVu Sans, {_CJK}",
    }
    if "text.language" in matplotlib.rcParams:  # Chinese forms of the characters that Japanese writes otherwise
        settings["text.language"] = "zh-Hans"
    output = folder / "matplotlib"
    output.mkdir()
    (output / "matplotlibrc").write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
    font_manager.json_dump(manager, output / f"fontlist-v{font_manager.FontManager.__version__}.json")


def _font_file() -> Path:
    """The package's font, without running the package."""
    spec = importlib.util.find_spec("notojp_matplotlib")
    assert spec is not None  # noqa: S101
    assert spec.origin is not None  # noqa: S101
    return next((Path(spec.origin).parent / "fonts").glob("*.otf"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
