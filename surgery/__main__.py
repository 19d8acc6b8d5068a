"""The command line: `surgery demo`, `locate`, `show`, `sweep`, `edit`, `remove`, `verify`, `export` and more.

The one door: this file and `surgery/commands` import all three packages, and nobody imports them.

Exit codes: 0 every claim holds, 10 the fact is still there, or only suppressed, 11 collateral damage, 12 the model
never knew it, 13 inconclusive, 2 wrong usage or input, 1 anything else.
"""

from __future__ import annotations

import sys

import typer

import surgery
from surgery.commands.bench import bench, selftest
from surgery.commands.certificate import certificate
from surgery.commands.demo import demo
from surgery.commands.edit import edit, remove
from surgery.commands.export import export
from surgery.commands.ledger import ledger
from surgery.commands.locate import locate_
from surgery.commands.memory import keep_freed_memory
from surgery.commands.options import command
from surgery.commands.show import show
from surgery.commands.stats import stats
from surgery.commands.sweep import sweep
from surgery.commands.terminal import complain
from surgery.commands.verify import verify
from surgery.errors import SurgeryError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=surgery.__doc__,
    rich_markup_mode=None,
)

for function in (demo, locate_, show, sweep, edit, remove, verify, stats, export, selftest, bench):
    command(app, function)
app.add_typer(ledger, name="ledger")
app.add_typer(certificate, name="certificate")


def main() -> None:
    """Run the command line; a wrong value of the user's ends it with one line and exit code 2."""
    keep_freed_memory()
    try:
        app()
    except SurgeryError as error:
        complain(error)
        sys.exit(2)


if __name__ == "__main__":
    main()
