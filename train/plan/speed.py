"""Time of one training step, from formulas.

update
    2 FLOPs a weight and token forward and 4 backward, over the layers' matrices (Kaplan et al.,
    arXiv 2001.08361, section 2.1), the output matrix at positions with a loss alone, and causal
    attention's 2·q·s a layer and token forward, s being the length (PaLM, arXiv 2204.02311,
    appendix B, halved). Checkpointing repeats the forward pass: 8 in place of 6. Adapters need no
    gradient of frozen weights: 4. Old and reference log-probabilities take 2 each. All over
    peak x MFU, but never faster than its operations can be launched.
optimiser
    AdamW reads weight, gradient and two moments and writes three back, 28 bytes a parameter, at the
    memory's bandwidth; with offload over the host's link, 4 bytes down and 2 up.
exchange
    A ring all-reduce moves 2·(N-1)/N of the gradients; stage 3 and FSDP gather the weights twice
    a pass, three times with checkpointing. Overlap with the passes is not counted.
generation
    A step of R rows reads all weights once and each row's keys and values so far:
    (weights + R·length·kv) / (bandwidth x efficiency), or computes 2 FLOPs a weight and row,
    whichever is longer, and never less than launching its operations takes. It takes as many
    steps as the longest completion has tokens, once for each batch that fits. Prompts are read
    at 2 FLOPs a weight and token, once a group where prompts are shared.
"""

from __future__ import annotations

from dataclasses import dataclass

from train.plan.devices import Device
from train.plan.load import Load
from train.plan.memory import vllm_rows
from train.plan.shapes import ModelShape

ADAMW_BYTES = 28
OPERATIONS_A_LAYER = 83  # forward, decoding one token in fp32, counted by the dispatcher
OPERATIONS_A_NORM = 12  # of them for the norms of query and key heads


@dataclass(frozen=True, slots=True)
class Efficiency:
    """How much of the data sheet is reached."""

    mfu: float
    """Of the peak in training and prompt reading."""
    decode: float
    """Of the bandwidth in generation."""
    engine_ms: float
    """What an engine such as vLLM adds to every token step."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one training step, and the tokens it handles over all ranks."""

    generation_s: float
    update_s: float
    optimizer_s: float
    exchange_s: float
    generated_tokens: float
    trained_tokens: float

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.generation_s + self.update_s + self.optimizer_s + self.exchange_s


def estimate_step(
    shape: ModelShape, load: Load, device: Device, efficiency: Efficiency
) -> StepTime:
    """Time of one step; the module's docstring has the formulas."""
    return StepTime(
        generation_s=generation_seconds(shape, load, device, efficiency) if load.generates else 0.0,
        update_s=update_seconds(shape, load, device, efficiency),
        optimizer_s=optimizer_seconds(shape, load, device),
        exchange_s=exchange_seconds(shape, load, device),
        generated_tokens=load.ranks * load.rows * load.mean_completion * load.generates,
        trained_tokens=load.ranks * trained_tokens(load),
    )


def trained_tokens(load: Load) -> float:
    """Tokens of a rank's step, prompts included."""
    prompts = load.pass_prompts * load.passes
    return load.rows * load.mean_completion + prompts * load.prompt


def forward_flops(shape: ModelShape, tokens: float, length: float, positions: float) -> float:
    """Of one forward pass: 2 a matrix weight, 2·q·length of attention, the output where needed."""
    layer = 2 * shape.layer_matrices + 2 * shape.q * length
    return tokens * shape.layers * layer + positions * 2 * shape.output_matrix


def update_seconds(shape: ModelShape, load: Load, device: Device, efficiency: Efficiency) -> float:
    """Forward and backward passes of one step."""
    positions = load.rows * load.mean_completion
    forward = forward_flops(
        shape, trained_tokens(load), load.prompt + load.mean_completion, positions
    )
    backward = 1 if load.lora_rank else 2
    passes = 1 + backward + int(load.checkpointing) + load.extra_forwards
    computing = forward * passes / (device.teraflops * 1e12 * efficiency.mfu)
    launching = passes * load.passes * launch_seconds(shape, device)
    return max(computing, launching)


def optimizer_seconds(shape: ModelShape, load: Load, device: Device) -> float:
    """The AdamW step of one rank's share."""
    trained = shape.trained_parameters(load.lora_rank)
    if load.sharding == "zero2-offload":
        return trained / load.ranks * 6 / (device.host_gb_s * 1e9)
    share = trained if load.sharding == "ddp" else trained / load.ranks
    return share * ADAMW_BYTES / (device.bandwidth_gb_s * 1e9)


def exchange_seconds(shape: ModelShape, load: Load, device: Device) -> float:
    """Gradients, and weights where they are sharded, between the ranks."""
    n = load.ranks
    part = (n - 1) / n
    trained = shape.trained_parameters(load.lora_rank)
    gradients = 2 * part * trained * (2 if load.sharding.startswith("zero") else 4)
    gathers = 0.0
    if load.sharding in ("zero3", "fsdp"):
        gathers = (3 if load.checkpointing else 2) * load.passes * part * shape.parameters * 2
    elif load.sharding in ("zero2", "zero2-offload"):
        gathers = part * trained * 2
    return (gradients + gathers) / (device.link_gb_s * 1e9)


def generation_seconds(
    shape: ModelShape, load: Load, device: Device, efficiency: Efficiency
) -> float:
    """Reading the prompts and decoding the completions of one rank's rows."""
    batches = 1
    rows = float(load.rows)
    if load.vllm and load.vllm_tensor_parallel == 1:
        at_once = max(1, vllm_rows(shape, load, device))
        batches = -(-load.rows // at_once)
        rows = load.rows / batches
    prompts = load.rows / load.group if load.packed or load.vllm else load.rows
    reading = forward_flops(shape, prompts * load.prompt, load.prompt, prompts) / (
        device.teraflops * 1e12 * efficiency.mfu
    )
    # Finished rows leave vLLM's batch and the compact sampler's; elsewhere they stay to the end.
    live = rows * load.mean_completion / load.completion if load.packed or load.vllm else rows
    steps = batches * load.completion
    return reading + steps * token_step_seconds(shape, load, device, efficiency, live)


def token_step_seconds(
    shape: ModelShape, load: Load, device: Device, efficiency: Efficiency, rows: float
) -> float:
    """One token for each of `rows` rows."""
    weight_bytes = 2 if load.vllm else 4
    matrices = shape.layers * shape.layer_matrices + shape.output_matrix
    length = load.prompt + load.mean_completion / 2
    cache = rows * length * shape.kv_bytes_a_token(load.bytes_each)
    moving = (weight_bytes * matrices + cache) / (device.bandwidth_gb_s * 1e9 * efficiency.decode)
    computing = 2 * matrices * rows / (device.teraflops * 1e12 * efficiency.mfu)
    if load.vllm:  # captured graphs: nothing to launch, but a scheduler and a sampler
        return max(moving, computing) + efficiency.engine_ms / 1e3
    return max(moving, computing, launch_seconds(shape, device))


def launch_seconds(shape: ModelShape, device: Device) -> float:
    """Launching one forward pass, operation by operation."""
    a_layer = OPERATIONS_A_LAYER - (0 if shape.qk_norm else OPERATIONS_A_NORM)
    return shape.layers * a_layer * device.dispatch_us / 1e6
