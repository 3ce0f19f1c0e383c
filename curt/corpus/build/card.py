"""The data card of a corpus: one HTML page that loads nothing, with counts and no case text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import PercentFormatter

from curt.corpus.build.record_table import READING, SPLITS
from curt.corpus.build.set_counts import LENGTH_STEPS
from curt.corpus.read.records import remedy_for
from curt.drawing import LINES, SERIES, finish_figure, new_figure
from curt.html import render_html

ORDER = tuple(reversed(SPLITS))  # train first, as people read it
MAX_CHARGES = 40
RARE = 10
TERM_STEPS = (0, 3, 6, 9, 12, 18, 24, 36, 48, 60, 84, 120, 180, 300)
"""Upper ends of the bins of months."""


def render_card(summary: Mapping[str, Any]) -> str:
    """The page for what corpus.json says."""
    sets = summary["sets"]
    charges = Counter[str]()
    domains = Counter[str]()
    for counts in sets.values():
        charges.update(counts["charges"])
        domains.update(counts["domains"])
    filled = [name for name in ORDER if sets[name]["cases"]]
    return render_html(
        "card.html.j2",
        summary=summary,
        order=ORDER,
        kept=sum(summary["counts"].values()),
        dropped=sum(sum(counts.values()) for counts in summary["dropped"].values()),
        set_aside=sum(sum(counts.values()) for counts in summary["quarantined"].values()),
        reasons=_reasons(summary["dropped"]),
        quarantine=[(row, remedy_for(row["reason"])) for row in _reasons(summary["quarantined"])],
        places=(*ORDER, READING),
        charges=charges.most_common(MAX_CHARGES),
        charge_count=len(charges),
        rare=sum(count < RARE for count in charges.values()),
        rare_limit=RARE,
        domains=domains.most_common(),
        terms=Markup(draw_terms({name: sets[name]["terms"] for name in filled})),  # noqa: S704
        lengths=Markup(  # noqa: S704, drawn here
            draw_text_lengths({name: sets[name]["lengths"] for name in filled})
        ),
        mean_characters={
            name: round(sets[name]["characters"] / sets[name]["cases"]) for name in filled
        },
    )


def draw_terms(sets: Mapping[str, Mapping[str, int]]) -> str:
    """Share of each set's cases by months of the principal penalty, other kinds beside them."""
    names = [_term_name(low, high) for low, high in pairwise(TERM_STEPS)]
    names += ["life", "reprieve", "death", "exempt"]
    shares = {}
    for name, terms in sets.items():
        counts = [0] * len(names)
        for term, count in terms.items():
            kind, _, months = term.partition(" ")
            place = _term_bin(int(months)) if months else names.index(kind)
            counts[place] += count
        shares[name] = counts
    return _draw_shares(shares, names, "months, or kind", "Principal penalties")


def draw_text_lengths(sets: Mapping[str, list[int]]) -> str:
    """Share of each set's cases by characters of the facts."""
    names = [f"≤ {step}" for step in LENGTH_STEPS] + [f"> {LENGTH_STEPS[-1]}"]
    return _draw_shares(sets, names, "characters", "Length of the facts")


def _draw_shares(
    sets: Mapping[str, Sequence[int]], names: Sequence[str], label: str, title: str
) -> str:
    figure, axes = new_figure(1)
    for index, (name, counts) in enumerate(sets.items()):
        total = sum(counts)
        axes[0].plot(
            range(len(names)), [count / total for count in counts], marker="o", markersize=3,
            color=SERIES[index], linestyle=LINES[index], label=name,
        )  # fmt: skip
    axes[0].set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes[0].set(xlabel=label, ylabel="share of cases")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    axes[0].set_ylim(bottom=0)
    return finish_figure(figure, axes, title)


def _term_name(low: int, high: int) -> str:
    return str(high) if high - low == 1 else f"{low + 1}–{high}"


def _term_bin(months: int) -> int:
    return sum(months > step for step in TERM_STEPS[1:])


def _reasons(counts: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """A row a reason with its count in each set, the most frequent first."""
    totals = Counter[str]()
    for reasons in counts.values():
        totals.update(reasons)
    return [
        {
            "reason": reason,
            "total": total,
            "by_set": [counts.get(name, {}).get(reason, 0) for name in (*ORDER, READING)],
        }
        for reason, total in totals.most_common()
    ]
