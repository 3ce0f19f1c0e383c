"""What a student learns from: its teacher's distributions, the right tokens, or both.

Shapes: B rows, C completion positions, V vocabulary, H hidden width. Position c holds the logits
that predict token c of the completion. All losses are in nats a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from compress.distance import kl_divergence
from curt.config import FrozenModel

if TYPE_CHECKING:  # settings are read before a framework is needed
    import random
    from collections.abc import Sequence

    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from compress.distill.examples import TokenisedExample


class LossSettings(FrozenModel):
    """Temperature and weights. A term of weight 0 is measured, not learned from."""

    temperature: float = Field(2.0, gt=0)
    """Softens both distributions; 1 leaves them as they are."""
    kl_weight: float = Field(1.0, ge=0)
    """KL from the teacher over the whole completion."""
    thinking_weight: float = Field(0.0, ge=0)
    """Reasoning-path consistency: the same KL over thinking tokens, `</think>` among them."""
    answer_weight: float = Field(0.0, ge=0)
    """The same KL over answer tokens; few, so drowned by long thinking without this."""
    ce_weight: float = Field(0.5, ge=0)
    """Cross-entropy of the completion in the data."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread evenly over the vocabulary: Szegedy et al. 2016, arXiv 1512.00567,
    section 7."""
    mixup_alpha: float = Field(0.0, ge=0)
    """Both parameters of the Beta distribution that MixUp draws its share from; 0: no MixUp."""

    @model_validator(mode="after")
    def _learns_something(self) -> LossSettings:
        if not self.kl_weight + self.thinking_weight + self.answer_weight + self.ce_weight:
            raise ValueError("every weight is 0: give kl_weight or ce_weight one above")
        return self


@dataclass(frozen=True, slots=True)
class Spans:
    """Which completion positions are thinking and which are answer: (B, C), boolean, disjoint."""

    thinking: Tensor
    answer: Tensor

    @property
    def completion(self) -> Tensor:
        """Positions of either kind; the others are padding."""
        return self.thinking | self.answer

    def within(self, mask: Tensor) -> Spans:
        """Only those positions where the mask (B, C) holds."""
        return Spans(self.thinking & mask, self.answer & mask)


@dataclass(frozen=True, slots=True)
class Losses:
    """The weighted total and its terms before weighting: scalars."""

    total: Tensor
    kl: Tensor
    thinking_kl: Tensor
    answer_kl: Tensor
    cross_entropy: Tensor

    def mixed(self, other: Losses, share: float) -> Losses:
        """`share` of these and the rest of the others, term by term."""
        return Losses(
            *(share * getattr(self, name) + (1 - share) * getattr(other, name) for name in TERMS)
        )

    def to_row(self) -> dict[str, float]:
        """Plain numbers."""
        return {name: float(getattr(self, name).detach()) for name in TERMS}


TERMS = ("total", "kl", "thinking_kl", "answer_kl", "cross_entropy")


def token_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(p ‖ q) with p = softmax(teacher / T), q = softmax(student / T).

    (..., V) logits to (...) nats. The factor keeps gradients the size of those of the
    cross-entropy whatever T is: Hinton, Vinyals and Dean 2015, arXiv 1503.02531, section 2.
    """
    kl = kl_divergence(teacher.float() / temperature, student.float() / temperature)
    return temperature**2 * kl


def distillation_loss(
    student: Tensor, teacher: Tensor, targets: Tensor, spans: Spans, settings: LossSettings
) -> Losses:
    """w_kl·KL + w_think·KL_think + w_answer·KL_answer + w_ce·CE, over the completion alone.

    Each term is the mean of `token_kl` or the cross-entropy over the tokens of its span in the
    whole batch, so equal weights on thinking and answer still lift the few answer tokens; an
    empty span counts 0.

    Args:
        student: logits (B, C, V).
        teacher: logits (B, C, V); no gradient flows into them.
        targets: token ids (B, C); anything inside the vocabulary where padded.
        spans: what is thinking and what is answer.
        settings: temperature and weights.

    Raises ValueError when shapes, that of the vocabulary for one, differ.
    """
    from torch.nn.functional import cross_entropy

    completion = spans.completion
    if not (
        student.shape == teacher.shape and student.shape[:-1] == targets.shape == completion.shape
    ):
        raise ValueError(
            f"logits {tuple(student.shape)} of the student and {tuple(teacher.shape)} of the "
            f"teacher for targets {tuple(targets.shape)} and spans {tuple(completion.shape)}: give "
            "(B, C, V) both and (B, C) both, of models of one tokenizer and one padding of it"
        )
    chosen = student[completion]  # (N, V): padding costs no softmax
    kl = token_kl(chosen, teacher.detach()[completion], settings.temperature)  # (N,)
    thinking = spans.thinking[completion]
    terms = (
        kl.mean(),
        _mean(kl, thinking),
        _mean(kl, ~thinking),
        cross_entropy(
            chosen.float(), targets[completion], label_smoothing=settings.label_smoothing
        ),
    )
    weights = (
        settings.kl_weight,
        settings.thinking_weight,
        settings.answer_weight,
        settings.ce_weight,
    )
    # A term without weight must not turn the total into NaN: 0 · inf.
    total = sum((w * t for w, t in zip(weights, terms, strict=True) if w), start=kl.new_zeros(()))
    return Losses(total, *terms)


def mix_embeddings(embeddings: Tensor, partner: Tensor, share: float, both: Tensor) -> Tensor:
    """MixUp on inputs: share · x_i + (1 − share) · x_j where both rows have a token.

    (B, T, H) embeddings, (B,) row j of each row i, (B, T) positions both fill; elsewhere the row
    keeps its own. The losses of i and j are to be mixed by the same share, λ ~ Beta(α, α):
    Zhang et al. 2018, arXiv 1710.09412; on embeddings, Guo et al. 2019, arXiv 1905.08941.
    """
    if share == 1:
        return embeddings
    mixed = share * embeddings + (1 - share) * embeddings[partner]
    return mixed.where(both[..., None], embeddings)


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples side by side, their completions beginning in one column.

    With P the longest prompt and C the longest completion, T = P + C - 1: prompts end in column
    P - 1, and the last C columns predict the completions, whose own last tokens predict nothing.
    """

    input_ids: Tensor  # (B, T)
    filled: Tensor  # (B, T), boolean
    targets: Tensor  # (B, C)
    spans: Spans

    @classmethod
    def of(cls, examples: Sequence[TokenisedExample], pad_token_id: int) -> Batch:
        """Lay out examples; raises ValueError when one has no prompt or no completion."""
        import torch

        if not all(e.prompt_ids and e.completion_ids for e in examples):
            raise ValueError("an example without a prompt or a completion: leave it out")
        prompt = max(len(e.prompt_ids) for e in examples)
        longest = max(len(e.completion_ids) for e in examples)
        ids = torch.full((len(examples), prompt + longest), pad_token_id)
        filled = torch.zeros_like(ids, dtype=torch.bool)
        thinking = torch.zeros((len(examples), longest), dtype=torch.bool)
        answer = torch.zeros_like(thinking)
        for row, example in enumerate(examples):
            start, end = prompt - len(example.prompt_ids), prompt + len(example.completion_ids)
            ids[row, start:end] = torch.tensor(example.prompt_ids + example.completion_ids)
            filled[row, start:end] = True
            thinking[row, : example.thinking_tokens] = True
            answer[row, example.thinking_tokens : len(example.completion_ids)] = True
        return cls(ids[:, :-1], filled[:, :-1], ids[:, prompt:], Spans(thinking, answer))

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(
            self.input_ids.to(device),
            self.filled.to(device),
            self.targets.to(device),
            Spans(self.spans.thinking.to(device), self.spans.answer.to(device)),
        )


@dataclass(frozen=True, slots=True)
class MixUp:
    """The partner row of each row of a batch, and the share a row keeps of itself."""

    partner: list[int]
    share: float


def draw_mix(rng: random.Random, rows: int, alpha: float) -> MixUp | None:
    """Partners in a random order and a share from Beta(alpha, alpha); None when alpha is 0."""
    if not alpha:
        return None
    return MixUp(rng.sample(range(rows), rows), rng.betavariate(alpha, alpha))


@dataclass(frozen=True, slots=True)
class Models:
    """A student and the teacher it is compared with, on one device."""

    student: PreTrainedModel
    teacher: PreTrainedModel
    pad_token_id: int
    bf16: bool = False

    def losses(
        self, examples: Sequence[TokenisedExample], settings: LossSettings, mix: MixUp | None = None
    ) -> Losses:
        """The losses of a batch.

        Under MixUp the student reads mixed embeddings and each half of the loss stands against
        its own row's tokens and the teacher's view of that row unmixed, at the positions where
        the mixed row has a token.
        """
        import torch

        batch = Batch.of(examples, self.pad_token_id).to(self.student.device)
        with torch.no_grad():
            teacher = self._logits(self.teacher, batch, {"input_ids": batch.input_ids})
        if mix is None:
            student = self._logits(self.student, batch, {"input_ids": batch.input_ids})
            return distillation_loss(student, teacher, batch.targets, batch.spans, settings)
        partner = torch.tensor(mix.partner, device=self.student.device)
        embeddings = mix_embeddings(
            self.student.get_input_embeddings()(batch.input_ids),
            partner,
            mix.share,
            batch.filled & batch.filled[partner],
        )
        student = self._logits(self.student, batch, {"inputs_embeds": embeddings})
        own = distillation_loss(student, teacher, batch.targets, batch.spans, settings)
        others = distillation_loss(
            student,
            teacher[partner],
            batch.targets[partner],
            Spans(batch.spans.thinking[partner], batch.spans.answer[partner]).within(
                batch.spans.completion
            ),
            settings,
        )
        return own.mixed(others, mix.share)

    def measure(self, examples: Sequence[TokenisedExample]) -> dict[str, float]:
        """KL from the teacher and cross-entropy at temperature 1, in nats a token.

        Each is the mean over all tokens of its span; weights and smoothing play no part.
        """
        import torch

        plain = LossSettings(temperature=1)
        sums = dict.fromkeys(TERMS[1:], 0.0)
        tokens = dict.fromkeys(sums, 0)
        self.student.eval()
        with torch.no_grad():
            for example in examples:
                row = self.losses([example], plain).to_row()
                length, thinking = len(example.completion_ids), example.thinking_tokens
                counts = (length, thinking, length - thinking, length)
                for name, count in zip(sums, counts, strict=True):
                    sums[name] += row[name] * count
                    tokens[name] += count
        self.student.train()
        return {name: sums[name] / max(tokens[name], 1) for name in sums}

    def _logits(self, model: PreTrainedModel, batch: Batch, inputs: dict[str, Tensor]) -> Tensor:
        """(B, C, V), only where a completion is predicted: logits are most of the memory."""
        import torch

        positions = (batch.filled.long().cumsum(-1) - 1).clamp(min=0)
        with torch.autocast(self.student.device.type, torch.bfloat16, enabled=self.bf16):
            logits: Tensor = model(
                **inputs,
                attention_mask=batch.filled.long(),
                position_ids=positions,
                use_cache=False,
                logits_to_keep=batch.targets.shape[1],
            ).logits
        return logits


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the mask, 0 where it is empty."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
