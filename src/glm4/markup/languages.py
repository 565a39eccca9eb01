"""The languages that code blocks are colored in: those that models write, not all five hundred that Pygments knows.

A lexer is a set of regular expressions that text made for it can make slow; fewer of them is less to trust.
"""

from __future__ import annotations

from functools import lru_cache

from pygments.lexer import Lexer
from pygments.lexers import find_lexer_class_by_name
from pygments.util import ClassNotFound

from glm4.markup.code_classes import words

_NAMES = """
    abnf ada apache applescript awk bash batch bibtex c clojure cmake cobol common-lisp console coq cpp
    crystal csharp css cuda cython d dart delphi diff django dockerfile ebnf elixir emacs-lisp erb
    erlang fish fortran fsharp gas gdscript gherkin glsl go graphql groovy handlebars haskell hcl hlsl html
    http ini java javascript jinja json jsonnet jsx julia kotlin kql latex lean lean4 less llvm lua make
    markdown mathematica matlab meson mysql nasm nginx nim nix objective-c ocaml octave pascal perl php
    plpgsql postgresql powershell prolog promql properties protobuf puppet pycon pytb python python2 r racket
    rst ruby rust sas sass scala scheme scss sed solidity sql sqlite3 stata swift
    systemverilog tcl terraform tex thrift toml tsx typescript v vbnet verilog vhdl vim vue wgsl xml yaml
    zig
"""

# Pygments' name, and how else models call it.
_ALIASES = """
    bash: sh shell zsh
    batch: bat cmd
    c: h
    clojure: clj
    common-lisp: lisp
    console: terminal shell-session
    cpp: c++ cc hpp
    csharp: cs c#
    diff: patch
    dockerfile: docker
    elixir: ex
    emacs-lisp: elisp
    fortran: f90
    fsharp: f#
    go: golang
    haskell: hs
    html: htm xhtml
    ini: conf cfg
    javascript: js mjs node
    json: jsonc json5 jsonl
    julia: jl
    kotlin: kt
    make: makefile
    markdown: md
    nasm: asm assembly
    objective-c: objc objectivec
    ocaml: ml
    perl: pl
    postgresql: postgres
    powershell: ps1
    protobuf: proto
    python: py python3 ipython
    ruby: rb
    rust: rs
    sql: plsql mssql
    sqlite3: sqlite
    systemverilog: sv
    terraform: tf
    typescript: ts
    vbnet: vb
    xml: svg
    yaml: yml
"""


@lru_cache(maxsize=256)
def lexer_class(language: str) -> type[Lexer] | None:
    """The lexer of a language by its name in lower case; None for one that is not in the list."""
    name = ALIASES.get(language, language)
    if name not in LANGUAGES:
        return None
    try:
        found: type[Lexer] = find_lexer_class_by_name(name)
        return found
    except ClassNotFound:  # an older Pygments
        return None


def _by_alias(table: str) -> dict[str, str]:
    rows = (line.split(":") for line in table.split("\n") if line)
    return {alias: name.strip() for name, aliases in rows for alias in aliases.split()}


LANGUAGES = words(_NAMES)
ALIASES = _by_alias(_ALIASES)
