"""Manual pages (man(7)) from what `commands` read."""

from __future__ import annotations

from datetime import UTC, datetime

from tools.packages.commands import Argument, Command


def page(command: Command, *, version: str, epoch: int, files: str, see_also: str) -> str:
    """One page for a command and everything below it; `epoch` is its date, in seconds."""
    name = command.words[0]
    date = datetime.fromtimestamp(epoch, UTC).date().isoformat()
    lines = [
        f'.TH {name.upper()} 1 "{date}" "qvpn {version}" "User Commands"',
        ".SH NAME",
        f"{_text(name)} \\- {_text(command.help.rstrip('.'))}",
        ".SH SYNOPSIS",
    ]
    every = list(command.walk())
    leaves = [item for item in every if not item.commands]
    for item in leaves:
        lines += [".PP", f"\\fB{_text(' '.join(item.words))}\\fR {_text(_rest(item))}"]
    if len(every) > 1:
        lines.append(".SH COMMANDS")
    for item in leaves:
        if len(every) > 1:
            lines += [f".SS {_text(' '.join(item.words))}", _text(_sentence(item.help))]
        for argument in item.arguments:
            if argument.options != ("-h", "--help"):
                lines += _described(argument)
    if command.epilog:
        lines += [".SH EXIT STATUS", _text(command.epilog.removeprefix("Exit status: "))]
    lines += [".SH FILES", files.strip(), ".SH SEE ALSO", see_also.strip()]
    return "\n".join(line for line in lines if line) + "\n"


def _rest(command: Command) -> str:
    """The usage, without the command's own words."""
    text = command.usage
    for word in command.words:
        text = text.removeprefix(word).lstrip()
    return text.removeprefix("[-h]").lstrip()


def _described(argument: Argument) -> list[str]:
    if argument.options:
        names = ", ".join(f"\\fB{_text(option)}\\fR" for option in argument.options)
        head = f"{names} \\fI{_text(argument.metavar)}\\fR" if argument.takes_value else names
    else:
        head = f"\\fI{_text(argument.metavar)}\\fR"
    body = argument.help
    if argument.choices and "|".join(argument.choices) != argument.metavar:
        body = f"{body}: {', '.join(argument.choices)}" if body else ", ".join(argument.choices)
    return [".TP", head, _text(_sentence(body)) or "\\&"]


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if not text or text.endswith((".", ":")) else text + "."


def _text(text: str) -> str:
    """Escaped: backslashes, hyphens that are typed, and what would begin a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    return "\\&" + text if text.startswith((".", "'")) else text
