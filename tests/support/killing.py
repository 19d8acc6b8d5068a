"""Processes that change a ledger and are killed, or stopped by a full disk, at any step; and two at once.

Run as a script, it forks a child for each round, for a process started anew would load torch each time.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ledgers import facts_about, small_ledger, tiny_gpt2

from edits import Ledger
from edits.ledger_store import Store
from edits.ledger_version import Version
from surgery import Fact, Model

Act = Callable[[], object]


class Steps:
    """Counts the steps in which something reaches the disk, and acts in the middle of one of them."""

    def __init__(self, at: int, act: Act) -> None:
        self.taken, self._at, self._act = 0, at, act

    def step(self, before: Act = lambda: None) -> None:
        self.taken += 1
        if self.taken == self._at:
            before()
            self._act()

    @contextmanager
    def counted(self) -> Iterator[Steps]:
        real: dict[str, Callable[..., Any]] = {
            "os.fsync": os.fsync,
            "os.replace": os.replace,
            "os.chmod": os.chmod,
            "tempfile.mkstemp": tempfile.mkstemp,
            "tempfile.mkdtemp": tempfile.mkdtemp,
        }
        write = Path.write_bytes

        def stepped(name: str) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                self.step()
                return real[name](*args, **kwargs)

            return call

        def half(path: Path, data: bytes) -> int:
            self.step(lambda: write(path, data[: len(data) // 2]))
            return write(path, data)

        patches = [patch(name, stepped(name)) for name in real] + [patch.object(Path, "write_bytes", half)]
        for one in patches:
            one.start()
        try:
            yield self
        finally:
            for one in patches:
                one.stop()


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def cheap_version(store: Store, parent: str | None, draw: random.Random) -> str:
    """Write a version of made-up bytes in the way a real one is written."""
    blobs = [draw.randbytes(draw.randint(10, 3000)) for _ in range(3)]
    version = Version(
        parent=parent,
        base="0" * 64,
        method={},
        sites=(),
        statistics=store.put("statistics", b"statistics"),
        values=tuple(sorted(store.put("objects", blob) for blob in blobs[:2])),
        edit=store.put_saved("edits", lambda path: path.write_bytes(blobs[2])),
        factors=None,
        about={},
    )
    store.put_version(version.hash, version.as_bytes())
    store.move_head(version.hash)
    return version.hash


def cheap_ledger(folder: Path) -> Ledger:
    with Store.made(folder) as store:
        cheap_version(store, None, random.Random(0))
    return Ledger.open(folder)


def cheap_change(folder: Path, draw: random.Random) -> str:
    store = Store(folder)
    with store.locked():
        return cheap_version(store, store.head, draw)


def started(body: Callable[[], object]) -> int:
    """The number of a child that runs `body` and ends, by 1 where it fails."""
    child = os.fork()
    if child == 0:
        try:
            body()
        except BaseException as error:
            sys.stderr.write(f"the child failed: {error!r}\n")
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return child


def forked(body: Callable[[Callable[[str], object]], object], seconds: float | None = None) -> list[str]:
    """What a child acknowledged before it ended by itself, or was killed so many seconds after it had begun."""
    reading, writing = os.pipe()

    def acknowledging() -> None:
        os.close(reading)
        os.write(writing, b"begun\n")
        body(lambda text: os.write(writing, f"{text}\n".encode()))

    child = started(acknowledging)
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.readline() == b"begun\n"
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        told = pipe.read().decode().splitlines()
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "see stderr"
    return told


def _add_each(ledger: Ledger, model: Model, facts: Sequence[Fact]) -> None:
    for fact in facts:
        ledger.add(model, fact)


def assert_holds(ledger: Ledger, acknowledged: list[str]) -> None:
    found = ledger.check()
    assert found.ok, found.problems
    history = [version.hash for version in ledger.versions()]
    assert set(acknowledged) <= set(history), "an acknowledged version is gone"
    # at most the change that was under way when the process was killed came through without being acknowledged
    assert not acknowledged or history.index(acknowledged[-1]) <= 1


def killed_at_random(folder: Path, rounds: int, seed: int) -> dict[str, int]:
    """Cheap changes in a loop, killed at random moments, over and over in the same ledgers."""
    draw, acknowledged, left = random.Random(seed), 0, 0
    for i in range(rounds):
        place = folder / str(i // 25)
        ledger = Ledger.open(place) if Store.exists(place) else cheap_ledger(place)

        def changes(tell: Callable[[str], object], place: Path = place, own: int = draw.randrange(2**32)) -> None:
            while True:
                tell(cheap_change(place, random.Random(own)))
                own += 1

        told = forked(changes, draw.uniform(0.0, 0.12))
        acknowledged += len(told)
        assert_holds(ledger, told)
        left += ledger.check().left_over
        if i % 10 == 9:
            ledger.prune()
            assert ledger.check().left_over == 0
    return {"rounds": rounds, "acknowledged": acknowledged, "left_over": left}


def killed_at_every_step(folder: Path) -> dict[str, int]:
    """A ledger's making and a cheap change, each killed in the middle of each of its steps."""
    made = changed = 0
    for made in range(1, 200):
        place = folder / f"made {made}"

        def make(tell: Callable[[str], object], place: Path = place, at: int = made) -> None:
            with Steps(at, killed).counted():
                cheap_ledger(place)
            tell("made")

        if forked(make):
            break
        ledger = Ledger.open(place) if Store.exists(place) else cheap_ledger(place)
        assert_holds(ledger, [])
    ledger = cheap_ledger(folder / "changed")
    for changed in range(1, 200):
        before = ledger.head.hash

        def change(tell: Callable[[str], object], at: int = changed) -> None:
            with Steps(at, killed).counted():
                tell(cheap_change(ledger.folder, random.Random(at)))

        told = forked(change)
        assert_holds(ledger, told)
        assert ledger.head.hash == before or ledger.head.parent == before
        assert_holds(ledger, [cheap_change(ledger.folder, random.Random(-changed))])
        if told:
            break
    return {"made": made, "changed": changed}


def killed_while_editing(folder: Path, rounds: int, seed: int) -> dict[str, int]:
    """Real facts added and removed on a model, killed at random moments."""
    model, statistics = tiny_gpt2()
    ledger = small_ledger(folder, model, statistics)
    draw, acknowledged = random.Random(seed), 0
    facts = facts_about(8)
    for _ in range(rounds):

        def changes(tell: Callable[[str], object], own: int = draw.randrange(2**32)) -> None:
            mine = random.Random(own)
            while True:
                there = [entry.fact for entry in ledger.list()]
                if len(there) == len(facts) or (there and mine.random() < 0.4):
                    tell(ledger.remove(model, mine.choice(there)).hash)
                else:
                    tell(ledger.add(model, [mine.choice([fact for fact in facts if fact not in there])]).hash)

        told = forked(changes, draw.uniform(0.0, 0.8))
        acknowledged += len(told)
        assert_holds(ledger, told)
        assert ledger.check(model).solved == 0.0
    return {"rounds": rounds, "acknowledged": acknowledged}


def two_at_once(folder: Path, count: int) -> dict[str, int]:
    """Two processes add different facts, one at a time, while a third reads."""
    model, statistics = tiny_gpt2()
    ledger = small_ledger(folder / "shared", model, statistics)
    facts = facts_about(2 * count)
    children = []
    for half in (facts[::2], facts[1::2]):
        children.append(started(partial(_add_each, ledger, model, half)))
    looks = 0
    while children:
        assert ledger.check().ok
        assert len(ledger.list()) <= len(facts)
        looks += 1
        done = [child for child in children if os.waitpid(child, os.WNOHANG) != (0, 0)]
        children = [child for child in children if child not in done]
    alone = small_ledger(folder / "alone", model, statistics)
    alone.add(model, facts)
    assert {entry.fact for entry in ledger.list()} == set(facts)
    assert ledger.head.factors == alone.head.factors
    turns = [len(set(version.values)) for version in ledger.versions()]
    return {"facts": len(ledger.list()), "versions": len(turns), "looks": looks}


if __name__ == "__main__":
    name, where, *numbers = sys.argv[1:]
    sys.stdout.write(json.dumps(globals()[name](Path(where), *map(int, numbers))))
