"""Freed memory stays with the process where the command line asks for that, and a user's own wish holds."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from surgery.commands.memory import OWN

SCRIPT = """
import os
from pathlib import Path
from surgery.commands.memory import keep_freed_memory
import torch

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

told = {call}
before = held()
rows = [torch.ones(2**20) for _ in range(100)]
assert held() - before > 380
del rows
print(told, round(held() - before))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library, which is left as it is")
@pytest.mark.parametrize(
    ("call", "own", "told", "kept"),
    [
        ("keep_freed_memory()", None, "True", True),
        ("None", None, "None", False),
        ("keep_freed_memory()", OWN[0], "False", False),
    ],
)
def test_what_is_freed_is_kept_if_it_is_wanted(call: str, own: str | None, told: str, kept: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in OWN}
    if own is not None:
        environment[own] = "65536"
    given = [sys.executable, "-c", SCRIPT.replace("{call}", call)]
    made = subprocess.run(given, capture_output=True, text=True, check=True, env=environment)
    said, megabytes = made.stdout.split()
    assert said == told
    assert (float(megabytes) > 380) == kept
    assert kept or float(megabytes) < 50
