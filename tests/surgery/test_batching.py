"""Rows are put together where it costs least."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from surgery.batching import RUN, by_length, in_batches

GROUPS = st.lists(st.tuples(st.integers(1, 200), st.integers(1, 9)), max_size=7)


@given(
    groups=GROUPS,
    most=st.none() | st.integers(1, 12),
    tokens=st.none() | st.integers(1, 900),
    run=st.sampled_from([0, RUN]),
    least=st.sampled_from([0, 300]),
)
@example(groups=[(10, 9), (10, 9)], most=4, tokens=None, run=RUN, least=0)
def test_batches_cost_no_more_than_any_other_cut(
    groups: list[tuple[int, int]], most: int | None, tokens: int | None, run: int, least: int
) -> None:
    widths, counts = [one for one, _ in groups], [one for _, one in groups]
    parts = in_batches(widths, counts, most, tokens=tokens, run=run, least=least)
    order = [i for part in parts for i in part]
    assert sorted(order) == list(range(len(groups)))
    assert [widths[i] for i in order] == sorted(widths)

    def padded(part: list[int]) -> int:
        return sum(counts[i] for i in part) * max(widths[i] for i in part)

    def fits(part: list[int]) -> bool:
        few = most is None or sum(counts[i] for i in part) <= most
        return len(part) == 1 or (few and (tokens is None or padded(part) <= tokens))

    def cost(cut: list[list[int]]) -> int:
        return sum(run + max(least, padded(part)) for part in cut)

    assert all(fits(part) for part in parts)

    for borders in range(2 ** max(0, len(groups) - 1)):
        cut: list[list[int]] = []
        for place, i in enumerate(order):
            if place == 0 or borders >> (place - 1) & 1:
                cut.append([])
            cut[-1].append(i)
        if all(fits(part) for part in cut):
            assert cost(parts) <= cost(cut)


def test_rows_of_like_length_are_padded_together() -> None:
    lengths = [3, 90, 4, 88, 3]
    assert by_length([[1] * length for length in lengths], 10) == [[0, 4, 2], [3, 1]]
    assert by_length([[1] * length for length in (20, 21, 22)], 10) == [[0, 1, 2]]
    assert by_length([], 10) == []


def test_what_takes_many_runs_is_cut_less() -> None:
    rows = [[1] * length for length in (3, 3, 90, 90)]
    assert by_length(rows, 10) == [[0, 1], [2, 3]]
    assert by_length(rows, 10, runs=40) == [[0, 1, 2, 3]]
