"""Remove attention heads, feed-forward neurons and layers from a model folder for good.

    python -m compress.prune --model DIR --cases dev.jsonl --out DIR --heads 0.2 --layers 1

Nothing is masked: the tensors and the configuration get smaller, so that every loader and every
exporter sees an ordinary model. Quality lost here is won back by training afterwards.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from compress.folders import describe_child, load_model
from compress.prompts import hash_examples, sample_prompts
from curt.artifact import Manifest, load_manifest, write_artifact
from curt.classifier.candidates import load_prompts
from curt.config import Config
from curt.corpus.store import read_cases

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

    from compress.prune.importance import Importance

log = logging.getLogger(__name__)

ARCHITECTURES = ("llama", "qwen2", "qwen3")

# Which axis of a projection runs over which part; a bias runs over the output axis, 0, alone.
PROJECTIONS = {
    "self_attn.q_proj": (0, "heads"),
    "self_attn.k_proj": (0, "groups"),
    "self_attn.v_proj": (0, "groups"),
    "self_attn.o_proj": (1, "heads"),
    "mlp.gate_proj": (0, "neurons"),
    "mlp.up_proj": (0, "neurons"),
    "mlp.down_proj": (1, "neurons"),
}
LAYER_TENSOR = re.compile(r"(model\.layers\.)(\d+)\.(.+)\.(weight|bias)")

HeadUnit = Literal["nearest", "query", "group"]


class PruneConfig(Config):
    """Settings of `python -m compress.prune`."""

    model: Path
    """The parent: a Hugging Face model folder of this project."""
    out: Path
    """Where the smaller model folder goes; an older one there is replaced when all is well."""
    heads: float = Field(0.0, ge=0, lt=1)
    """Share of each layer's query heads to remove, rounded to what its key-value groups allow."""
    head_unit: HeadUnit = "nearest"
    """Remove the same number of query heads from every key-value group ("query"), or whole
    groups ("group"), or whichever comes nearer to the share ("nearest")."""
    neurons: float = Field(0.0, ge=0, lt=1)
    """Share of each layer's feed-forward neurons to remove."""
    neuron_multiple: int = Field(32, ge=1)
    """Keep a multiple of this many neurons, so that block quantisation fits (32 to 128)."""
    layers: int = Field(0, ge=0)
    """How many layers to remove: those of least influence on the prompts."""
    criterion: Literal["magnitude", "activation"] = "activation"
    """Judge heads and neurons by their weights or by what they do on the prompts."""
    cases: Path = Path("artifacts/demo/corpus/dev.jsonl")
    """JSON Lines file of cases; read unless criterion is "magnitude" and no layer goes."""
    calibration_cases: int = Field(64, ge=1)
    """How many cases to run through the model."""
    seed: int = 7

    @model_validator(mode="after")
    def _asks_for_something(self) -> PruneConfig:
        if not (self.heads or self.neurons or self.layers):
            raise ValueError("nothing to remove: set heads, neurons or layers above 0")
        if self.out.resolve() == self.model.resolve():
            raise ValueError(f"out {self.out} is the parent itself: name another folder")
        return self


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What one layer of the pruned model keeps of the parent's, as ascending indices."""

    source: int
    """The parent's layer."""
    heads: tuple[int, ...]
    groups: tuple[int, ...]
    """Key-value heads; every one of them serves the same number of kept `heads`."""
    neurons: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class HeadCut:
    """How many heads go from each layer: whole key-value groups, or some query heads of each."""

    unit: Literal["query", "group"]
    count: int
    share: float
    """Removed query heads over all query heads."""


def plan_heads(config: PretrainedConfig, share: float, unit: HeadUnit = "nearest") -> HeadCut:
    """The cut nearest to `share` of the heads that leaves a model transformers can load.

    All layers keep the same number of heads and all key-value groups the same number of query
    heads; Llama also wants a number of heads that divides its hidden size. Of two cuts equally
    near, query heads go rather than groups. Raises ValueError, naming the shares that can be
    had, when `share` is nearer to no head removed or to no head left.
    """
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    per_group = heads // groups
    cuts = [HeadCut("query", n, n / per_group) for n in range(1, per_group)]
    cuts += [HeadCut("group", n, n / groups) for n in range(1, groups)]
    cuts = [cut for cut in cuts if unit in ("nearest", cut.unit)]
    if config.model_type == "llama":
        cuts = [c for c in cuts if config.hidden_size % round(heads * (1 - c.share)) == 0]
    gaps = [abs(cut.share - share) for cut in cuts]
    if cuts and min(gaps) <= min(share, 1 - share):
        return cuts[gaps.index(min(gaps))]
    possible = ", ".join(f"{s:.3g}" for s in sorted({cut.share for cut in cuts})) or "none"
    outcome = "removes no head" if share <= 0.5 else "leaves no head"
    raise ValueError(
        f"heads {share} {outcome}: of {heads} heads in {groups} key-value groups the shares "
        f"that can be removed with head_unit {unit} are: {possible}"
    )


def plan_neurons(neurons: int, share: float, multiple: int) -> int:
    """How many of a layer's `neurons` stay: the multiple nearest to what `share` leaves.

    A share of 0 keeps all. Raises ValueError when another leaves none or removes none.
    """
    if not share:
        return neurons
    kept = math.floor(neurons * (1 - share) / multiple + 0.5) * multiple
    if 0 < kept < neurons:
        return kept
    outcome = "leaves none" if kept == 0 else "removes none"
    raise ValueError(
        f"neurons {share} {outcome} of {neurons} in multiples of {multiple}: lower neuron_multiple"
        " or ask for another share"
    )


def make_plan(
    config: PretrainedConfig,
    importance: Importance,
    *,
    cut: HeadCut | None = None,
    neurons: int,
    layers: int = 0,
) -> list[LayerPlan]:
    """Choose what stays: the most important layers, and in each the most important parts.

    `cut` says how heads go, None for not at all; `neurons` is how many neurons of a layer stay;
    `layers` is how many layers go, which needs measured influence.
    """
    kept_layers: Sequence[int] = range(config.num_hidden_layers)
    if layers:
        assert importance.influence is not None
        kept_layers = _most(importance.influence, config.num_hidden_layers - layers)
    plans = []
    for layer in kept_layers:
        heads, groups = _choose_heads(config, importance.heads[layer], cut)
        kept = _most(importance.neurons[layer], neurons)
        plans.append(LayerPlan(layer, heads, groups, kept))
    return plans


def _choose_heads(
    config: PretrainedConfig, scores: Tensor, cut: HeadCut | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Query heads and key-value heads one layer keeps."""
    groups = config.num_key_value_heads
    size = config.num_attention_heads // groups
    kept_groups, kept_size = tuple(range(groups)), size
    by_group = scores.view(groups, size)
    if cut and cut.unit == "group":
        kept_groups = _most(by_group.mean(1), groups - cut.count)
    elif cut:
        kept_size = size - cut.count
    heads = (group * size + i for group in kept_groups for i in _most(by_group[group], kept_size))
    return tuple(heads), kept_groups


def _most(scores: Tensor, count: int) -> tuple[int, ...]:
    """Ascending indices of the `count` highest scores; of equals, the earlier ones go."""
    return tuple(sorted(scores.argsort(stable=True)[len(scores) - count :].tolist()))


def shrink(model: PreTrainedModel, plan: Sequence[LayerPlan]) -> PreTrainedModel:
    """A new model that holds only what `plan` keeps; `model` itself is left as it was.

    Raises ValueError when the slices and the smaller configuration do not fit each other.
    """
    config = _smaller_config(model.config, plan)
    state = _sliced_state(model.state_dict(), plan, config.head_dim)
    # from_pretrained builds without random weights, ties what is tied and names what is amiss.
    smaller, loading = type(model).from_pretrained(
        None, config=config, state_dict=state, dtype=model.dtype, output_loading_info=True
    )
    amiss = {name: sorted(map(str, found)) for name, found in loading.items() if found}
    if amiss:
        raise ValueError(f"the pruned tensors do not fill the smaller model: {amiss}")
    smaller.generation_config = copy.deepcopy(model.generation_config)
    return smaller.eval()


def _smaller_config(parent: PretrainedConfig, plan: Sequence[LayerPlan]) -> PretrainedConfig:
    config = copy.deepcopy(parent)
    # Explicit from here on: hidden size over heads is no longer the width of a head.
    config.head_dim = _head_dim(parent)
    config.num_attention_heads = len(plan[0].heads)
    config.num_key_value_heads = len(plan[0].groups)
    config.intermediate_size = len(plan[0].neurons)
    config.num_hidden_layers = len(plan)
    kinds = getattr(parent, "layer_types", None)
    if kinds:
        config.layer_types = [kinds[layer.source] for layer in plan]
    if kinds and "sliding_attention" in kinds:
        # Readers that know no layer_types count the layers before the first sliding one.
        config.max_window_layers = sum(p.source < parent.max_window_layers for p in plan)
    return config


def _sliced_state(
    state: dict[str, Tensor], plan: Sequence[LayerPlan], head_dim: int
) -> dict[str, Tensor]:
    positions = {layer.source: position for position, layer in enumerate(plan)}
    sliced = {}
    for name, tensor in state.items():
        match = LAYER_TENSOR.fullmatch(name)
        if not match:  # embeddings, final norm, output layer
            sliced[name] = tensor
        elif int(match[2]) in positions:
            position = positions[int(match[2])]
            target = f"{match[1]}{position}.{match[3]}.{match[4]}"
            sliced[target] = _slice(tensor, match[3], plan[position], head_dim)
    return sliced


def _slice(tensor: Tensor, module: str, layer: LayerPlan, head_dim: int) -> Tensor:
    import torch

    axis, part = PROJECTIONS.get(module, (0, ""))
    if not part or axis >= tensor.dim():  # a norm, or the bias of o_proj or down_proj
        return tensor.clone()
    kept = torch.tensor(getattr(layer, part), device=tensor.device)
    if part != "neurons":
        kept = (kept[:, None] * head_dim + torch.arange(head_dim, device=kept.device)).flatten()
    return tensor.index_select(axis, kept)


def _head_dim(config: PretrainedConfig) -> int:
    explicit: int | None = getattr(config, "head_dim", None)
    return explicit if explicit else config.hidden_size // config.num_attention_heads


def prune(config: PruneConfig) -> None:
    """Prune one model folder; its manifest keeps what was asked and removed.

    Raises ArtifactError when the parent must not be loaded and ValueError when the request can
    not be met or there are no cases to measure on; then nothing is written.
    """
    parent = load_manifest(config.model, expect="hf")
    from transformers import AutoConfig, AutoTokenizer

    shape = AutoConfig.from_pretrained(config.model)
    _check(config, shape)
    cut = plan_heads(shape, config.heads, config.head_unit) if config.heads else None
    neurons = plan_neurons(shape.intermediate_size, config.neurons, config.neuron_multiple)
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    prompts = _calibration_prompts(config, parent, tokenizer, shape.max_position_embeddings)
    model = load_model(config.model, "auto")
    importance = _judge(config, model, prompts)
    plan = make_plan(shape, importance, cut=cut, neurons=neurons, layers=config.layers)
    smaller = shrink(model, plan)

    report = _report(config, model, smaller, plan, importance, prompts)
    describe = describe_child(
        config.model,
        parent,
        format="hf",
        precision=parent.precision,
        stage="prune",
        config=config.model_dump(mode="json") | {"pruning": report},
    )
    with write_artifact(config.out, describe) as folder:
        smaller.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    log.info("asked for %s, removed %s", json.dumps(report["asked"]), json.dumps(report["removed"]))
    log.info("parameters %(parameters_before)d -> %(parameters_after)d", report)
    log.info("%s is ready", config.out)


def _check(config: PruneConfig, shape: PretrainedConfig) -> None:
    if shape.model_type not in ARCHITECTURES:
        raise ValueError(f"architecture {shape.model_type} is not one of {ARCHITECTURES}")
    if getattr(shape, "quantization_config", None):
        raise ValueError("the model is quantised: prune its full-precision parent instead")
    most = shape.num_hidden_layers - 1
    if config.layers > most:
        raise ValueError(f"layers {config.layers} leaves no layer: remove {most} at most")
    if config.heads and shape.model_type == "qwen2":
        log.warning("qwen2: some servers take hidden size over heads for head_dim; try yours first")


def _calibration_prompts(
    config: PruneConfig, parent: Manifest, tokenizer: Any, context_tokens: int
) -> list[list[int]]:
    if config.criterion == "magnitude" and not config.layers:
        return []
    # With the completion: parts that are active only in reasoning and answer must count as used.
    return sample_prompts(
        list(read_cases(config.cases)),
        load_prompts(config.model, tokenizer, parent.max_fact_tokens),
        parent.max_thinking_tokens,
        config.calibration_cases,
        config.seed,
        with_completion=True,
        longest=context_tokens,
    )


def _judge(config: PruneConfig, model: PreTrainedModel, prompts: list[list[int]]) -> Importance:
    import torch

    from compress.prune.importance import measure, weigh

    if not prompts:
        return weigh(model)
    measured = measure(model.to("cuda" if torch.cuda.is_available() else "cpu"), prompts)
    model.to("cpu")
    if config.criterion == "activation":
        return measured
    return replace(weigh(model), influence=measured.influence)


def _report(
    config: PruneConfig,
    model: PreTrainedModel,
    smaller: PreTrainedModel,
    plan: Sequence[LayerPlan],
    importance: Importance,
    prompts: list[list[int]],
) -> dict[str, Any]:
    """What the manifest says of the pruning. Layers are numbered as in the parent."""
    before, after = model.config, smaller.config
    kept = {layer.source for layer in plan}
    heads = set(range(before.num_attention_heads))

    def share(name: str) -> float:
        return (getattr(before, name) - getattr(after, name)) / float(getattr(before, name))

    return {
        "criterion": config.criterion,
        "asked": {"heads": config.heads, "neurons": config.neurons, "layers": config.layers},
        "removed": {
            "heads": share("num_attention_heads"),
            "key_value_heads": share("num_key_value_heads"),
            "neurons": share("intermediate_size"),
            "layers": [i for i in range(before.num_hidden_layers) if i not in kept],
        },
        "removed_heads": {str(p.source): sorted(heads - set(p.heads)) for p in plan},
        "layer_influence": [] if importance.influence is None else importance.influence.tolist(),
        "parameters_before": model.num_parameters(),
        "parameters_after": smaller.num_parameters(),
        "calibration_cases": len(prompts),
        "calibration_sha256": hash_examples(prompts) if prompts else "",
    }
