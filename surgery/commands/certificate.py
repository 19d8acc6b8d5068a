"""`surgery certificate`: check a certificate against what is at hand, and make keys to sign with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

import surgery
from surgery import signing
from surgery.commands.options import MaybeFacts, OutFile, Run, command

certificate = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Check certificates of verifications, and make keys to sign them with.",
)


def check(
    run: Run,
    file: Annotated[Path, typer.Argument(help="A certificate that --certificate wrote.")],
    edit: Annotated[Path | None, typer.Option(help="The edit it should be about.")] = None,
    facts: MaybeFacts = None,
    key: Annotated[
        str | None, typer.Option(help="Public key it should be signed by: a .pub file, or 64 hexadecimal digits.")
    ] = None,
) -> int:
    """Hold a certificate against an edit, facts, a key and a model (`--model default` for the default one).

    What is not given is not checked. Exit code 1 where something does not match.
    """
    made = surgery.Certificate.load(file)
    given = surgery.Edit.load(edit) if edit else None
    chosen = surgery.read_facts(facts) if facts else None
    trusted = None if key is None else signing.read_public_key(key)
    model = None if run.model is None else run.load()
    found = made.check(model, given, chosen, trusted)
    content = made.content
    count = len(content["facts"])
    about = f"claim {content['claim']}, profile {content['profile']}, facts: {count}, {content['created']}"
    run.say(f"{content['meaning']} ({about})")
    for one in found.checks:
        run.say(f"{one.what}: {one.outcome}; {one.told}")
    run.result({"ok": found.ok, "checks": [dataclasses.asdict(one) for one in found.checks], "certificate": content})
    return 0 if found.ok else 1


def keygen(run: Run, out: OutFile) -> None:
    """Make a private key, readable by you alone, and its public key beside it as FILE.pub."""
    public = signing.make_key(out)
    run.say(f"{out} is to be kept, {out}.pub to be given away: {public}")
    run.result({"private": str(out), "public": f"{out}.pub", "key": public})


for _function in (check, keygen):
    command(certificate, _function)
