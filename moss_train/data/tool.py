"""`data`: looks at training data. One module a subcommand: `show`, `check`, `stats`, `convert`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from moss_train.data import check, convert, show, stats
from moss_train.errors import MossTrainError

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
    if hasattr(sys.stdout, "reconfigure"):
        # A terminal without UTF-8 shows escapes instead of failing.
        sys.stdout.reconfigure(errors="backslashreplace")
    code = 0
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
    except MossTrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader (`head`, `less`) has seen enough. Python would complain once more while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 130
    return code
