"""Where a program raises: module, operation and line, and the rounding that led it there."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.diagnosis.origin import find_origin
from pytest_fp16.diagnosis.stop import Raised, entered


@pytest.mark.parametrize(
    ("part", "operation"),
    [
        (lambda x: torch.quantile(x, 0.5, dim=-1, keepdim=True) + x, "quantile"),
        (lambda x: torch.linalg.qr(x.unflatten(-1, (8, 4))).Q.flatten(1), "linalg_qr"),
        (lambda x: x @ torch.eye(32), "mm"),
        (lambda x: x.masked_fill(x == 0, -1e9).clamp(min=0), "masked_fill"),
    ],
)
def test_a_program_that_stops(make_net, comparison, part, operation):
    class Stops(nn.Module):
        def forward(self, x):
            return part(x)

    found = find_origin(comparison(make_net(Stops(), steps=1)))
    assert isinstance(found, Raised)
    assert found.module == "core.part"
    assert found.operation == operation
    assert "test_stop.py" in found.source


class _ComplexRotary(nn.Module):
    def forward(self, x):
        turn = torch.polar(torch.ones(4), torch.arange(4.0))
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (4, 2))) * turn).flatten(-2)


def test_a_view_that_the_format_lacks_is_named_itself():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), _ComplexRotary(), nn.Linear(8, 3)).eval()
    x = torch.randn(80, 6)
    report = check(Evaluation(model=model, data=[x], labelled=False), precision="bf16-mixed")
    assert report.verdict == report.forecast.verdict == "not equivalent"
    found = report.culprit
    assert (found.module, found.operation) == ("1", "view_as_complex")
    assert found.mechanism == "unsupported-op"
    assert report.cure.verified, str(report)


class Factored(nn.Module):
    """A kernel of places that are close, and its factor: in 16 bits there is none of either."""

    def forward(self, x):
        places = x.flatten(1)[:, :6] * 1e-2
        kernel = torch.exp(-(places.unsqueeze(0) - places.unsqueeze(1)).square().sum(-1))
        ridge = 1e-3 * torch.eye(len(x), dtype=x.dtype)
        factor, info = torch.linalg.cholesky_ex(kernel + ridge)
        if info.any():
            raise ValueError("the kernel is not positive definite")
        return factor[:, :1] + x.flatten(1)[:, :10]


def test_a_missing_kernel_is_not_laid_to_what_another_check_would_refuse(comparison):
    found = find_origin(comparison(Factored(), "bf16-true"))
    assert isinstance(found, Raised)
    assert (found.operation, found.misled) == ("linalg_cholesky_ex", None)


def test_the_function_that_stops_the_program_where_nothing_follows_it(make_net, comparison):
    class Whitened(nn.Module):
        def forward(self, x):
            square = x.T @ x + torch.eye(x.shape[1], dtype=x.dtype)
            return x @ torch.linalg.inv(square)

    under = comparison(make_net(Whitened(), steps=1), "16-true")
    assert entered(under) == "linalg_inv"
    assert entered(comparison(make_net(nn.Identity(), steps=1), "16-true")) is None


def flash(q, k, v):
    if len({q.dtype, k.dtype, v.dtype}) > 1:
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    return nn.functional.scaled_dot_product_attention(q, k, v)


def causal(q, k, v):
    for t in (q, k, v):
        if t.dtype != torch.float32:
            raise RuntimeError("expected scalar type Float but found Half")
    return q * k.cumsum(1) * v


class Attention(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.qkv = function, nn.Linear(8, 24)
        self.q_norm, self.k_norm = nn.RMSNorm(8), nn.RMSNorm(8)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.function(self.q_norm(q), self.k_norm(k), v)[:, 0]


@pytest.mark.parametrize(
    ("function", "precision", "variant", "given"),
    [
        (flash, "16-mixed", "mixed dtypes", "it was given float32 (q, k) and float16 (v)"),
        (causal, "16-true", "refused by the program", "it was given float16 (q, k, v)"),
    ],
)
def test_what_a_function_of_the_programs_own_was_given_tells_why_it_refused(
    function, precision, variant, given
):
    torch.manual_seed(0)
    made = Evaluation(Attention(function).eval(), [torch.randn(200, 6, 8)], labelled=False)
    report = check(made, precision=precision)
    assert (report.culprit.mechanism, report.culprit.variant) == ("unsupported-op", variant)
    assert given in report.culprit.evidence
