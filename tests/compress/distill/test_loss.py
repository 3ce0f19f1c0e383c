from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from compress.distill.examples import TokenisedExample
from compress.distill.loss import (
    Batch,
    LossSettings,
    MixUp,
    Models,
    Spans,
    distillation_loss,
    draw_mix,
    mix_embeddings,
    token_kl,
)

EXAMPLES = [
    TokenisedExample("a", [5, 6, 7], [8, 9, 10, 11], 3),
    TokenisedExample("b", [5, 6, 7, 12, 13], [14, 15], 1),
    TokenisedExample("c", [20], [21, 22, 23], 0),  # an answer alone
    TokenisedExample("d", [30, 31], [32], 1),  # thinking alone, cut short
]


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spans(*rows: str) -> Spans:
    """One letter a position: t thinking, a answer, . padding."""
    return Spans(
        torch.tensor([[c == "t" for c in row] for row in rows]),
        torch.tensor([[c == "a" for c in row] for row in rows]),
    )


def load(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_kl_of_two_coins_is_the_one_computed_by_hand():
    teacher = torch.tensor([math.log(0.75), math.log(0.25)])
    student = torch.tensor([0.0, 0.0])
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(token_kl(student, teacher, 1.0)) == pytest.approx(by_hand, rel=1e-5)


def test_temperature_takes_roots_and_pays_them_back_squared():
    teacher = torch.tensor([math.log(9.0), 0.0])  # at T = 2 its odds are 3 : 1
    student = torch.tensor([0.0, 0.0])
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(token_kl(student, teacher, 2.0)) == pytest.approx(4 * by_hand, rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.25, 8))
def test_kl_is_never_negative_and_zero_between_equals(seed: int, temperature: float):
    one, other = logits(3, 7, seed=seed), logits(3, 7, seed=seed + 1)
    assert (token_kl(one, other, temperature) >= -1e-5).all()
    assert token_kl(one, one, temperature).abs().max() == 0
    # a constant added to all logits is no other distribution
    assert token_kl(one + 3, one, temperature).abs().max() < 1e-4


def test_high_temperature_kl_is_half_the_squared_distance_of_centred_logits():
    """Hinton et al., equation 4: T² KL tends to Σ(z - v)² / 2V with centred logits."""
    one, other = logits(9), logits(9, seed=1)
    distance = ((one - one.mean()) - (other - other.mean())).square().sum() / (2 * 9)
    got = token_kl(one.double(), other.double(), 300.0)
    assert float(got) == pytest.approx(float(distance), rel=2e-2)


def test_a_student_that_equals_its_teacher_has_no_kl_in_any_span():
    values = logits(2, 3, 11)
    losses = distillation_loss(
        values, values, torch.ones(2, 3, dtype=torch.long), spans("tta", "ta."), LossSettings()
    )
    assert [float(losses.kl), float(losses.thinking_kl), float(losses.answer_kl)] == [0, 0, 0]
    assert float(losses.total) == pytest.approx(0.5 * float(losses.cross_entropy))


def test_each_span_has_its_own_mean_and_the_total_weighs_them():
    student, teacher = logits(2, 3, 11), logits(2, 3, 11, seed=1)
    targets = torch.randint(11, (2, 3), generator=torch.Generator().manual_seed(2))
    chosen = LossSettings(
        temperature=1.5, kl_weight=0.5, thinking_weight=2, answer_weight=3, ce_weight=0.25
    )
    losses = distillation_loss(student, teacher, targets, spans("tta", "aa."), chosen)
    kl = token_kl(student, teacher, 1.5)
    ce = cross_entropy(student.transpose(1, 2), targets, reduction="none")
    thinking = kl[0, :2].mean()
    answer = torch.stack([kl[0, 2], kl[1, 0], kl[1, 1]]).mean()
    whole = (2 * thinking + 3 * answer) / 5
    entropy = torch.stack([*ce[0], *ce[1, :2]]).mean()
    assert torch.allclose(losses.thinking_kl, thinking)
    assert torch.allclose(losses.answer_kl, answer)
    assert torch.allclose(losses.kl, whole)
    assert torch.allclose(losses.cross_entropy, entropy)
    total = 0.5 * whole + 2 * thinking + 3 * answer + 0.25 * entropy
    assert torch.allclose(losses.total, total)
    assert losses.to_row()["total"] == pytest.approx(float(total))


def test_padding_changes_neither_losses_nor_gradients():
    targets = torch.zeros(1, 3, dtype=torch.long)
    grads, totals = [], []
    for noise in (0.0, 50.0):
        student = logits(1, 3, 5)
        student[0, 2] += noise * torch.arange(5)
        student.requires_grad_()
        losses = distillation_loss(
            student, logits(1, 3, 5, seed=1), targets, spans("ta."), LossSettings()
        )
        losses.total.backward()
        totals.append(float(losses.total.detach()))
        grads.append(student.grad)
    assert totals[0] == totals[1]
    assert grads[0].equal(grads[1])
    assert grads[0][0, 2].abs().max() == 0
    assert grads[0][0, :2].abs().min() > 0


def test_an_empty_span_counts_nothing():
    losses = distillation_loss(
        logits(1, 2, 5),
        logits(1, 2, 5, seed=1),
        torch.zeros(1, 2, dtype=torch.long),
        spans("aa"),
        LossSettings(thinking_weight=1),
    )
    assert float(losses.thinking_kl) == 0
    assert losses.total.isfinite()


def test_no_gradient_reaches_the_teacher():
    teacher = logits(1, 2, 5, seed=1).requires_grad_()
    student = logits(1, 2, 5).requires_grad_()
    targets = torch.zeros(1, 2, dtype=torch.long)
    distillation_loss(student, teacher, targets, spans("ta"), LossSettings()).total.backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize(
    ("student", "teacher", "targets", "rows"),
    [
        ((1, 2, 5), (1, 2, 6), (1, 2), ["ta"]),
        ((1, 2, 5), (1, 3, 5), (1, 2), ["ta"]),
        ((1, 2, 5), (1, 2, 5), (1, 3), ["ta"]),
        ((1, 2, 5), (1, 2, 5), (1, 2), ["taa"]),
        ((2, 5), (2, 5), (1, 2), ["ta"]),
    ],
)
def test_what_does_not_belong_together_is_refused(student, teacher, targets, rows):
    with pytest.raises(ValueError, match="of models of one tokenizer"):
        distillation_loss(
            logits(*student),
            logits(*teacher),
            torch.zeros(targets, dtype=torch.long),
            spans(*rows),
            LossSettings(),
        )


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0},
        {"kl_weight": -1},
        {"label_smoothing": 1},
        {"kl_weight": 0, "ce_weight": 0},
        {"alpha": 1},
    ],
)
def test_settings_that_mean_nothing_are_refused(change):
    with pytest.raises(ValidationError):
        LossSettings(**change)


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        LossSettings().temperature = 3  # type: ignore[misc]


def test_the_spans_cover_exactly_the_completion():
    batch = Batch.of(EXAMPLES, pad_token_id=0)
    assert not (batch.spans.thinking & batch.spans.answer).any()
    for row, example in enumerate(EXAMPLES):
        length, thinking = len(example.completion_ids), example.thinking_tokens
        assert batch.targets[row][batch.spans.completion[row]].tolist() == example.completion_ids
        assert batch.spans.completion[row].tolist() == [c < length for c in range(4)]
        assert int(batch.spans.thinking[row].sum()) == thinking
        assert int(batch.spans.answer[row].sum()) == length - thinking
        read = batch.input_ids[row][batch.filled[row]].tolist()
        whole = example.prompt_ids + example.completion_ids
        assert read in (whole, whole[:-1])  # the longest ends before its last token


def test_a_batch_refuses_an_example_without_a_completion():
    with pytest.raises(ValueError, match="leave it out"):
        Batch.of([TokenisedExample("a", [1], [], 0)], pad_token_id=0)


def test_a_batch_has_the_losses_its_examples_have_alone(micro_model: Path):
    torch.manual_seed(3)
    student, teacher = load(micro_model), load(micro_model)
    with torch.no_grad():
        for weight in student.parameters():
            weight += 0.02 * torch.randn_like(weight)
    models = Models(student, teacher, pad_token_id=0)
    together = models.losses(EXAMPLES, LossSettings(temperature=1)).to_row()
    alone = models.measure(EXAMPLES)
    assert alone["kl"] > 0.001
    for name, value in alone.items():
        assert together[name] == pytest.approx(value, rel=1e-3), name


def test_logits_stand_before_the_tokens_they_predict(micro_model: Path):
    model = load(micro_model).eval()
    example = EXAMPLES[1]
    with torch.no_grad():
        whole = model(torch.tensor([example.prompt_ids + example.completion_ids])).logits[0]
    before = whole[len(example.prompt_ids) - 1 : -1]
    expected = cross_entropy(before, torch.tensor(example.completion_ids))
    got = Models(model, model, pad_token_id=0).measure([example])["cross_entropy"]
    assert got == pytest.approx(float(expected), rel=1e-5)


def test_mixing_interpolates_where_both_rows_have_a_token():
    values = torch.tensor([[[1.0], [2.0]], [[5.0], [10.0]]])
    both = torch.tensor([[True, False], [True, False]])
    mixed = mix_embeddings(values, torch.tensor([1, 0]), 0.75, both)
    assert mixed.tolist() == [[[2.0], [2.0]], [[4.0], [10.0]]]
    assert mix_embeddings(values, torch.tensor([1, 0]), 1.0, both).equal(values)


def test_a_share_of_one_is_no_mixup_and_another_is(micro_model: Path):
    torch.manual_seed(3)
    student, teacher = load(micro_model), load(micro_model)
    with torch.no_grad():
        for weight in student.parameters():
            weight += 0.02 * torch.randn_like(weight)
    models = Models(student, teacher, pad_token_id=0)
    chosen = LossSettings(thinking_weight=1, label_smoothing=0.1)
    plain = models.losses(EXAMPLES, chosen).to_row()
    partner = [3, 2, 1, 0]
    assert models.losses(EXAMPLES, chosen, MixUp(partner, 1.0)).to_row() == pytest.approx(plain)
    # every row its own partner: mixing a thing with itself changes nothing, whatever the share
    itself = models.losses(EXAMPLES, chosen, MixUp([0, 1, 2, 3], 0.3)).to_row()
    assert itself == pytest.approx(plain, rel=1e-3)
    mixed = models.losses(EXAMPLES, chosen, MixUp(partner, 0.5)).to_row()
    assert abs(mixed["kl"] - plain["kl"]) > 0.001
    assert all(math.isfinite(value) for value in mixed.values())


def test_mixup_is_off_by_default_and_seeded():
    assert draw_mix(random.Random(1), 4, LossSettings().mixup_alpha) is None
    drawn = draw_mix(random.Random(1), 4, 0.4)
    assert drawn == draw_mix(random.Random(1), 4, 0.4)
    assert drawn is not None
    assert sorted(drawn.partner) == [0, 1, 2, 3]
    assert 0 <= drawn.share <= 1
