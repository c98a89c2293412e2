"""CUDA's kernels for 16 bits alone, met by a program that carries float32: here on a CPU."""

from __future__ import annotations

import math

import pytest
import torch

from pytest_fp16.engine.emulation.wide import attention, run_wide

aten = torch.ops.aten
FLASH = aten._scaled_dot_product_flash_attention.default
CUDNN = aten._scaled_dot_product_cudnn_attention.default
EFFICIENT = aten._scaled_dot_product_efficient_attention.default
OVERRIDEABLE = aten._scaled_dot_product_fused_attention_overrideable.default


def wanted(query, key, value, mask=None, causal=False, scale=None):
    query, key, value = (t.double() for t in (query, key, value))
    scores = query @ key.mT * (scale or 1 / math.sqrt(query.shape[-1]))
    if causal:
        scores = scores + torch.full(scores.shape[-2:], -torch.inf).triu(1)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1) @ value


@pytest.fixture
def qkv():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 5, 8, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("causal", [True, False])
def test_flash_attention_is_read_by_its_schema(qkv, causal):
    out, logsumexp, *rest = run_wide(FLASH, (*qkv, 0.0, causal, False), {"scale": 0.3})
    assert torch.allclose(out.double(), wanted(*qkv, causal=causal, scale=0.3), atol=1e-6)
    assert logsumexp.shape == (2, 3, 5)
    assert len(rest) == len(FLASH._schema.returns) - 2


@pytest.mark.parametrize("op", [EFFICIENT, CUDNN])
@pytest.mark.parametrize("causal", [True, False])
def test_the_mask_and_the_flag_before_causality_are_not_taken_for_it(qkv, op, causal):
    mask = torch.randn(2, 1, 5, 5)
    out, _, *rest = run_wide(op, (*qkv, mask, True, 0.0, causal), {})
    assert torch.allclose(out.double(), wanted(*qkv, mask=mask, causal=causal), atol=1e-6)
    assert len(rest) == len(op._schema.returns) - 2


def test_a_mask_given_by_name(qkv):
    mask = torch.randn(2, 1, 5, 5)
    out = run_wide(OVERRIDEABLE, tuple(qkv), {"attn_bias": mask})[0]
    assert torch.allclose(out.double(), wanted(*qkv, mask=mask), atol=1e-6)


def test_heads_can_be_viewed_as_one_as_after_the_kernel(qkv):
    out = run_wide(FLASH, (*qkv, 0.0, False, False), {})[0]
    assert out.transpose(1, 2).view(2, 5, 24).shape == (2, 5, 24)


def test_probabilities_are_handed_to_whoever_rounds_them(qkv):
    out = attention(FLASH, (*qkv, 0.0, False, False), {}, torch.zeros_like)[0]
    assert float(out.abs().max()) == 0


def test_dropout_leaves_the_mean(qkv):
    torch.manual_seed(0)
    query, key, _ = qkv
    ones = torch.ones(2, 3, 5, 8)
    runs = [run_wide(FLASH, (query, key, ones, 0.5, False, False), {})[0] for _ in range(400)]
    assert abs(float(torch.stack(runs).mean()) - 1) < 0.02
    assert float(torch.stack(runs).std()) > 0.1


@pytest.mark.parametrize(
    ("op", "plain"),
    [(aten._softmax.default, torch.softmax), (aten._log_softmax.default, torch.log_softmax)],
)
def test_a_softmax_that_also_widens(op, plain):
    x = torch.randn(4, 6)
    with pytest.raises(RuntimeError):
        op(x, -1, True)
    assert torch.equal(run_wide(op, (x, -1, True), {}), plain(x, -1))


def test_any_other_operation_runs_as_it_is():
    x = torch.randn(3, 3)
    assert torch.equal(run_wide(aten.mul.Tensor, (x, x), {}), x * x)
