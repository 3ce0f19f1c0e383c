"""Memory of one rank, from formulas.

With P parameters, T trained ones, N ranks, and `a` bytes an activation (2 under bf16, else 4):

weights, gradients, optimiser (AdamW)
    DDP: 4P + 4T + 8T (fp32, bf16 by autocast), and 4T for DDP's buckets when N > 1.
    ZeRO (arXiv 1910.02054, section 5) in bf16: 2P + 2T/N + 12T/N at stage 2 and
    2P/N + 2T/N + 12T/N at stage 3, the 12 being an fp32 copy and Adam's two moments. Stage 2 with
    offload keeps 16T/N (fp32 gradients too) in the host's memory and nothing of it on the device.
    FSDP: (4P + 4T + 8T)/N.
    With QLoRA the layers' matrices take 4.13 bits a weight (NF4, scales twice quantised).
copies
    autocast's bf16 weights, 2 x matrices, kept for the backward pass; DeepSpeed's two buckets of
    5e8 elements at stage 2, up to 1e9 gathered weights at stage 3; two gathered layers for FSDP.
activations, a token and layer (h hidden, f feed-forward, q and k widths of query and key heads)
    What autograd keeps of transformers' Qwen block with fused attention, counted tensor by tensor
    and equal to a measured run (tests/train/plan/test_plan.py):
    fp32   4·(6h + 4f + 2q + 2k) + 8 + 4·heads, with head norms 4·(2q + 2k + heads + kv_heads) more
    bf16   26h + 8f + 4q + 4k + 8 + 4·heads, with head norms 6q + 6k + 4·(heads + kv_heads) more
    With checkpointing: 4h a layer for its input, and one layer's worth while it is recomputed.
logits
    5·a·vocabulary at each position with a loss: the logits, their division by the temperature, the
    log-softmax that is kept, and the gradients of two of them.
rollouts
    keys and values, 2·layers·k·a a token; or vLLM's share of the device, of which the weights take
    2P. A share that sleeps leaves the device during the update.
reserve
    1.5 GiB for the driver and libraries, 5% for fragmentation. Neither is measured here.
"""

from __future__ import annotations

from dataclasses import dataclass

from train.plan.devices import GIB, Device
from train.plan.load import Load, Sharding
from train.plan.shapes import ModelShape

BUCKET_ELEMENTS = 500_000_000
LIVE_ELEMENTS = 1_000_000_000
LOGIT_COPIES = 5
DRIVER_BYTES = int(1.5 * GIB)
FRAGMENTATION = 0.05
VLLM_WORKSPACE_BYTES = GIB


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank."""

    weights: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    logits: int
    rollouts: int
    """Keys and values of plain generation, or vLLM's share."""
    vllm_stays: bool
    """Whether the rollouts' memory is taken during the update too."""
    host: int
    """In the host's memory."""

    @property
    def states(self) -> int:
        """What stays through the whole step."""
        return self.weights + self.gradients + self.optimizer

    @property
    def peak(self) -> int:
        """Of the update or the generation, whichever needs more; without the reserve."""
        update = self.copies + self.activations + self.logits
        if self.vllm_stays:
            return self.states + update + self.rollouts
        return self.states + max(update, self.rollouts)

    def needed(self) -> int:
        """The peak and the reserve."""
        return round(self.peak * (1 + FRAGMENTATION)) + DRIVER_BYTES


def estimate_memory(shape: ModelShape, load: Load, device: Device) -> Memory:
    """Memory of one rank; the module's docstring has the formulas."""
    p, t, n = shape.parameters, shape.trained_parameters(load.lora_rank), load.ranks
    weights, gradients, optimizer, host = state_bytes(p, t, n, load.sharding)
    if load.quantised:
        matrices = shape.layers * shape.layer_matrices
        weights = int(4.13 / 8 * matrices) + 4 * (p - matrices + t)
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        copies=copy_bytes(shape, t, load),
        activations=activation_bytes(shape, load),
        logits=LOGIT_COPIES * load.bytes_each * shape.vocab * load.pass_rows * load.completion,
        rollouts=rollout_bytes(shape, load, device),
        vllm_stays=load.vllm and not load.vllm_sleeps,
        host=host,
    )


def state_bytes(p: int, t: int, n: int, sharding: Sharding) -> tuple[int, int, int, int]:
    """Bytes of weights, gradients and optimiser on a rank, and of its share on the host."""
    if sharding == "ddp":
        return 4 * p, 4 * t, 8 * t, 0
    if sharding == "zero2":
        return 2 * p, 2 * t // n, 12 * t // n, 0
    if sharding == "zero2-offload":
        return 2 * p, 0, 0, 16 * t // n
    if sharding == "zero3":
        return 2 * p // n, 2 * t // n, 12 * t // n, 0
    return 4 * p // n, 4 * t // n, 8 * t // n, 0


def copy_bytes(shape: ModelShape, trained: int, load: Load) -> int:
    """Second copies of weights and gradients that a pass needs."""
    matrices = shape.layers * shape.layer_matrices + shape.output_matrix
    autocast = 2 * matrices if load.bf16 and not load.quantised else 0
    if load.sharding == "ddp":
        return autocast + (4 * trained if load.ranks > 1 else 0)
    if load.sharding in ("zero2", "zero2-offload"):
        return 2 * 2 * min(trained, BUCKET_ELEMENTS)
    if load.sharding == "zero3":
        return 2 * min(shape.parameters, LIVE_ELEMENTS)
    largest = max(shape.layer_parameters, shape.output_matrix)
    return 2 * 4 * largest + autocast // load.ranks


def layer_bytes_a_token(shape: ModelShape, *, bf16: bool) -> int:
    """What autograd keeps of one layer for each token, weights not counted."""
    h, f, q, k = shape.hidden, shape.ffn, shape.q, shape.kv
    if bf16:
        kept = 26 * h + 8 * f + 4 * q + 4 * k + 8 + 4 * shape.heads
        norms = 6 * q + 6 * k + 4 * (shape.heads + shape.kv_heads)
    else:
        kept = 4 * (6 * h + 4 * f + 2 * q + 2 * k) + 8 + 4 * shape.heads
        norms = 4 * (2 * q + 2 * k + shape.heads + shape.kv_heads)
    return kept + (norms if shape.qk_norm else 0)


def activation_bytes(shape: ModelShape, load: Load) -> int:
    """What autograd keeps of one pass."""
    tokens = load.pass_rows * load.completion + load.pass_prompts * load.prompt
    a_layer = layer_bytes_a_token(shape, bf16=load.bf16)
    ends = 8 * shape.hidden  # the last norm's input and its product, fp32
    if load.checkpointing:
        return tokens * (shape.layers * 4 * shape.hidden + a_layer + ends)
    return tokens * (shape.layers * a_layer + ends)


def rollout_bytes(shape: ModelShape, load: Load, device: Device) -> int:
    """vLLM's share, or the key-value cache of all of a rank's rows at full length."""
    if not load.generates:
        return 0
    if load.vllm:
        return int(load.vllm_share * device.memory_gib * GIB)
    return load.rows * (load.prompt + load.completion) * shape.kv_bytes_a_token(load.bytes_each)


def vllm_rows(shape: ModelShape, load: Load, device: Device) -> int:
    """Sequences at full length that fit vLLM's share at once; 0 when not even its weights do."""
    room = rollout_bytes(shape, load, device) - VLLM_WORKSPACE_BYTES
    room -= 2 * shape.parameters // load.vllm_tensor_parallel
    a_row = (load.prompt + load.completion) * shape.kv_bytes_a_token(2)
    return max(0, room * load.vllm_tensor_parallel // a_row)
