"""Compiled grammars over token ids: one vocabulary in llguidance's form, and matchers that follow a grammar in it.

`requests/` turns what callers ask for into grammars, and decides which may be compiled. This room only compiles them
and follows them, so that the worker processes of a backend can do that, too.
"""
