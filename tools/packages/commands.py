"""A command as its argparse parser knows it, in a form to write manual pages and completions from.

Reads parsers and nothing else, so that no page can say what the command does not.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Argument:
    """An option, or a positional one without `options`."""

    options: tuple[str, ...]
    metavar: str
    help: str
    choices: tuple[str, ...]

    @property
    def takes_value(self) -> bool:
        return bool(self.metavar)


@dataclass(frozen=True, slots=True)
class Command:
    """A command with its words, such as ``qvpn routes explain``, and the commands below it."""

    words: tuple[str, ...]
    help: str
    epilog: str
    usage: str
    arguments: tuple[Argument, ...]
    commands: tuple[Command, ...]

    def walk(self) -> Iterator[Command]:
        """This one and all below, in the order of their parsers."""
        yield self
        for command in self.commands:
            yield from command.walk()


def read(parser: argparse.ArgumentParser, summary: str = "") -> Command:
    """The command of a parser."""
    arguments: list[Argument] = []
    commands: list[Command] = []
    for action in parser._actions:  # argparse has no public way to list them
        if isinstance(action, argparse._SubParsersAction):
            helps = {item.dest: item.help or "" for item in action._choices_actions}
            commands += [read(sub, helps.get(name, "")) for name, sub in action.choices.items()]
        elif action.help != argparse.SUPPRESS:
            arguments.append(_argument(parser, action))
    return Command(
        tuple(parser.prog.split()),
        parser.description or summary,
        parser.epilog or "",
        " ".join(parser.format_usage().removeprefix("usage:").split()),
        tuple(arguments),
        tuple(commands),
    )


def _argument(parser: argparse.ArgumentParser, action: argparse.Action) -> Argument:
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    choices = tuple(map(str, action.choices or ()))
    metavar = action.metavar
    if isinstance(metavar, tuple):
        metavar = " ".join(metavar)
    if action.nargs == 0:
        metavar = ""
    elif metavar is None:
        metavar = "|".join(choices) or action.dest.upper()
    if action.nargs in ("+", "*") and metavar:
        metavar += " …"
    return Argument(tuple(action.option_strings), metavar, text, choices)
