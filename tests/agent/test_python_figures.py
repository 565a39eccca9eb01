"""The python tool with its real environment: figures with Chinese, tables, spreadsheets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from python_conversations import Talk, make_environment_once, needs_sandbox, png_size

from glm4.agent.tools.python import PythonTool, environment
from glm4.sandbox.limits import Limits

pytestmark = [needs_sandbox, pytest.mark.tools]


@pytest.fixture(scope="module", autouse=True)
def _environment() -> None:
    make_environment_once()


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    tool = PythonTool()
    yield Talk(tool, tmp_path)
    tool.close()


def test_figures_are_shown_with_what_they_say(talk: Talk) -> None:
    seen = talk.run(
        "import matplotlib.pyplot as plt\n"
        "plt.plot([1, -2, 3]); plt.title('销售额'); plt.xlabel('月份'); plt.ylabel('数量'); plt.show()\n"
        "fig, axes = plt.subplots(1, 2); fig.suptitle('Both'); axes[1].bar(['a'], [1]); axes[1].set_title('bars')\n"
        "axes[0].plot([1, 2])"
    )
    assert seen.text == (
        "[figure 1 is shown to the user: 销售额; x: 月份; y: 数量]\n[figure 2 is shown to the user: Both; bars]"
    )
    assert [file.name for file in seen.files] == ["figure-1.png", "figure-2.png"]
    assert seen.files[0].alt == "销售额; x: 月份; y: 数量"
    for file in seen.files:
        assert file.media_type == "image/png"
        width, height = png_size(talk.data(file))
        assert (file.width, file.height) == (width, height)
        assert 300 < width < 700
        assert 300 < height < 700
    assert talk.run("plt.get_fignums()").text == "[]"
    third = talk.run("import matplotlib\nmatplotlib.use('Agg')\nplt.plot([1]);\nplt.show()\nplt.plot([2]);")
    assert [file.name for file in third.files] == ["figure-3.png", "figure-4.png"]


@pytest.mark.parametrize(
    "setting", ["", "plt.rcParams['font.sans-serif'] = ['SimHei']", "plt.rcParams['font.family'] = 'Microsoft YaHei'"]
)
def test_chinese_is_drawn_and_not_boxes(talk: Talk, setting: str) -> None:
    """matplotlib warns of each character that the fonts lack; a character of the private area is one."""
    prelude = f"import matplotlib.pyplot as plt\n{setting}\nplt.rcParams['axes.unicode_minus'] = False"
    seen = talk.run(
        f"{prelude}\nplt.plot([-1, 1]); plt.title('中文标题 直骨今', fontweight='bold'); plt.xlabel('年α≤')"
    )
    assert seen.text == "[figure 1 is shown to the user: 中文标题 直骨今; x: 年α≤]"
    assert "missing from" in talk.run("plt.title('\\ue000')").text


def test_a_failed_call_shows_no_half_drawn_figure(talk: Talk) -> None:
    seen = talk.run("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.plot(x)")
    assert seen.files == []
    assert "NameError" in seen.text
    assert talk.run("plt.get_fignums()").text == "[]"


def test_many_and_giant_figures_are_limited(talk: Talk) -> None:
    seen = talk.run("import matplotlib.pyplot as plt\nfor i in range(10): plt.figure(); plt.plot([i])")
    assert len(seen.files) == 8
    assert "2 more figures are not shown" in seen.text
    seen = talk.run("plt.figure(figsize=(60, 5), dpi=300); plt.plot([1])")
    assert png_size(talk.data(seen.files[0]))[0] <= 4096
    seen = talk.run("plt.plot([1]); plt.text(0, 1000, 'far outside');")
    assert max(png_size(talk.data(seen.files[0]))) <= 4096
    talk.run("import numpy as np")
    noise = talk.run("plt.figure(figsize=(25, 25)); plt.imshow(np.random.rand(2000, 2000, 3), interpolation='none')")
    assert noise.files[0].nbytes <= 5_000_000


def test_tables_are_text(talk: Talk) -> None:
    code = "import pandas as pd\ntable = pd.DataFrame({'城市': ['北京', 'Oslo'], '人口': [21893095, 709037]})\ntable"
    assert talk.run(code).text == "   城市      人口\n0  北京  21893095\n1  Oslo    709037"
    wide = talk.run("pd.DataFrame([range(12)], columns=[f'column {i}' for i in range(12)])").text
    assert len(wide.splitlines()) == 2
    assert "KeyError: 'no'" in (text := talk.run("table['no']").text)
    assert "site-packages" not in text


def test_files_go_in_and_out(talk: Talk) -> None:
    talk.tool.add_file("销售.csv", "月份,金额\n一月,10\n二月,32\n".encode())
    seen = talk.run(
        "import pandas as pd\ntable = pd.read_csv('/mnt/data/销售.csv')\ntable.to_excel('/mnt/data/out.xlsx')\n"
        "print(table['金额'].sum())"
    )
    assert seen.text.startswith("42\n[/mnt/data/out.xlsx (")
    assert talk.data(seen.files[0]).startswith(b"PK")
    assert talk.run("pd.read_excel('out.xlsx')['金额'].tolist()").text == "[10, 32]"


def test_the_environment_cannot_be_changed(talk: Talk) -> None:
    text = talk.run("import numpy, os, sys\nopen(os.path.join(os.path.dirname(numpy.__file__), 'x'), 'w')").text
    assert "Read-only file system" in text
    assert talk.run("numpy.__version__").text == f"'{environment.packages()['numpy']}'"
    # Compiled beforehand, with the paths that tracebacks show.
    assert talk.run("numpy.__cached__ and os.path.exists(numpy.__cached__)").text == "True"
    assert talk.run("numpy.array.__module__, numpy.mean.__wrapped__.__code__.co_filename[:11]").text.endswith(
        "'/opt/python')"
    )


def test_a_large_array_is_a_memory_error(tmp_path: Path) -> None:
    tool = PythonTool(limits=Limits(memory_nbytes=768 << 20))
    talk = Talk(tool, tmp_path)
    assert "MemoryError" in talk.run("import numpy as np\nx = 1\nnp.ones(10**9)").text
    assert talk.run("x").text == "1"
    tool.close()


def test_what_is_installed_is_complete() -> None:
    folder = environment.environment_folder()
    assert set(environment.packages()) == {"numpy", "pandas", "matplotlib", "openpyxl"}
    assert [file.name for file in (folder / "bin").iterdir()] == ["python"]
    assert not list(folder.parent.glob(".*.partial"))
