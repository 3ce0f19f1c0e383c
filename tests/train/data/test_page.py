from __future__ import annotations

import pytest

from tests.train.rollouts import make_rollout
from train.data.page import PageConfig, write_page
from train.data.trajectories import TrajectoryWriter


def group(step, number, exact, tokens):
    return [
        make_rollout(
            step=step,
            group=number,
            case_id=f"case-{step}-{number}",
            completion=f"<想 {step}.{number}.{i}>",
            exact=c,
            correct=c,
            thinking_tokens=n,
        )
        for i, (c, n) in enumerate(zip(exact, tokens, strict=True))
    ]


@pytest.fixture
def trajectories(tmp_path):
    writer = TrajectoryWriter(tmp_path / "trajectories")
    writer.write(1, group(1, 0, (1.0, 1.0, 1.0), (10, 20, 30)))
    writer.write(2, group(2, 0, (1.0, 0.0), (40, 4)) + group(2, 1, (1.0, 1.0, 1.0), (10, 15, 60)))
    return writer.folder


def show(trajectories, **settings):
    out = trajectories.parent / "page.html"
    write_page(PageConfig(trajectories=trajectories, out=out, **settings))
    return out.read_text(encoding="utf-8")


def test_the_last_step_is_shown_with_every_completion_escaped(trajectories):
    page = show(trajectories)
    assert "Group 0: 1 of 2 right" in page
    assert "Group 1: 3 of 3 right" in page
    assert "&lt;想 2.1.2&gt;" in page
    assert "case-1-0" not in page
    assert "replayed" not in page


def test_one_group_is_replayed_under_a_penalty_that_looks_back(trajectories):
    """LASER-D's target for easy prompts comes from step 1: half of 10, 20, 30."""
    penalty = {"type": "laser-d", "refresh_steps": 1}
    page = show(trajectories, step=2, group=1, penalty=penalty)
    assert "Group 0" not in page
    cells = [row.split("</td>")[4].split(">")[1] for row in page.split("<tr><td")[1:]]
    assert cells == ["1.50", "1.50", "1.00"]


@pytest.mark.parametrize(
    ("settings", "said"), [({"step": 7}, "step 7, .* steps 1 to 2"), ({"group": 5}, "group 5")]
)
def test_a_step_or_group_that_is_not_there_is_named(trajectories, settings, said):
    with pytest.raises(ValueError, match=said):
        show(trajectories, **settings)
