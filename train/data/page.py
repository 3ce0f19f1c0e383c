"""A page of a run's completions, group by group, with what each earned or would have earned.

    python -m train.data.page --trajectories artifacts/demo/grpo-default.run/trajectories \
        --out page.html --step 40 --group 3 --penalty '{"type": "alp"}'
"""

from __future__ import annotations

from pathlib import Path

from curt.config import Config, run
from curt.files import write_atomic
from curt.html import render_html
from train.data.trajectories import iterate_groups
from train.penalties import Group, Penalty
from train.penalties.base import History, group_outcomes


class PageConfig(Config):
    """What to show of which run."""

    trajectories: Path
    """Folder of the run's rollouts."""
    out: Path
    """Page to write. It holds the cases' facts, as the rollouts do."""
    step: int | None = None
    """Step to show; by default the last one."""
    group: int | None = None
    """The one group of the step to show."""
    penalty: Penalty | None = None
    """Replay: show beside it what this penalty makes of the same completions."""


def write_page(config: PageConfig) -> None:
    """Write the page; ValueError when there are no rollouts of that step and group."""
    read = iterate_groups(config.trajectories)
    past = group_outcomes((r.step, r.group, r.correct, r.length) for g in read for r in g)
    step = past[-1].step if config.step is None else config.step
    history = History(tuple(group for group in past if group.step < step))
    shown = []
    for rows in iterate_groups(config.trajectories):
        if rows[0].step != step or config.group not in (None, rows[0].group):
            continue
        triples = ((r.correct, r.length, r.truncated) for r in rows)
        correct, lengths, cut = zip(*triples, strict=True)
        group = Group(correct, lengths, rows[0].budget, cut)
        shown.append((rows, config.penalty(group, history) if config.penalty else []))
    if not shown:
        raise ValueError(
            f"no rollouts of step {step}, group {config.group}: there are steps 1 to "
            f"{past[-1].step}; leave group out to see all groups of one"
        )
    html = render_html("completions.html.j2", step=step, groups=shown, penalty=config.penalty)
    write_atomic(config.out, html)


if __name__ == "__main__":
    run(PageConfig, write_page)
