from __future__ import annotations

from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.micro import FACTS
from train.loop.sampler import pick_tokens, row_uniforms, sample_completions

NEARLY_GREEDY = 1e-4


@pytest.fixture(scope="module")
def model(micro_model):
    return AutoModelForCausalLM.from_pretrained(micro_model).eval()


@pytest.fixture(scope="module")
def prompts(micro_model):
    tokenizer = AutoTokenizer.from_pretrained(micro_model)
    texts = [FACTS[0], FACTS[1][:20], FACTS[0][5:40]]
    return [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]


def repeat(prompts, group):
    return [p for p in prompts for _ in range(group)]


def sample(model, prompts, group, *, eos_ids=(2,), temperature=NEARLY_GREEDY, tokens=24):
    return sample_completions(
        model,
        repeat(prompts, group),
        group=group,
        max_new_tokens=tokens,
        temperature=temperature,
        eos_ids=eos_ids,
        pad_id=0,
    )


def greedy(model, prompt, eos_ids, tokens=24):
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=list(eos_ids),
    )
    return output[0, len(prompt) :].tolist()


def test_the_most_likely_tokens_are_those_of_generate_for_each_prompt_alone(model, prompts):
    sampled = sample(model, prompts, group=2)
    expected = [greedy(model, p, (2,)) for p in prompts]
    assert sampled == repeat(expected, 2)


def test_rows_that_end_early_leave_without_disturbing_the_others(model, prompts):
    free = [greedy(model, p, (2,)) for p in prompts]
    # End tokens that come at different places, so that the batch shrinks while it runs.
    eos_ids = (free[0][3], free[1][9], 2)
    expected = [greedy(model, p, eos_ids) for p in prompts]
    assert len({len(e) for e in expected}) > 1
    assert sample(model, prompts, group=3, eos_ids=eos_ids) == repeat(expected, 3)


def test_no_completion_is_longer_than_asked(model, prompts):
    assert {len(c) for c in sample(model, prompts, group=1, tokens=5)} == {5}


def test_first_tokens_follow_the_models_distribution(model, prompts):
    torch.manual_seed(0)
    group = 3000
    drawn = sample(model, prompts[:1], group, temperature=1.0, tokens=1)
    counts = Counter(c[0] for c in drawn)
    with torch.no_grad():
        logits = model(torch.tensor([prompts[0]])).logits[0, -1]
    token = int(logits.argmax())
    share = float(torch.softmax(logits, -1)[token])
    deviation = (share * (1 - share) / group) ** 0.5
    assert abs(counts[token] / group - share) < 4 * deviation


def test_prompts_out_of_group_order_are_refused(model, prompts):
    with pytest.raises(ValueError, match="groups of 2"):
        sample_completions(
            model, prompts[:2], group=2, max_new_tokens=2, temperature=1, eos_ids=(2,), pad_id=0
        )


def test_a_temperature_of_zero_takes_the_likeliest_tokens_and_draws_nothing(model, prompts):
    before = torch.get_rng_state()
    expected = [greedy(model, p, (2,)) for p in prompts]
    assert sample(model, prompts, group=1, temperature=0.0) == expected
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match=r"temperature of -0.5: use 0, the likeliest token"):
        sample(model, prompts, group=1, temperature=-0.5)


def test_seeded_rows_draw_the_same_wherever_they_are_sampled(model, prompts):
    def sampled(first, count):
        rows = range(first * 2, (first + count) * 2)
        return sample_completions(
            model,
            repeat(prompts[first : first + count], 2),
            group=2,
            max_new_tokens=12,
            temperature=1.0,
            eos_ids=(2,),
            pad_id=0,
            uniforms=row_uniforms(7, 3, rows, 12),
        )

    whole = sampled(0, 3)
    assert sampled(0, 1) + sampled(1, 2) == whole
    assert len({tuple(c) for c in whole}) == 6


def test_other_steps_and_seeds_draw_otherwise():
    rows = row_uniforms(7, 3, range(4), 6)
    assert torch.equal(row_uniforms(7, 3, [2], 6)[0], rows[2])
    assert not torch.equal(row_uniforms(7, 4, range(4), 6), rows)
    assert not torch.equal(row_uniforms(8, 3, range(4), 6), rows)


def test_tokens_are_picked_as_often_as_they_are_likely():
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3, 0.0])
    uniforms = (torch.arange(1000) + 0.5) / 1000  # off the boundaries
    tokens = pick_tokens(probabilities.expand(1000, -1), uniforms)[:, 0]
    assert Counter(tokens.tolist()) == {1: 500, 3: 200, 4: 300}
