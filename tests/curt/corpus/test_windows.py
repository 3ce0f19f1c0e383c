from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.corpus.windows import merge_verdicts, split_windows
from curt.dialogue import ELLIPSIS, ParseFailure
from curt.law.verdict import Term, Verdict

FACT = (
    "公诉机关指控：被告人张某盗窃三次。第一次在某村窃得300元，后逃离。第二次在某镇窃得500元。"
    "第三次在某市窃得800元。张某归案后如实供述。"
)


def characters(text: str) -> int:
    return len(text)


def bytes_of(text: str) -> int:
    return len(text.encode())


def theft(months: int = 8, **changes) -> Verdict:
    fields = {"charges": ("盗窃",), "articles": ("264",), "fine_yuan": 0}
    return Verdict(term=Term("fixed", months), **fields | changes)


# --- windows ---------------------------------------------------------------------------------


def test_a_fact_that_fits_is_one_window():
    (window,) = split_windows(FACT, characters, size=200, overlap=20, keep_head=True)
    assert (window.text, window.start, window.end) == (FACT, 0, len(FACT))


def test_windows_end_with_sentences_and_share_whole_ones():
    windows = split_windows(FACT, characters, size=45, overlap=18)
    assert all(w.text.endswith("。") and len(w.text) <= 45 for w in windows)
    assert all(FACT[w.start - 1] == "。" for w in windows[1:])
    assert any(b.start < a.end for a, b in pairwise(windows))


def test_without_overlap_windows_are_the_fact_cut_in_parts():
    windows = split_windows(FACT, characters, size=30, overlap=0)
    assert "".join(w.text for w in windows) == FACT


def test_every_window_says_who_is_accused_where_asked():
    fact = FACT + "张某另在某县窃得900元。" * 5
    windows = split_windows(fact, characters, size=80, overlap=0, keep_head=True)
    assert len(windows) > 1
    for window in windows[1:]:
        assert window.text.startswith(f"公诉机关指控：被告人张某盗窃三次。{ELLIPSIS}")
        assert len(window.text) <= 80


def test_a_quotation_is_not_torn_from_its_mark():
    text = "甲说：“你走。”乙走了。" * 4
    windows = split_windows(text, characters, size=15, overlap=0)
    assert not any(w.text.startswith("”") for w in windows)


@given(
    text=st.text(alphabet="张某盗窃。，；！”\n1元", max_size=200),
    size=st.integers(12, 60),
    overlap=st.integers(0, 11),
    keep_head=st.booleans(),
    length=st.sampled_from([characters, bytes_of]),
)
def test_every_character_is_in_some_window_and_none_is_too_long(
    text, size, overlap, keep_head, length
):
    if keep_head and length is bytes_of:
        size *= 3  # room for the head and the dots
    windows = split_windows(text, length, size=size, overlap=overlap, keep_head=keep_head)
    assert windows[0].start == 0
    assert windows[-1].end == len(text)
    for window in windows:
        assert length(window.text) <= size
        assert window.text.endswith(text[window.start : window.end])
    for one, other in pairwise(windows):
        assert one.start < other.start <= one.end < other.end
        assert length(text[other.start : one.end]) <= overlap


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (10, 10), (10, -1)])
def test_sizes_without_room_are_refused(size, overlap):
    with pytest.raises(ValueError, match="share 0 to size - 1"):
        split_windows(FACT, characters, size=size, overlap=overlap)


def test_a_window_that_holds_no_character_is_refused():
    with pytest.raises(ValueError, match="holds no character"):
        split_windows(FACT, bytes_of, size=2, overlap=0)


# --- merging ---------------------------------------------------------------------------------

CHARGES = ("盗窃", "诈骗", "抢劫", "故意伤害")
ARTICLES = ("67", "234", "263", "264", "266")
terms = st.one_of(
    st.sampled_from([Term("life"), Term("death"), Term("exempt"), Term("detention", 3)]),
    st.builds(Term, st.just("fixed"), st.integers(1, 300), st.integers(0, 60)),
)
verdicts = st.builds(
    Verdict,
    charges=st.lists(st.sampled_from(CHARGES), min_size=1, unique=True).map(tuple),
    articles=st.sets(st.sampled_from(ARTICLES)).map(lambda a: tuple(sorted(a, key=int))),
    term=terms,
    fine_yuan=st.integers(0, 10**6),
)
outcomes = st.one_of(verdicts, st.just(ParseFailure("thinking not closed")))


@given(outcome=outcomes)
def test_one_verdict_is_given_back(outcome):
    merged = merge_verdicts([outcome])
    assert merged.verdict == outcome
    assert (merged.windows, merged.unreadable) == (1, int(isinstance(outcome, ParseFailure)))


@given(outcomes=st.lists(outcomes, min_size=1, max_size=7), data=st.data())
def test_the_order_of_windows_does_not_matter(outcomes, data):
    shuffled = data.draw(st.permutations(outcomes))
    assert merge_verdicts(shuffled) == merge_verdicts(outcomes)


@given(outcomes=st.lists(verdicts, min_size=1, max_size=7))
def test_nothing_is_in_the_merged_verdict_that_no_window_said(outcomes):
    merged = merge_verdicts(outcomes).verdict
    assert isinstance(merged, Verdict)
    assert set(merged.charges) <= {c for v in outcomes for c in v.charges}
    assert set(merged.articles) <= {a for v in outcomes for a in v.articles}
    assert merged.term in {v.term for v in outcomes}
    assert merged.fine_yuan in {v.fine_yuan for v in outcomes}


def test_a_charge_a_third_of_the_windows_name_stays_with_its_article():
    both = theft(charges=("盗窃", "诈骗"), articles=("264", "266"))
    kept = merge_verdicts([theft(), theft(), both])
    assert kept.verdict == both
    assert kept.votes == {"盗窃": 3, "诈骗": 1}
    assert merge_verdicts([theft()] * 3 + [both]).verdict == theft()


def test_the_leading_charge_stays_whatever_the_threshold():
    others = [theft(charges=(c,), articles=()) for c in CHARGES]
    merged = merge_verdicts(others, share=1.0).verdict
    assert isinstance(merged, Verdict)
    assert len(merged.charges) == 1


@pytest.mark.parametrize(
    ("milder", "graver"),
    [
        (Term("exempt"), Term("surveillance", 36)),
        (Term("surveillance", 36), Term("detention", 1)),
        (Term("detention", 6), Term("fixed", 6)),
        (Term("fixed", 8), Term("fixed", 9)),
        (Term("fixed", 8, 12), Term("fixed", 8)),
        (Term("fixed", 300), Term("life")),
        (Term("life"), Term("reprieve")),
        (Term("reprieve"), Term("death")),
    ],
)
def test_the_most_severe_penalty_stands(milder, graver):
    two = [Verdict(("盗窃",), ("264",), term) for term in (milder, graver)]
    assert merge_verdicts(two).verdict == two[1]


def test_only_windows_that_name_the_leading_charge_set_penalty_and_fine():
    robbery = Verdict(("抢劫",), ("263",), Term("life"), 50_000)
    merged = merge_verdicts([theft(8), theft(10, fine_yuan=2000), theft(9), robbery]).verdict
    assert merged == theft(10, fine_yuan=2000)


def test_unreadable_windows_are_counted_and_have_no_vote():
    merged = merge_verdicts([ParseFailure("x"), theft(), ParseFailure("y")])
    assert (merged.verdict, merged.windows, merged.unreadable) == (theft(), 3, 2)
    none = merge_verdicts([ParseFailure("x"), ParseFailure("y")])
    assert (none.verdict, none.unreadable) == (ParseFailure("no readable window"), 2)


def test_nothing_to_merge_or_a_share_out_of_range_is_refused():
    with pytest.raises(ValueError, match="give one a window"):
        merge_verdicts([])
    with pytest.raises(ValueError, match="use 0 to 1"):
        merge_verdicts([theft()], share=33)
