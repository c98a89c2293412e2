import pytest
import torch
import torch.nn.functional as F

from pytest_fp16.engine.emulation.attention import fused_attention


def same(x):
    return x


def qkv(heads=4, keys=4, length=6, source=9):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, heads, length, 8), (2, keys, source, 8), (2, keys, source, 5))
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


@pytest.mark.parametrize("mask", [None, "bool", "float"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_unrounded_it_is_attention(mask, scale):
    q, k, v = qkv()
    given = None
    if mask is not None:
        given = torch.rand(2, 1, 6, 9, generator=torch.Generator().manual_seed(1)) > 0.4
        given[..., 0] = True
    if mask == "float":
        given = torch.zeros(given.shape, dtype=torch.float64).masked_fill(~given, -3.0)
    out, logsumexp = fused_attention(
        q, k, v, mask=given, causal=False, scale=scale, round_probabilities=same
    )

    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=given, scale=scale)
    torch.testing.assert_close(out, expected)
    if mask is None:
        scores = q @ k.mT * (scale or 8**-0.5)
        torch.testing.assert_close(logsumexp, scores.logsumexp(-1))


@pytest.mark.parametrize(("length", "source"), [(6, 6), (4, 9), (9, 4)])
def test_causal_masks_the_upper_triangle(length, source):
    q, k, v = qkv(length=length, source=source)
    out, _ = fused_attention(q, k, v, mask=None, causal=True, scale=None, round_probabilities=same)

    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(out, expected)


def test_grouped_queries_share_keys():
    q, k, v = qkv(heads=4, keys=2)
    out, _ = fused_attention(q, k, v, mask=None, causal=False, scale=None, round_probabilities=same)

    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, enable_gqa=True))


def test_a_row_masked_everywhere_gives_zeros():
    q, k, v = qkv()
    mask = torch.ones(6, 9, dtype=torch.bool)
    mask[2] = False
    out, _ = fused_attention(q, k, v, mask=mask, causal=False, scale=None, round_probabilities=same)

    assert (out[:, :, 2] == 0).all()
    assert out.isfinite().all()


def test_probabilities_are_rounded_before_they_are_divided_by_their_sum():
    q, k, v = qkv()
    seen = []

    def note(p):
        seen.append(p)
        return p

    fused_attention(q, k, v, mask=None, causal=False, scale=None, round_probabilities=note)

    assert len(seen) == 1
    assert (seen[0].amax(-1) == 1).all()
