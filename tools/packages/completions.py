"""Completions for bash, zsh and fish from what `commands` read; names of profiles say qvpn.

Each shell gets a table of what can follow which words, and one function that looks it up.
"""

from __future__ import annotations

from tools.packages.commands import Argument, Command

#: What asks for the values of a placeholder, by its name.
_ASK = {"PROFILE": "qvpn profile list"}

_BASH = r"""# Generated from the command's own options.
_%(function)s() {
    local current=${COMP_WORDS[COMP_CWORD]} path=%(name)s word
    local -A next=( %(next)s )
    local -A values=( %(values)s )
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        [[ -v next["$path $word"] ]] && path+=" $word"
    done
    local before=${COMP_WORDS[COMP_CWORD-1]}
    local words=${values["$path $before"]-}
    [[ -n $words ]] || words=${next["$path"]}
    case $words in
        @file) COMPREPLY=($(compgen -f -- "$current")); return ;;
        @directory) COMPREPLY=($(compgen -d -- "$current")); return ;;
        @none) return ;;
    esac
    if [[ $words == *@profile* ]]; then
        words=${words/@profile/$(%(ask)s 2>/dev/null)}
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -F _%(function)s %(name)s
"""

_ZSH = """#compdef %(name)s
# Generated from the command's own options.
autoload -U +X bashcompinit && bashcompinit
source /usr/share/bash-completion/completions/%(name)s
"""


def bash(command: Command) -> str:
    """For /usr/share/bash-completion/completions."""
    following: list[str] = []
    values: list[str] = []
    for item in command.walk():
        path = " ".join(item.words)
        words = [sub.words[-1] for sub in item.commands]
        for argument in item.arguments:
            words += argument.options
            if not argument.options:
                words += ["@profile"] if _profile(item, argument) else argument.choices
            elif argument.takes_value:
                values += [f'["{path} {name}"]="{_values(argument)}"' for name in argument.options]
        following.append(f'["{path}"]="{" ".join(words)}"')
    return _BASH % {
        "function": command.words[0].replace("-", "_"),
        "name": command.words[0],
        "next": " ".join(following),
        "values": " ".join(values),
        "ask": _ASK["PROFILE"],
    }


def fish(command: Command) -> str:
    """For /usr/share/fish/vendor_completions.d."""
    name = command.words[0]
    lines = ["# Generated from the command's own options.", f"complete -c {name} -f"]
    for item in command.walk():
        inner = item.words[1:]
        below = " ".join(sub.words[-1] for sub in item.commands)
        parts = [f"__fish_seen_subcommand_from {word}" for word in inner]
        if below:
            parts.append(f"not __fish_seen_subcommand_from {below}")
        where = f" -n '{'; and '.join(parts)}'" if parts else ""
        for sub in item.commands:
            lines.append(f"complete -c {name}{where} -a {sub.words[-1]} -d {_quoted(sub.help)}")
        for argument in item.arguments:
            lines += _fish_argument(name, where, item, argument)
    return "\n".join(lines) + "\n"


def _fish_argument(name: str, where: str, item: Command, argument: Argument) -> list[str]:
    if not argument.options:
        if _profile(item, argument):
            return [f"complete -c {name}{where} -a '({_ASK['PROFILE']})'"]
        return []
    text = f"complete -c {name}{where}"
    for option in argument.options:
        text += f" -l {option[2:]}" if option.startswith("--") else f" -s {option[1:]}"
    if argument.choices:
        text += f" -x -a '{' '.join(argument.choices)}'"
    elif _values(argument) in ("@file", "@directory"):
        text += " -r -F"
    elif argument.takes_value:
        text += " -x"
    return [text + (f" -d {_quoted(argument.help)}" if argument.help else "")]


def _profile(item: Command, argument: Argument) -> bool:
    known = item.words[:2] in (("qvpn", "up"), ("qvpn", "down"))
    shown = item.words[:3] in (("qvpn", "profile", "show"), ("qvpn", "profile", "remove"))
    return (known and argument.metavar == "PROFILE") or (shown and argument.metavar == "NAME")


def _values(argument: Argument) -> str:
    if argument.choices:
        return " ".join(argument.choices)
    if argument.metavar in ("FILE", "PEM"):
        return "@file"
    return "@directory" if argument.metavar == "DIR" else "@none"


def _quoted(text: str) -> str:
    """For fish: only backslash and quote mean something inside single quotes."""
    words = " ".join(text.split())
    return "'" + words.replace("\\", "\\\\").replace("'", "\\'") + "'"


def zsh(command: Command) -> str:
    """For /usr/share/zsh/vendor-completions: zsh runs bash's through its own bridge."""
    return _ZSH % {"name": command.words[0]}
