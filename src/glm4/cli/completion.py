"""`glm4 completion`: a script with which a shell completes commands and options."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Annotated

from glm4.cli.commands import COMMANDS
from glm4.cli.parameters import Argument, Declared, UsageError, declared

EXAMPLES = """
eval "$(glm4 completion bash)"
glm4 completion zsh > ~/.zfunc/_glm4
glm4 completion fish > ~/.config/fish/completions/glm4.fish
"""


def completion(
    shell: Annotated[str, Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print a script with which a shell completes commands and options.

    bash reads it from ~/.bashrc (first example), zsh from a folder of its fpath, fish from its folder of completions.
    """
    if shell not in _SCRIPTS:
        raise UsageError(f"completion is for {', '.join(_SCRIPTS)}, not {shell!r}")
    print("\n".join(_SCRIPTS[shell]({name: _options(name) for name in COMMANDS})))


def _options(name: str) -> list[Declared]:
    _, function = COMMANDS[name].load(name)
    return [parameter for parameter in declared(function) if parameter.spellings]


def _spellings(options: list[Declared]) -> list[str]:
    return [*(spelling for option in options for spelling in option.spellings), "--help"]


def _bash(commands: dict[str, list[Declared]]) -> Iterator[str]:
    """Words for `compgen`; where none fits, bash completes file names."""
    yield "_glm4() {"
    yield '    local words= current="${COMP_WORDS[COMP_CWORD]}"'
    yield '    case "$COMP_CWORD:${COMP_WORDS[1]}:$current" in'
    yield f'        1:*) words="{" ".join([*commands, "--version", "--help"])}" ;;'
    for name, options in commands.items():
        yield f'        *:{name}:-*) words="{" ".join(_spellings(options))}" ;;'
    yield "    esac"
    yield '    COMPREPLY=($(compgen -W "$words" -- "$current"))'
    yield "}"
    yield "complete -o default -F _glm4 glm4"


def _zsh(commands: dict[str, list[Declared]]) -> Iterator[str]:
    """`name:description` pairs for `_describe`."""

    def pair(word: str, text: str) -> str:
        return shlex.quote(f"{word}:{text}")

    yield "#compdef glm4"
    yield "_glm4() {"
    yield "    local -a found"
    yield '    case "$CURRENT:$words[2]:$PREFIX" in'
    yield f"        2:*) found=({' '.join(pair(name, COMMANDS[name].summary) for name in commands)}) ;;"
    for name, options in commands.items():
        pairs = [pair(spelling, option.declaration.help) for option in options for spelling in option.spellings]
        yield f"        *:{name}:-*) found=({' '.join(pairs)} --help:'Show the options.') ;;"
    yield "    esac"
    yield "    if (( $#found )); then _describe glm4 found; else _files; fi"
    yield "}"
    yield 'if [[ "$funcstack[1]" == _glm4 ]]; then _glm4; else compdef _glm4 glm4; fi'


def _fish(commands: dict[str, list[Declared]]) -> Iterator[str]:
    """One `complete` command per word."""
    for name, options in commands.items():
        yield f"complete -c glm4 -n __fish_use_subcommand -f -a {name} -d {_fish_quote(COMMANDS[name].summary)}"
        for option in options:
            names = " ".join(f"-{'l' if s.startswith('--') else 's'} {s.lstrip('-')}" for s in option.spellings)
            value = "" if option.kind is bool else " -r"
            about = _fish_quote(option.declaration.help)
            yield f"complete -c glm4 -n '__fish_seen_subcommand_from {name}' {names}{value} -d {about}"


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_SCRIPTS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
