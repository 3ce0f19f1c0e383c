from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from train.branches import branch_mask
from train.warm_start.cpu import attend_by_products, call_in_bf16


def draw(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, requires_grad=True)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_products_give_the_attention_and_gradients_of_the_fused_kernel(kv_heads):
    query = draw(3, 4, 7, 8, seed=1)
    key, value = draw(3, kv_heads, 7, 8, seed=2), draw(3, kv_heads, 7, 8, seed=3)
    numbers = torch.tensor([[0, 0, 0, 1, 1, 2, -1], [0, 1, 1, 2, 2, 2, 2], [0, 0, 0, 0, 0, 1, 2]])
    mask = branch_mask(numbers)
    got, _ = attend_by_products(None, query, key, value, mask, scaling=0.3)
    repeated = [x.repeat_interleave(4 // kv_heads, dim=1) for x in (key, value)]
    expected = scaled_dot_product_attention(query, *repeated, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(got, expected.transpose(1, 2))
    weight = draw(*got.shape, seed=4).detach()
    gradients = [
        torch.autograd.grad((out * weight).sum(), (query, key, value))
        for out in (got, expected.transpose(1, 2))
    ]
    torch.testing.assert_close(*gradients)


def test_products_leave_attention_without_a_mask_to_torch():
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, 2
    query, key = draw(1, 2, 5, 8, seed=1), draw(1, 1, 5, 8, seed=2)
    causal = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    got, _ = attend_by_products(module, query, key, key, None)
    torch.testing.assert_close(got, attend_by_products(module, query, key, key, causal)[0])


def test_work_in_bf16_reaches_weights_in_float32_and_tied_ones_once():
    module = torch.nn.Module()
    module.embed = torch.nn.Embedding(5, 4)
    module.head = torch.nn.Linear(4, 5, bias=False)
    module.head.weight = module.embed.weight
    seen = []

    def work():
        hidden = module.embed(torch.tensor([0, 3]))
        seen.extend([hidden.dtype, module.head.weight is module.embed.weight])
        return module.head(hidden).float().logsumexp(-1).sum()

    call_in_bf16(module, work).backward()
    assert seen == [torch.bfloat16, True]
    rough = module.embed.weight.grad.clone()
    assert rough.dtype == torch.float32
    module.zero_grad()
    work().backward()
    assert module.embed.weight.dtype == torch.float32
    torch.testing.assert_close(rough, module.embed.weight.grad, rtol=0.02, atol=0.02)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_freed_memory_stays_with_the_process():
    script = """
import torch
from train.warm_start.cpu import keep_freed_memory
keep_freed_memory()
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
torch.ones(40_000_000)
assert resident() > 160_000_000, resident()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
