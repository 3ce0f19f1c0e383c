"""The page of `serve.drift.drift`: one HTML text that loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from curt.drawing import LINES, MARKERS, SERIES, finish_figure, new_figure
from curt.html import render_html
from serve.drift.divergence import MIN_DISTANCE, MixComparison, compare
from serve.drift.tally import DAY_S, HOUR_S, ChargeMix, DriftTally

MAX_CHARGES = 20

Series = Sequence[tuple[str, Callable[[DriftTally], float | None]]]
Points = list[tuple[int, DriftTally]]  # (hours or days before now, what was counted)


@dataclass(frozen=True, slots=True)
class ChargeRow:
    """A charge's share of the answers and of the training corpus, each 0 to 1."""

    name: str
    seen: int
    share: float
    reference: float | None


@dataclass(frozen=True, slots=True)
class WindowRow:
    """One span's figures, as the table shows them."""

    name: str
    tally: DriftTally
    figures: Mapping[str, float | None]
    comparison: MixComparison | None


def render_page(figures: Mapping[str, Any]) -> str:
    """The page of `Drift.snapshot` with a "reference" (`ChargeMix`) or none.

    Raises KeyError, TypeError or ValueError on anything else.
    """
    now_s = float(figures["at_s"])
    given = figures.get("reference")
    reference = ChargeMix.model_validate(given) if given else None
    hours = _points(figures["hours"], int(now_s) // HOUR_S)
    days = _points(figures["days"], int(now_s) // DAY_S)
    spans = (
        ("last hour", [tally for age, tally in hours if age < 1]),
        ("last day", [tally for age, tally in hours if age < 24]),
        ("last week", [tally for age, tally in days if age < 7]),
        ("all that is kept", [tally for _, tally in days]),
    )
    windows = [_window(name, tallies, reference) for name, tallies in spans]
    charges = charge_rows(windows[2].tally, reference)[:MAX_CHARGES]
    return render_html(
        "drift.html.j2",
        written=datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        windows=windows,
        week=windows[2],
        reference=reference,
        charges=charges,
        widest=max((max(row.share, row.reference or 0.0) for row in charges), default=1.0) or 1.0,
        least=MIN_DISTANCE,
        hours=hours,
        days=days,
        series=_SERIES | {"distances": _distances(reference)},
        draw=_draw,
    )


def charge_rows(tally: DriftTally, reference: ChargeMix | None) -> list[ChargeRow]:
    """Charges by how far their share moved from the reference, or by share without one."""
    seen = sum(tally.charges.values())
    known = sum(reference.charges.values()) if reference else 0
    names = tally.charges.keys() | (reference.charges.keys() if reference else set())
    rows = [
        ChargeRow(
            name,
            tally.charges[name],
            tally.charges[name] / seen if seen else 0.0,
            reference.charges.get(name, 0) / known if reference else None,
        )
        for name in names
    ]
    return sorted(rows, key=lambda row: (-abs(row.share - (row.reference or 0.0)), row.name))


_SERIES: dict[str, Series] = {
    "counts": (
        ("answers", lambda tally: float(tally.answers)),
        ("degraded", lambda tally: float(tally.degraded)),
    ),
    "latency": (
        ("median", lambda tally: tally.latency_ms.quantile(0.5)),
        ("99th percentile", lambda tally: tally.latency_ms.quantile(0.99)),
    ),
    "thinking": (
        ("mean", lambda tally: tally.shares()["thinking_tokens_mean"]),
        ("90th percentile", lambda tally: tally.thinking_tokens.quantile(0.9)),
    ),
    "length": (
        ("median", lambda tally: tally.fact_chars.quantile(0.5)),
        ("90th percentile", lambda tally: tally.fact_chars.quantile(0.9)),
    ),
    "shares": (
        ("wrong", lambda tally: tally.shares()["wrong_share"]),
        ("degraded", lambda tally: tally.shares()["degraded_share"]),
    ),
}


def _distances(reference: ChargeMix | None) -> Series:
    def read(part: str) -> Callable[[DriftTally], float | None]:
        def value(tally: DriftTally) -> float | None:
            comparison = compare(tally.charges, reference.charges) if reference else None
            return None if comparison is None else float(getattr(comparison, part))

        return value

    return (("distance", read("distance")), ("limit of chance", read("limit")))


def _points(rows: Mapping[str, Any], now: int) -> Points:
    return sorted(
        ((now - int(key), DriftTally.from_json(row)) for key, row in rows.items()), reverse=True
    )


def _window(name: str, tallies: Sequence[DriftTally], reference: ChargeMix | None) -> WindowRow:
    tally = DriftTally.sum(tallies)
    comparison = compare(tally.charges, reference.charges) if reference else None
    return WindowRow(name, tally, tally.shares(), comparison)


def _draw(title: str, unit: str, points: Points, step: str, series: Series) -> Markup | None:
    """A line for each of the series; None where nothing was counted."""
    lines = [
        (name, [(-age, value) for age, tally in points if (value := read(tally)) is not None])
        for name, read in series
    ]
    if not any(values for _, values in lines):
        return None
    figure, (axes,) = new_figure(1)
    for index, (name, values) in enumerate(lines):
        axes.plot(
            [age for age, _ in values],
            [value for _, value in values],
            color=SERIES[index],
            linestyle=LINES[index],
            marker=MARKERS[index],
            markersize=4,
            label=name,
        )
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"{step} before now")
    axes.set_ylabel(unit)
    return finish_figure(figure, [axes], title)
