"""Rendering follows Transformers' `apply_chat_template`, and what a template may use."""

from __future__ import annotations

import re
from typing import Any

import pytest

from glm4.chat.template.template import MAX_SOURCE_CHARS, ChatTemplate, default_template
from glm4.errors import TemplateError


def render(source: str, **variables: Any) -> str:
    return ChatTemplate(source).render(variables)


def test_blocks_are_trimmed() -> None:
    assert render("a{% if true %}\n\n## b\n  {% endif %}\nc") == "a\n## b\nc"


def test_undefined_values_are_lenient() -> None:
    assert render("[{{ nothing }}{{ m.metadata }}]", m={"role": "user"}) == "[]"


def test_tojson_is_plain_json() -> None:
    tool = {"b": "<x> & 'y' \"z\" 你", "a": [1, 2.5, None, True]}
    assert render("{{ t | tojson }}", t=tool) == '{"b": "<x> & \'y\' \\"z\\" 你", "a": [1, 2.5, null, true]}'
    assert render("{{ t | tojson(indent=4) }}", t={"a": 1}) == '{\n    "a": 1\n}'
    assert (
        render("{{ t | tojson(ensure_ascii=True, sort_keys=True) }}", t={"b": "é", "a": 1})
        == '{"a": 1, "b": "\\u00e9"}'
    )
    assert render("{{ t | tojson(separators=(',', ':')) }}", t={"a": [1, 2]}) == '{"a":[1,2]}'


def test_nothing_is_escaped() -> None:
    assert render("{{ '<b>' }}{{ x | safe }}{{ '<i>' + x | safe }}", x="<a> & 'b'") == "<b><a> & 'b'<i><a> & 'b'"


def test_loop_controls_and_generation_tags() -> None:
    assert render("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "012"
    assert render("{% generation %}a{{ 1 }}{% endgeneration %}b") == "a1b"


def test_loops_know_their_neighbours() -> None:
    source = "{% for m in ms %}{{ loop.index0 }}{{ m }}{{ ms[loop.index0 - 1] }}{{ ',' if not loop.last }}{% endfor %}"
    assert render(source, ms=["a", "b", "c"]) == "0ac,1ba,2cb"
    assert render("{% for k, v in d | dictsort %}{{ k }}={{ v }};{% endfor %}", d={"b": 1, "a": 2}) == "a=2;b=1;"
    assert render("{% for k, v in d.items() %}{{ k }}{{ loop.length }}{% endfor %}", d={"b": 1, "a": 2}) == "b2a2"
    assert render("{% for x in xs[::-1] if x > 1 %}{{ loop.revindex }}{{ x }} {% endfor %}", xs=[1, 2, 3]) == "23 12 "


def test_text_methods_and_filters() -> None:
    assert render("{{ c.split('</think>')[-1].strip() }}", c="<think>a</think> b ") == "b"
    assert render("{{ c.startswith('a') and 'b' in c and c.endswith('c') }}", c="abc") == "True"
    assert render("{{ c | trim | upper | replace('A', 'x') ~ (c | length) }}", c=" a ") == "x3"
    assert render("{{ xs | map('upper') | select('ne', 'B') | join(', ') }}", xs=["a", "b", "c"]) == "A, C"
    assert render("{{ ', '.join(xs) }}{{ xs | first }}{{ (xs | last).ljust(3) }}.", xs=["a", "b"]) == "a, bab  ."
    assert (
        render("{{ '%s-%02d' % ('a', 3) }}{{ '%s' | format(5) }}{{ 'x' * 3 }}{{ [1] * 2 }}{{ 7 // 2 }}")
        == "a-035xxx[1, 1]3"
    )
    assert (
        render("{{ ms | selectattr('role', 'equalto', 'user') | list | length }}", ms=[{"role": "user"}, {"role": "x"}])
        == "1"
    )
    assert render("{{ x | default('d') }}{{ x or 'e' }}{{ 1 ~ none ~ true }}") == "de1NoneTrue"
    assert render("{{ t | indent(2) }}{{ {'a': 1} | items | list }}", t="a\nb") == "a\n  b[('a', 1)]"


def test_namespaces_and_macros() -> None:
    source = (
        "{% set ns = namespace(n=0, s='') %}"
        "{% for m in ms %}{% set ns.n = ns.n + m %}{% set ns.s = ns.s + '.' %}{% endfor %}"
        "{% macro show(x, y=2) %}<{{ x }}{{ y }}>{% endmacro %}{{ ns.n }}{{ ns.s }}{{ show(1) }}{{ show(1, y=[3]) }}"
    )
    assert render(source, ms=[1, 2]) == "3..<12><1[3]>"
    assert render("{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}x{% endcall %}") == "[x]"
    assert render("{% set t %}a{{ 1 }}{% endset %}{{ t }}{% filter upper %}b{% endfilter %}") == "a1B"
    assert (
        render(
            "{% for x in tree recursive %}{{ x.n }}({{ loop(x.c) }}){% endfor %}",
            tree=[{"n": 1, "c": [{"n": 2, "c": []}]}],
        )
        == "1(2())"
    )


def test_the_template_can_refuse() -> None:
    with pytest.raises(TemplateError, match=r"at line 2: Roles must alternate"):
        render("a\n{{ raise_exception('Roles must alternate') }}")


def test_date() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", render("{{ strftime_now('%Y-%m-%d') }}"))


def test_mistakes_name_their_line() -> None:
    with pytest.raises(TemplateError, match="does not compile, line 2"):
        ChatTemplate("a\n{% if %}")
    with pytest.raises(TemplateError, match="No filter named 'nonsense'"):
        ChatTemplate("{{ a | nonsense }}")
    with pytest.raises(TemplateError, match="at line 3: 'x' is undefined"):
        render("a\n\n{{ x.y.z }}")
    with pytest.raises(TemplateError, match="ZeroDivisionError"):
        render("{{ 1 / 0 }}")


def test_the_variables_stay_as_they_are() -> None:
    messages = [{"role": "user", "content": "hi"}]
    for source in ("{{ messages.pop() }}", "{% set messages[0].role = 'x' %}", "{{ messages[0].update({'a': 1}) }}"):
        with pytest.raises(TemplateError):
            render(source, messages=messages)
    assert messages == [{"role": "user", "content": "hi"}]


def test_source_size() -> None:
    with pytest.raises(TemplateError, match="is refused"):
        ChatTemplate(" " * (MAX_SOURCE_CHARS + 1))


@pytest.mark.parametrize("name", ["glm4", "glm4_0414", "glm_z1", "chatml"])
def test_our_own_templates_render_nothing_for_nothing(name: str) -> None:
    empty = default_template(name).render({"messages": [], "tools": None, "add_generation_prompt": False})
    assert empty == ("" if name == "chatml" else "[gMASK]<sop>")


def test_long_conversations_are_within_the_budget() -> None:
    messages = [{"role": "user", "content": "x" * 20_000, "metadata": ""} for _ in range(500)]
    text = default_template("glm4").render({"messages": messages, "add_generation_prompt": True})
    assert len(text) > 10_000_000
