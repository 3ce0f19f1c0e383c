from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from curt.corpus.generate.generator import generate_cases
from curt.dialogue import Prompts
from train.branches import branch_logits
from train.warm_start.examples import Branch, Example, build_examples
from train.warm_start.loss import (
    BranchCollator,
    BranchTrainer,
    ExampleDataset,
    history_rows,
)
from train.warm_start.scratch import ModelSize, build_model
from train.warm_start.tokenizer import corpus_texts, train_tokenizer

SHAPE = ModelSize(hidden=64, layers=2, heads=2, kv_heads=1, head_dim=32, ffn=128, vocab=600)
PAD = 0


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(corpus_texts(generate_cases(40, seed=4)), SHAPE.vocab)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return build_model(SHAPE, tokenizer).eval()


@pytest.fixture(scope="module")
def examples(tokenizer):
    return build_examples(
        generate_cases(5, seed=5),
        tokenizer,
        Prompts(tokenizer, 120),
        verbosity_weights={"full": 0.4, "terse": 0.3, "none": 0.3},
        per_case=3,
        max_thinking_tokens=128,
        seed=1,
    )


def collate(examples, fact_share=0.0):
    return BranchCollator(PAD, fact_share)([{"example": example} for example in examples])


def logits_packed(model, batch):
    hidden = model.get_decoder()(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        attention_mask=batch["attention_mask"],
    ).last_hidden_state
    return model.get_output_embeddings()(hidden.flatten(0, 1)[batch["sources"]])


def logits_alone(model, example, branch):
    """What the model says when the branch's prompt and completion are all there is."""
    prompt = example.shared_ids + branch.prompt_ids
    ids = torch.tensor([prompt + branch.completion_ids])
    return model(input_ids=ids).logits[0, len(prompt) - 1 : -1]


def test_packed_branches_see_what_they_would_see_alone(model, examples):
    with torch.no_grad():
        packed = logits_packed(model, collate(examples))
        alone = torch.cat([logits_alone(model, e, b) for e in examples for b in e.branches])
    assert packed.shape == alone.shape
    assert (packed - alone).abs().max() < 1e-4


def test_targets_are_the_completions_in_order(examples):
    batch = collate(examples)
    wanted = [i for e in examples for b in e.branches for i in b.completion_ids]
    assert batch["targets"].tolist() == wanted


def test_a_source_stands_right_before_its_target(examples):
    batch = collate(examples)
    flat, width = batch["input_ids"].flatten(), batch["input_ids"].shape[1]
    for source, target in zip(batch["sources"].tolist(), batch["targets"].tolist(), strict=True):
        assert flat[source + 1] == target
        assert source % width + 1 < width


def test_padding_changes_no_loss(model, examples):
    short, long = sorted(examples, key=len)[:: len(examples) - 1]
    assert len(short) < len(long)
    with torch.no_grad():
        own = logits_packed(model, collate([short]))
        padded = logits_packed(model, collate([short, long]))[: len(own)]
    assert (own - padded).abs().max() < 1e-4


class Accelerator:
    autocast = staticmethod(torch.no_grad)
    unwrap_model = staticmethod(lambda model: model)
    num_processes = 1


@pytest.fixture
def trainer():
    trainer = BranchTrainer.__new__(BranchTrainer)
    trainer.accelerator = Accelerator()
    return trainer


def test_the_trainer_computes_the_mean_over_completion_tokens(model, examples, trainer):
    loss = trainer.compute_loss(model, collate(examples))
    with torch.no_grad():
        logits = torch.cat([logits_alone(model, e, b) for e in examples for b in e.branches])
    targets = torch.tensor([i for e in examples for b in e.branches for i in b.completion_ids])
    assert loss.item() == pytest.approx(cross_entropy(logits, targets).item(), abs=1e-4)


def test_facts_add_their_own_mean_with_its_weight(model, examples, trainer):
    batch = collate(examples, fact_share=1.0)
    completions = trainer.compute_loss(model, batch)
    trainer.fact_weight = 0.5
    loss = trainer.compute_loss(model, batch)
    with torch.no_grad():
        told = [model(input_ids=torch.tensor([e.shared_ids])).logits[0, :-1] for e in examples]
    targets = torch.tensor([i for e in examples for i in e.shared_ids[1:]])
    facts = cross_entropy(torch.cat(told), targets).item()
    assert loss.item() == pytest.approx(completions.item() + 0.5 * facts, abs=1e-4)


def test_a_share_of_the_facts_is_drawn_alike_for_a_batch_and_anew_for_another(examples):
    first, again, other = (
        collate(chosen, fact_share=0.5) for chosen in (examples, examples, examples[1:])
    )
    for batch, chosen in ((first, examples), (other, examples[1:])):
        drawn = batch["sources"][len(batch["targets"]) :]
        whole = sum(len(e.shared_ids) - 1 for e in chosen)
        assert 0.3 * whole < len(drawn) < 0.7 * whole
        assert torch.equal(batch["input_ids"].flatten()[drawn + 1], batch["fact_targets"])
    assert torch.equal(first["sources"], again["sources"])
    shared = len(examples[1].shared_ids)
    drawn = [
        set(
            (batch["sources"][len(batch["targets"]) :] - row * batch["input_ids"].shape[1]).tolist()
        )
        for batch, row in ((first, 1), (other, 0))
    ]
    assert drawn[0] & set(range(shared)) != drawn[1] & set(range(shared))


def test_without_a_share_no_fact_is_drawn(model, examples, trainer):
    batch = collate(examples)
    assert len(batch["fact_targets"]) == 0
    trainer.fact_weight = 0.5
    assert torch.isfinite(trainer.compute_loss(model, batch))


def test_a_step_in_bf16_has_the_loss_and_gradients_of_one_in_float32(model, examples, trainer):
    batch = collate(examples)
    trainer.accelerator = SimpleNamespace(
        autocast=nullcontext, unwrap_model=lambda model: model, num_processes=1
    )
    gradients, losses = [], []
    for trainer.bf16_weights in (False, True):
        model.zero_grad()
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        assert gradients[-1].dtype == torch.float32
    model.zero_grad()
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_collation_worked_by_hand():
    example = Example([5, 6], (Branch([7], [8, 9]), Branch([3], [4])))
    batch = collate([example, Example([5], (Branch([7], [8]),))])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 3, 4], [5, 7, 8, PAD, PAD, PAD, PAD]]
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 3, 4, 2, 3]
    assert batch["sources"].tolist() == [2, 3, 5, 8]
    assert batch["targets"].tolist() == [8, 9, 4, 8]
    sees = batch["attention_mask"][0, 0].int().tolist()
    assert sees[4] == [1, 1, 1, 1, 1, 0, 0]
    assert sees[6] == [1, 1, 0, 0, 0, 1, 1]


def test_the_dataset_shows_the_sampler_the_packed_length(examples):
    dataset = ExampleDataset(examples)
    assert len(dataset) == len(examples)
    assert [len(dataset[i]["input_ids"]) for i in range(len(dataset))] == list(map(len, examples))


def test_history_keeps_rows_with_a_loss():
    log = [
        {"step": 20, "loss": 2.5, "learning_rate": 1e-3, "grad_norm": 1.0},
        {"step": 40, "train_runtime": 3.0, "train_loss": 2.0},
    ]
    assert history_rows(log) == [{"step": 20, "loss": 2.5, "lr": 1e-3}]


def test_plain_rows_have_the_logits_of_packed_ones(model, examples):
    plain = BranchCollator(PAD, packs=False)([{"example": example} for example in examples])
    packed = collate(examples)
    assert "attention_mask" not in plain
    assert plain["targets"].tolist() == packed["targets"].tolist()
    count = len(packed["targets"])
    with torch.no_grad():
        alone = branch_logits(model, plain["input_ids"], plain["sources"])[:count]
    assert (logits_packed(model, packed)[:count] - alone).abs().max() < 1e-4
