"""`glm4 completion`: a shell completion script for commands and options."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Annotated

from glm4.cli.commands import COMMANDS
from glm4.cli.parameters import Argument, UsageError, declared

EXAMPLES = """
eval "$(glm4 completion bash)"
glm4 completion fish > ~/.config/fish/completions/glm4.fish
"""

_ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit"


def completion(shell: Annotated[str, Argument(metavar="SHELL", help="bash, zsh or fish.")]) -> None:
    """Print a script with which a shell completes commands and options.

    For bash and zsh, put the first example (with the shell's name) into ~/.bashrc or ~/.zshrc; fish finds the file of
    the second one.
    """
    if shell not in ("bash", "zsh", "fish"):
        raise UsageError(f"completion is for bash, zsh and fish, not {shell!r}")
    print("\n".join([*([_ZSH] if shell == "zsh" else []), *(_fish() if shell == "fish" else _bash())]))


def _bash() -> Iterator[str]:
    """Words for `compgen`; if none match, the shell completes file names."""
    yield '_glm4() {\n    local words= current="${COMP_WORDS[COMP_CWORD]}"'
    yield '    case "$COMP_CWORD:${COMP_WORDS[1]}:$current" in'
    yield f"        1:*) words='{' '.join([*COMMANDS, '--version', '--help'])}' ;;"
    for name, row in COMMANDS.items():
        spellings = [spelling for option in declared(row.load(name)[1]) for spelling in option.spellings]
        yield f"        *:{name}:-*) words='{' '.join([*spellings, '--help'])}' ;;"
    yield '    esac\n    COMPREPLY=($(compgen -W "$words" -- "$current"))\n}\ncomplete -o default -F _glm4 glm4'


def _fish() -> Iterator[str]:
    """One `complete` line per command and option."""
    for name, row in COMMANDS.items():
        yield f"complete -c glm4 -n __fish_use_subcommand -f -a {name} -d {shlex.quote(row.summary)}"
        for option in declared(row.load(name)[1]):
            names = " ".join(f"{'-l' if s.startswith('--') else '-s'} {s.lstrip('-')}" for s in option.spellings)
            value, about = (
                "" if option.kind is bool or option.declaration.bare is not None else "-r ",
                shlex.quote(option.declaration.help),
            )
            if names:
                yield f"complete -c glm4 -n '__fish_seen_subcommand_from {name}' {names} {value}-d {about}"
