"""Facts longer than the context: told in windows, judged one by one, joined by vote.

What this can't do: a window sees its own sentences only. Sums over windows (four thefts of 3,000
yuan in four windows) are never added up, a circumstance told at the end does not lighten what
stands at the beginning, and the merged term is that of the gravest window, not of the whole. It
serves where the choice is between that and an excerpt (`curt.dialogue.excerpt`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from curt.dialogue import ELLIPSIS, ParseFailure
from curt.law.numerals import article_order
from curt.law.statutes import article_carries
from curt.law.verdict import Term, TermKind, Verdict

SHARE = 1 / 3
"""Of the readable windows: a charge that fewer name is voted out."""
HEAD_SHARE = 4
"""The head takes at most a window's size over this."""

Length = Callable[[str], int]

_SENTENCE = re.compile(r"[^。！？；\n]*(?:[。！？；\n]+[”’」』）)》]*|$)")
_CLAUSE = re.compile(r"[^，,：:]*(?:[，,：:]+|$)")
_SEVERITY: Mapping[TermKind, int] = {
    "exempt": 0, "surveillance": 1, "detention": 2, "fixed": 3, "life": 4, "reprieve": 5,
    "death": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Window:
    """`text` to judge; it ends with `fact[start:end]`, after the fact's head where that is kept."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class MergedVerdict:
    """The verdict on the whole, a ParseFailure where no window could be read.

    `votes` are the readable windows that name each charge, kept or not.
    """

    verdict: Verdict | ParseFailure
    windows: int
    unreadable: int
    votes: Mapping[str, int]


def split_windows(
    fact: str, length: Length, *, size: int, overlap: int, keep_head: bool = False
) -> list[Window]:
    """Cut a fact into windows of at most `size` tokens, at the ends of sentences where possible.

    Args:
        fact: the whole fact.
        length: tokens of a text, such as `lambda text: len(tokenizer.encode(text))`.
        size: most tokens of a window, its head included.
        overlap: tokens of whole sentences, at most, that a window repeats of the one before.
        keep_head: begin every window but the first with the fact's first sentence, which says who
            is accused, cut to a quarter of the window.

    A sentence too long for a window is cut at commas, then anywhere. Every character is in some
    window; a fact that fits is one window. Raises ValueError on sizes that leave no room.
    """
    if size < 1 or not 0 <= overlap < size:
        raise ValueError(f"windows of {size} tokens that share {overlap}: share 0 to size - 1")
    if length(fact) <= size:
        return [Window(fact, 0, len(fact))]
    head = _head(fact, length, size // HEAD_SHARE) if keep_head else ""
    pieces = list(_cut(fact, length, size, head))
    windows: list[Window] = []
    first = 0
    while True:
        start = pieces[first][0]
        last = first
        while last + 1 < len(pieces):
            longer = fact[start : pieces[last + 1][1]]
            if length(_with_head(head, longer, start)) > size:
                break
            last += 1
        end = pieces[last][1]
        windows.append(Window(_with_head(head, fact[start:end], start), start, end))
        if last + 1 == len(pieces):
            return windows
        first = _step_back(fact, pieces, length, size, overlap, head, first, last)


def _step_back(
    fact: str,
    pieces: Sequence[tuple[int, int]],
    length: Length,
    size: int,
    overlap: int,
    head: str,
    first: int,
    last: int,
) -> int:
    """First piece of the next window: as much of the last one's end as fits with a new piece."""
    following = last + 1
    end = pieces[last][1]
    while following - 1 > first:
        start = pieces[following - 1][0]
        new = _with_head(head, fact[start : pieces[last + 1][1]], start)
        if length(fact[start:end]) > overlap or length(new) > size:
            break
        following -= 1
    return following


def _with_head(head: str, text: str, start: int) -> str:
    """A window that begins inside the head repeats some of it, which does no harm."""
    return f"{head}{ELLIPSIS}{text}" if head and start else text


def _head(fact: str, length: Length, most_tokens: int) -> str:
    sentence = next((m[0] for m in _SENTENCE.finditer(fact) if m[0].strip()), "")
    return sentence[: _fitting(sentence, length, most_tokens)]


def _cut(fact: str, length: Length, size: int, head: str) -> Iterator[tuple[int, int]]:
    """Spans of the fact in order, each short enough to be a window with the head."""

    def fits(text: str) -> bool:
        return length(_with_head(head, text, 1)) <= size

    for sentence in _SENTENCE.finditer(fact):
        if not sentence[0]:
            continue
        if fits(sentence[0]):
            yield sentence.span()
            continue
        for clause in _CLAUSE.finditer(sentence[0]):
            start, end = (sentence.start() + offset for offset in clause.span())
            while start < end:
                step = _fitting(
                    fact[start:end], lambda text: length(_with_head(head, text, 1)), size
                )
                if not step:
                    raise ValueError(
                        f"a window of {size} tokens holds no character beside the head: give more"
                    )
                yield start, start + step
                start += step


def _fitting(text: str, length: Length, most_tokens: int) -> int:
    """Characters of the longest beginning found that has at most so many tokens."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if length(text[:middle]) <= most_tokens:
            low = middle
        else:
            high = middle - 1
    return low


def merge_verdicts(
    verdicts: Sequence[Verdict | ParseFailure], *, share: float = SHARE
) -> MergedVerdict:
    """One verdict from those on the windows of a fact; their order does not matter.

    - Charges: those that at least `share` of the readable windows name, and always the leading
      one, which most windows name (then: which stands earlier in them, then by name).
    - Articles: those that carry a kept charge; others where at least `share` of the windows that
      name a kept charge cite them, unless they carry a charge that was voted out.
    - Principal penalty: the most severe among the windows that name the leading charge; of equal
      ones the one that is served, then the longer probation. The fine is the highest of the same
      windows.

    Nothing is added up: see the module. Raises ValueError without a window or on a share outside
    0 to 1.
    """
    if not verdicts:
        raise ValueError("no verdict to merge: give one a window")
    if not 0 <= share <= 1:
        raise ValueError(f"a share of {share} of the windows: use 0 to 1")
    readable = [verdict for verdict in verdicts if isinstance(verdict, Verdict)]
    unreadable = len(verdicts) - len(readable)
    if not readable:
        only = verdicts[0] if len(verdicts) == 1 else None
        failure = only if isinstance(only, ParseFailure) else ParseFailure("no readable window")
        return MergedVerdict(failure, len(verdicts), unreadable, {})
    votes = Counter(charge for verdict in readable for charge in set(verdict.charges))
    places = Counter[str]()
    for verdict in readable:
        for charge in votes.keys() & set(verdict.charges):
            places[charge] += verdict.charges.index(charge)
    ranked = sorted(votes, key=lambda charge: (-votes[charge], places[charge], charge))
    leading = ranked[0]
    needed = share * len(readable) - 1e-9
    charges = tuple(c for c in ranked if c == leading or votes[c] >= needed)
    heard = [verdict for verdict in readable if leading in verdict.charges]
    merged = Verdict(
        charges=charges,
        articles=_merge_articles(readable, charges, set(votes) - set(charges), share),
        term=max((verdict.term for verdict in heard), key=_severity),
        fine_yuan=max(verdict.fine_yuan for verdict in heard),
    )
    return MergedVerdict(merged, len(verdicts), unreadable, dict(votes))


def _merge_articles(
    readable: Sequence[Verdict], kept: Sequence[str], voted_out: set[str], share: float
) -> tuple[str, ...]:
    heard = [verdict for verdict in readable if set(verdict.charges) & set(kept)]
    cited = Counter(article for verdict in heard for article in set(verdict.articles))
    needed = share * len(heard) - 1e-9
    articles = [
        article
        for article, times in cited.items()
        if _carries(article, kept) or (times >= needed and not _carries(article, voted_out))
    ]
    return tuple(sorted(articles, key=article_order))


def _carries(article: str, charges: Iterable[str]) -> bool:
    return any(article_carries(article, charge) for charge in charges)


def _severity(term: Term) -> tuple[int, int, bool, int]:
    served = not term.probation_months
    return _SEVERITY[term.kind], term.months, served, term.probation_months
