"""From measurements to verdicts, by thresholds that stand in the report.

Per fact:
1. `known`: before the edit the model gave the answer, greedily and with at least `known_probability`, to the fact's
   prompts. If its best was never within the top ten or `unknown_probability`, it never knew it. In between, invented
   subjects tell: an answer no likelier than of them is a guess.
2. `removed`: on the prompt and on every held-out paraphrase the answer has at most `removed_probability` and a rank
   beyond `removed_rank`. `rewritten`: the new answer is greedy on the prompt and likelier than the old one on every
   held-out paraphrase. Without a held-out paraphrase there is no verdict: one wording proves nothing. Where the
   answer is above the lines, it has come down to a guess if it was likelier than the base model says it of invented
   subjects and is not any more: that holds, unless the guess is the likeliest answer, or no model before is at hand.
3. `neighbours`: at most `neighbours_moved` of those the edit did not see moved by more than `neighbour_shift`.
4. For a removal, one claim for each aspect that was attacked (`attack`): it fails where an attack succeeds, and holds
   where none does and at least one had the power to. `removed` fails: "still there". It holds, and an attack brings the
   answer out: "suppressed". Where all of `DEPTH` hold, "removed under this battery"; never more.
5. What leaves the weights alone (`intervention`) removes nothing from them: where it holds back what was known, however
   well, that is "suppressed".
6. Without a model before, an answer that does not come up is just not said: "not shown to be removed".
For the whole edit:
7. `drift`: next tokens on neutral text moved by at most `drift` nats on average.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from surgery.verification.attack import ASPECTS, Aspect, Finding, Lift
from surgery.verification.drift import Drift
from surgery.verification.probes import Measured, Probe, Rating

DEPTH: tuple[Aspect, ...] = ("extraction", "superficial", "quantisation", "relearning")
"""What a fact has to withstand to be more than suppressed."""
WEIGHTS = "weights"
"""The claim that what was changed are the weights, of whatever is no edit of them."""
HELD_BACK = "they are not changed, so whatever they held they still hold"
UNSHOWN = "not shown to be removed"
Outcome = Literal["holds", "fails", "inconclusive", "not applicable"]
EXIT_CODES = {
    "holds": 0,
    "still there": 10,
    "suppressed": 10,
    "collateral damage": 11,
    "never known": 12,
    "inconclusive": 13,
}


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where the lines are drawn; probabilities from 0 to 1, drift in nats a token."""

    removed_probability: float = 0.01
    removed_rank: int = 10
    neighbour_shift: float = 0.05
    neighbours_moved: float = 0.1
    known_probability: float = 0.1
    unknown_probability: float = 0.02
    drift: float = 0.01


@dataclass(frozen=True)
class Claim:
    """One claim's outcome, with the evidence in words and the number of cases it rests on."""

    name: str
    outcome: Outcome
    evidence: str
    cases: int


@dataclass(frozen=True)
class Verdict:
    """One fact's claims and what they come to: a key of `EXIT_CODES`."""

    fact: str
    claims: tuple[Claim, ...]
    overall: str

    def __getitem__(self, name: str) -> Claim:
        return next(claim for claim in self.claims if claim.name == name)

    @property
    def depth(self) -> str | None:
        """How deep it goes: "suppressed", "removed under this battery", `UNSHOWN`, or None where that was not tried."""
        found = {claim.name: claim.outcome for claim in self.claims}
        if found.get("removed") != "holds" or self.overall == "never known":
            return None
        if "fails" in [found.get(name) for name in (*ASPECTS, WEIGHTS)]:
            return "suppressed"
        if found.get("known") == "not applicable":
            return UNSHOWN
        return "removed under this battery" if all(found.get(name) == "holds" for name in DEPTH) else None


Row = tuple[Probe, Measured | None, Measured]
Asked = Callable[[Collection[str] | None, Mapping[str, float] | None], Lift | None]


def judge(
    label: str,
    rows: Sequence[Row],
    claim: str,
    lines: Thresholds,
    findings: Sequence[Finding] = (),
    asked: Asked | None = None,
    weights_kept: bool = False,
) -> Verdict:
    """The verdict on one fact.

    Args:
        label: the fact's name.
        rows: its probes, each with its measurement before (if there is one) and after.
        claim: "removed" or "rewritten".
        lines: where the lines are drawn.
        findings: what attacks found out about it; they bear on removals.
        asked: tells how far it stands out from what the base model says of facts that nobody can know, in some of its
            wordings or in all, with what it scores there now; None of wordings that no such fact has.
        weights_kept: what is judged is no change of weights, so that no removal is more than suppressed.
    """
    removal = claim == "removed"
    known = _known(rows, lines, asked) if removal else _untested("known", "a rewrite may also teach something new")
    main = _removed(rows, lines, asked) if removal else _rewritten(rows)
    tried = [name for name in ASPECTS if any(one.aspect == name for one in findings)] if removal else []
    attacked = [_withstood(name, [one for one in findings if one.aspect == name]) for name in tried]
    kept = [Claim(WEIGHTS, "fails", HELD_BACK, 0)] * (weights_kept and removal)
    claims = (known, main, _neighbours(rows, lines), *attacked, *kept)
    return Verdict(label, claims, _overall(*claims))


def in_doubt(rows: Sequence[Row], lines: Thresholds) -> set[int]:
    """Which facts' removal is not told by the lines alone: half known before, or not below them everywhere now."""
    of = {i: [row for row in rows if row[0].fact == i] for i in {probe.fact for probe, *_ in rows}}
    return {i for i, own in of.items() if _left(_judging(own), lines) or _half_known(_best_before(own), lines)}


def unjudged(label: str, claim: str, why: str) -> Verdict:
    """The verdict on a fact that the model cannot be asked about."""
    return Verdict(label, (Claim(claim, "inconclusive", f"cannot be asked: {why}", 0),), "inconclusive")


def judge_drift(drift: Drift | None, lines: Thresholds) -> Claim:
    """Whether the model as a whole stayed what it was."""
    if drift is None:
        return _untested("drift", "there is no model before the edit to compare with")
    told = (
        f"{drift.divergence:.2g} nats a token, {drift.changed:.1%} of likeliest tokens changed, perplexity "
        f"{drift.perplexity[0]:.1f} to {drift.perplexity[1]:.1f}"
    )
    return Claim("drift", "holds" if drift.divergence <= lines.drift else "fails", told, drift.tokens)


def exit_code(verdicts: Sequence[Verdict], drift: Claim) -> int:
    """The gravest finding over all facts and the whole model, as an exit code.

    1. 12 where the model knew none of the facts: there was nothing to change, whatever else the edit did.
    2. 10 where a fact is still there, or only suppressed: the job is not done.
    3. 11 where a fact's neighbours or the model as a whole were moved too far.
    4. 12 where some facts, not all, were never known; 13 where one is inconclusive; 0 where every claim holds.
    """
    found = {verdict.overall for verdict in verdicts}
    if drift.outcome == "fails" and found != {"never known"}:
        found.add("collateral damage")
    gravest = ("still there", "suppressed", "collateral damage", "never known", "inconclusive", "holds")
    return EXIT_CODES[next(one for one in gravest if one in found)]


def _untested(name: str, why: str) -> Claim:
    return Claim(name, "not applicable", why, 0)


def _judging(rows: Sequence[Row]) -> list[Row]:
    """The fact's own prompt, and the paraphrases the edit did not see."""
    return [row for row in rows if row[0].role == "prompt" or (row[0].role == "paraphrase" and row[0].held_out)]


def _known(rows: Sequence[Row], lines: Thresholds, asked: Asked | None) -> Claim:
    before = _best_before(rows)
    if before is None:
        return _untested("known", "there is no model before to ask, so nothing shows whether it was ever known")
    p, rank = before
    told, cases = f"at best p {p:.3f}, rank {rank} before", sum(probe.role != "neighbour" for probe, *_ in rows)
    likely = rank == 1 or p >= lines.known_probability
    if not _half_known(before, lines):
        return Claim("known", "holds" if likely else "fails", told, cases)
    if (merely := asked(None, None) if asked else None) is not None:
        told = f"{told}, lift over invented subjects {merely.value:+.3f}, line {merely.line:+.3f}"
        return Claim("known", "holds" if merely.stands_out else "fails", told, cases)
    return Claim("known", "holds" if likely else "inconclusive", told, cases)


def _best_before(rows: Sequence[Row]) -> tuple[float, int] | None:
    """The highest probability and rank that the answer had before in any of the fact's prompts."""
    before = [was.target for probe, was, _ in rows if was is not None and probe.role != "neighbour"]
    return (max(one.probability for one in before), min(one.rank for one in before)) if before else None


def _half_known(before: tuple[float, int] | None, lines: Thresholds) -> bool:
    p, rank = before or (0.0, lines.removed_rank + 1)
    greedy, likely = rank == 1, p >= lines.known_probability
    return greedy != likely or (not greedy and rank <= lines.removed_rank and p >= lines.unknown_probability)


def _left(judging: Sequence[Row], lines: Thresholds) -> list[tuple[Probe, Rating]]:
    """The prompts after which the answer is above the lines."""
    return [
        (probe, now.target)
        for probe, _, now in judging
        if now.target.probability > lines.removed_probability or now.target.rank <= lines.removed_rank
    ]


def _removed(rows: Sequence[Row], lines: Thresholds, asked: Asked | None) -> Claim:
    judging = _judging(rows)
    left = _left(judging, lines)
    p, rank = max(n.target.probability for *_, n in judging), min(n.target.rank for *_, n in judging)
    told, cases = f"at most p {p:.4f}, rank {rank} or worse", len(judging)
    if not left:
        return _if_held_out(Claim("removed", "holds", told, cases), judging)
    there = Claim("removed", "fails", f"{told}; still there in {left[0][0].prompt!r}", cases)
    now = {probe.prompt: rating.probability for probe, rating in left}
    merely = asked(list(now), now) if asked else None
    if asked is None or merely is None or merely.stands_out:
        return there
    guessed = f"no likelier than of subjects nobody knows: lift {merely.value:+.3f}, line {merely.line:+.3f}"
    told = f"{told} in {left[0][0].prompt!r}, but {guessed}"
    if not any(was is None for _, was, _ in judging):
        before = asked(list(now), None)
        if before is None or not before.stands_out:
            return there  # what could not tell it from a guess when it was known cannot tell now
        if rank > 1:
            return _if_held_out(Claim("removed", "holds", told, cases), judging)
    return Claim("removed", "inconclusive", told, cases)


def _rewritten(rows: Sequence[Row]) -> Claim:
    judging = _judging(rows)
    good, first = [], None
    for probe, _, now in judging:
        assert now.new_target is not None
        ok = now.new_target.probability > now.target.probability
        if probe.role == "prompt":
            ok, first = ok and now.new_target.rank == 1, now.new_target
        good.append((ok, probe))
    assert first is not None
    told = f"p {first.probability:.3f}, rank {first.rank}; preferred in {sum(ok for ok, _ in good)} of {len(good)}"
    if all(ok for ok, _ in good):
        return _if_held_out(Claim("rewritten", "holds", told, len(good)), judging)
    missed = next(probe.prompt for ok, probe in good if not ok)
    most = good[0][0] and sum(ok for ok, _ in good) > len(good) / 2
    return Claim("rewritten", "inconclusive" if most else "fails", f"{told}; not in {missed!r}", len(good))


def _if_held_out(claim: Claim, judging: Sequence[Row]) -> Claim:
    if len(judging) > 1:
        return claim
    why = "no phrasing the edit had not seen; add paraphrases to the fact"
    return Claim(claim.name, "inconclusive", f"{claim.evidence}; {why}", claim.cases)


def _neighbours(rows: Sequence[Row], lines: Thresholds) -> Claim:
    shifts = [
        (now.target.probability - was.target.probability, probe.prompt)
        for probe, was, now in rows
        if probe.role == "neighbour" and was is not None and probe.held_out
    ]
    if not shifts:
        return _untested("neighbours", "there are none to compare that the edit had not seen")
    moved = [one for one in shifts if abs(one[0]) > lines.neighbour_shift]
    worst = max(shifts, key=lambda one: abs(one[0]))
    told = f"{len(moved)} of {len(shifts)} moved; most {worst[0]:+.3f} in {worst[1]!r}"
    ok = len(moved) <= lines.neighbours_moved * len(shifts)
    return Claim("neighbours", "holds" if ok else "fails", told, len(shifts))


def _withstood(aspect: Aspect, findings: Sequence[Finding]) -> Claim:
    tried = {outcome: [one for one in findings if one.outcome == outcome] for outcome in ("succeeds", "resisted")}
    weak = [one.attack for one in findings if one.outcome == "no power"]
    rest = f"; no power even before the edit: {', '.join(weak)}" if weak else ""
    if tried["succeeds"]:
        worst = max(tried["succeeds"], key=lambda one: one.after.value - one.after.line)
        count = f"{len(tried['succeeds'])} of {len(findings)} succeed: " if len(findings) > 1 else ""
        return Claim(aspect, "fails", f"{count}{worst.evidence}", len(findings))
    if tried["resisted"]:
        nearest = max(tried["resisted"], key=lambda one: one.after.value - one.after.line)
        return Claim(aspect, "holds", f"withstood; nearest {nearest.evidence}{rest}", len(tried["resisted"]))
    return _untested(aspect, f"no attack could have brought it up{rest}")


def _overall(known: Claim, main: Claim, neighbours: Claim, *attacked: Claim) -> str:
    if known.outcome == "fails":
        return "never known"
    if main.outcome == "fails":
        return "still there"
    if any(claim.outcome == "fails" for claim in attacked):
        return "suppressed"
    if neighbours.outcome == "fails":
        return "collateral damage"
    return "inconclusive" if "inconclusive" in (known.outcome, main.outcome) else "holds"
