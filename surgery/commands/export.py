"""`surgery export`: take an edit along to where this package is not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import surgery
from surgery.commands.options import MaybeKeepFacts, OutFolder, Run
from surgery.errors import SurgeryError, check_choice
from surgery.files import check_new_folder
from surgery.privacy import check_keep

FORMS = {"hf": surgery.to_hf, "peft": surgery.to_peft}


def export(
    run: Run,
    edit: Annotated[Path, typer.Option(help="The edit to take along.")],
    to: Annotated[str, typer.Option(help="hf: the whole edited model; peft: a LoRA adapter for the same base.")],
    out: OutFolder,
    keep_facts: MaybeKeepFacts = None,
) -> None:
    """Write the edited model as a Hugging Face folder, or the edit as a PEFT adapter. The model stays as it is."""
    check_choice("form to export to", to, FORMS)
    made = surgery.Edit.load(edit)
    if keep_facts is not None:
        check_keep(keep_facts)
        if to == "hf":
            raise SurgeryError("a Hugging Face folder holds nothing about the edit; leave --keep-facts away")
        made = surgery.redact(made, keep_facts)  # type: ignore[arg-type]  # checked
    check_new_folder(out)
    FORMS[to](run.load(), made, out)
    files = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    run.say(f"{out}: {', '.join(files)}, {sum(files.values())} bytes")
    run.result({"folder": str(out), "to": to, "files": files, **made.summary()})
