"""`data`: looks at training data. One module a subcommand: `show`, `check`, `stats`, `convert`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from moss_train.data import check, convert, show, stats
from moss_train.data.terminal import exit_code_of

_COMMANDS: dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "check": (check.HELP, check.DESCRIPTION, check.add_arguments, check.check),
    "show": (show.HELP, show.DESCRIPTION, show.add_arguments, show.show),
    "stats": (stats.HELP, stats.DESCRIPTION, stats.add_arguments, stats.stats),
    "convert": (convert.HELP, convert.DESCRIPTION, convert.add_arguments, convert.convert),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code."""
    parser = argparse.ArgumentParser(prog="data", description="Look at training data.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (summary, description, add_arguments, run) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=description)
        add_arguments(command)
        command.set_defaults(run=run)
    arguments = parser.parse_args(argv)
    return exit_code_of(lambda: arguments.run(arguments))
