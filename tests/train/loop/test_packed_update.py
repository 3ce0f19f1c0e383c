from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from train.loop.packed_update import packed_log_probs

VOCAB = 300


@pytest.fixture(scope="module")
def model(micro_model):
    return AutoModelForCausalLM.from_pretrained(micro_model).eval()


def make_batch(prompt_lengths, completion_lengths, order):
    """Prompts padded left, completions right; `order` names each row's prompt."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda n: torch.randint(3, VOCAB, (n,), generator=generator)  # noqa: E731
    prompts = [draw(n) for n in prompt_lengths]
    width, tail = max(prompt_lengths), max(completion_lengths)
    ids = torch.zeros(len(order), width + tail, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (which, length) in enumerate(zip(order, completion_lengths, strict=True)):
        prompt = prompts[which]
        ids[row, width - len(prompt) : width] = prompt
        ids[row, width : width + length] = draw(length)
        mask[row, width - len(prompt) : width + length] = 1
    return ids, mask, tail


def alone(model, ids, mask, tail, temperature):
    """Each row by itself, without padding."""
    log_probs, entropies = torch.zeros(len(ids), tail), torch.zeros(len(ids), tail)
    for row in range(len(ids)):
        kept = ids[row][mask[row].bool()]
        length = int(mask[row, -tail:].sum())
        logits = model(kept[None]).logits[0, -length - 1 : -1] / temperature
        spread = torch.log_softmax(logits, -1)
        log_probs[row, :length] = spread.gather(1, kept[-length:, None])[:, 0]
        entropies[row, :length] = -(spread.exp() * spread).sum(-1)
    return log_probs, entropies


@pytest.mark.parametrize("order", [[0, 0, 0, 1, 1, 1], [1, 0, 1, 0, 0, 1]])
def test_a_packed_group_has_the_log_probabilities_of_its_rows_alone(model, order):
    ids, mask, tail = make_batch([9, 14], [5, 1, 7, 3, 7, 2], order)
    with torch.no_grad():
        log_probs, entropies = packed_log_probs(model, ids, mask, tail, temperature=0.7)
        expected = alone(model, ids, mask, tail, 0.7)
    assert torch.allclose(log_probs, expected[0], atol=1e-4)
    assert torch.allclose(entropies, expected[1], atol=1e-4)


def test_gradients_are_those_of_the_rows_alone(model):
    ids, mask, tail = make_batch([6], [4, 2, 5], [0, 0, 0])
    weight = model.get_decoder().layers[0].mlp.up_proj.weight
    gradients = []
    for function in (lambda: packed_log_probs(model, ids, mask, tail, temperature=1.0)[0],
                     lambda: alone(model, ids, mask, tail, 1.0)[0]):  # fmt: skip
        model.zero_grad()
        (function() * torch.arange(1.0, 4.0)[:, None]).sum().backward()
        gradients.append(weight.grad.clone())
    model.zero_grad()
    assert gradients[1].abs().max() > 1e-3  # else agreement says nothing
    assert torch.allclose(*gradients, atol=1e-4, rtol=1e-3)
