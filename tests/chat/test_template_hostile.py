"""Templates from a stranger: loops, huge values, reaching for Python. Each ends in a TemplateError, soon and small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from glm4.chat.template import budget
from glm4.chat.template.template import ChatTemplate
from glm4.errors import TemplateError

STATUS = Path("/proc/self/status")


def grow(start: str, step: str) -> str:
    """A loop that makes a value from its last value, sixty times."""
    return f"{{% set ns = namespace(s={start}) %}}{{% for i in range(60) %}}{{% set ns.s = {step} %}}{{% endfor %}}"


def each(body: str, before: str = "") -> str:
    """A long loop."""
    return before + "{% for x in range(99999) %}" + body + "{% endfor %}"


BIG = "{% set s = 'a' * 4000000 %}"
KEEP = BIG + "{% set ns = namespace(p=0) %}"

LOOPS = {
    "nested ranges": each(each(each(""))),
    "loops that do nothing": each("{% for b in range(99999) if b < 0 %}{% endfor %}"),
    "work in a condition": "{% set l = range(99999) | list %}{% for x in l if l | sort | length < 0 %}{% endfor %}",
    "work in a lazy filter": BIG + "{{ range(99999) | map('string') | select('in', s) | list }}",
    "searching": each("{% if 'zzz' in s %}{% endif %}", BIG),
    "macro trees": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursive loops": "{% for x in [1] recursive %}{% if loop.depth < 40 %}{{ loop([1, 1]) }}{% endif %}{% endfor %}",
    "huge range": "{% for x in range(10000000000) %}{% endfor %}",
    "endless recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a block in itself": "{% block a %}{{ self.a() }}{% endblock %}",
}
SIZES = {
    "text times": "{{ 'a' * 10 ** 9 }}",
    "constant text times": "{{ 'a' * 1000000000 }}",
    "list times": "{% set l = [0] * 1000000000 %}",
    "nested list times": "{{ ['a' * 1000000] * 4000 }}",
    "doubling with ~": grow("'aaaaaaaa'", "ns.s ~ ns.s"),
    "doubling with +": grow("'aaaaaaaa'", "ns.s + ns.s"),
    "doubling lists": grow("[1, 2]", "ns.s + ns.s"),
    "lists of lists": grow("[1]", "[ns.s, ns.s, ns.s, ns.s]"),
    "dicts of dicts": grow("[1]", "{'a': ns.s, 'b': [ns.s], 'c': ns.s}"),
    "dict calls": grow("[1]", "dict(a=ns.s, b=ns.s)"),
    "namespaces of namespaces": grow("1", "namespace(a=ns.s, b=ns.s)") + "{{ ns.s }}",
    "a namespace in itself": "{% set x = namespace() %}{% set x.x = [x, x, x] %}{{ x }}",
    "big numbers": grow("9", "ns.s * ns.s"),
    "powers": "{{ 9 ** 99999999 }}",
    "slices kept": each("{% set ns.p = namespace(p=ns.p, s=s[1:]) %}", KEEP),
    "copies kept": each("{% set ns.p = namespace(p=ns.p, s=s.upper()) %}", KEEP),
    "much output": each("{{ s }}", BIG),
    "much constant output": each("y" * 10000),
    "much output into a variable": "{% set t %}" + each("y" * 10000) + "{% endset %}",
    "much output in a macro": "{% macro m() %}"
    + "y" * 10000
    + "{% endmacro %}{% for x in range(99999) %}{% set t = m() %}{% endfor %}",
    "% width": "{{ '%999999999d' % 1 }}",
    "% precision": "{{ '%.999999999f' % 1.5 }}",
    "% star": "{{ '%*d' % (999999999, 1) }}",
    "% named width": "{{ '%(a)999999999s' % {'a': 1} }}",
    "% nested name": "{{ '%(a(b)c)999999999s' % {'a(b)c': 1} }}",
    "% many": "{{ ('%s' * 10000) % (('a' * 1000,) * 10000) }}",
    "format filter": "{{ '%999999999d' | format(1) }}",
    "format method": "{{ '{:999999999}'.format(1) }}",
    "center": "{{ 'a' | center(999999999) }}",
    "center method": "{{ 'a'.center(999999999) }}",
    "zfill": "{{ 'a'.zfill(999999999) }}",
    "indent": "{{ ('\\n' * 10000) | indent(100000) }}",
    "indented JSON": "{{ [1] | tojson(indent=99999999) }}",
    "JSON separators": "{{ range(1000) | list | tojson(separators=('a' * 100000, 'b')) }}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace nothing": "{{ ('a' * 100000) | replace('', 'b' * 100000) }}",
    "join": "{{ range(99999) | map('string') | join('a' * 1000) }}",
    "join method": "{{ ('a' * 1000).join(range(99999) | map('string')) }}",
    "batch": "{{ [1] | batch(99999999, 'x') | list }}",
    "slice": "{{ [1] | slice(99999999) | list }}",
    "split": "{{ (',' * 4000000).split(',') }}",
    "date width": "{{ strftime_now('%999999999Y') }}",
}
REACHING = {
    "class": "{{ ''.__class__ }}",
    "class by item": "{{ ''['__class__'] }}",
    "class by filter": "{{ '' | attr('__class__') }}",
    "class by map": "{{ ['a'] | map(attribute='__class__') | list }}",
    "asking for a class": "{{ 1 if ''.__class__ is defined }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ namespace.__init__.__globals__ }}",
    "function": "{{ raise_exception.__globals__ }}",
    "self": "{{ self._TemplateReference__context }}",
    "macro": "{% macro m() %}{% endmacro %}{{ m._func }}",
    "loop": "{% for x in [1] %}{{ loop._iterator }}{% endfor %}",
    "list method": "{{ messages.append(1) }}",
    "dict method": "{{ messages[0].clear() }}",
    "int method": "{{ (1).to_bytes(99999) }}",
    "encode": "{{ 'a'.encode() }}",
    "lipsum": "{{ lipsum.__globals__ }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "from import": "{% from 'os' import path %}",
    "extends": "{% extends 'base' %}",
}
NESTING = {
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "sums": "{{ " + "+".join(["1"] * 20000) + " }}",
    "signs": "{{ " + "-" * 20000 + "1 }}",
    "ifs": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "open braces": "{" * 50000,
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same limits, reached sooner."""
    monkeypatch.setattr(budget, "MAX_STEPS", 50_000)
    monkeypatch.setattr(budget, "MAX_SECONDS", 0.3)


def refused(source: str) -> str:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source).render({"messages": [{"role": "user", "content": "hi"}]})
    assert len(str(caught.value)) < 1000
    return str(caught.value)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", LOOPS)
def test_loops(name: str) -> None:
    message = refused(LOOPS[name])  # once: which limit comes first depends on the machine
    assert any(word in message for word in ("too many steps", "too long", "nests too deeply", "Range too big")), message


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name: str) -> None:
    message = refused(SIZES[name])
    bounds = ("more than", "too much", "too large", "width", "pads", "indents", "separators", "'format'", "date")
    assert any(word in message for word in bounds), message


@pytest.mark.parametrize("name", REACHING)
def test_reaching(name: str) -> None:
    message = refused(REACHING[name])
    assert any(word in message for word in ("may not", "No filter", "is undefined")), message


@pytest.mark.parametrize("name", NESTING)
def test_nesting(name: str) -> None:
    assert "RecursionError" in refused(NESTING[name])


@pytest.mark.skipif(not STATUS.exists(), reason="needs Linux's account of a process's peak memory")
@pytest.mark.thorough
def test_memory() -> None:
    """All of them in one process stay below 600 MB; without bounds several need many gigabytes."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import test_template_hostile as t\n"
        "for source in t.SIZES.values():\n    t.refused(source)\n"
        "print(t.STATUS.read_text())"
    )
    folder = __file__.rpartition("/")[0]
    run = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True, timeout=250)
    # Not ru_maxrss: that of a child begins with the peak of its parent.
    peak = next(line for line in run.stdout.splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) >> 10 < 600


def test_default_limits_stop_a_loop() -> None:
    assert "too many steps" in refused(LOOPS["nested ranges"])
