"""A cure says what it costs: a count where 16 bits are emulated, times where they run natively."""

import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.report.terminal import full


class Rms(nn.Module):
    def forward(self, x):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.norm, self.head = nn.Linear(64, 32), Rms(), nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.norm(self.encoder(x.flatten(1)) * 500.0))


def subject(digits):
    (x, y), (test_x, _) = digits
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return Evaluation(model=model.eval(), data=[test_x], labelled=False)


def test_emulated_it_is_counted_and_never_timed(digits):
    report = check(subject(digits), precision="16-true", emulate="always")
    price = report.cure.price
    products, norm = 64 * 32 + 32 * 10, 32 + 32 + 1 + 1 + 32  # pow, mean, add, sqrt, div
    assert report.cure.modules == ["norm"]
    assert price.float32_share == norm / (products + norm + 32)  # and the factor of 500
    assert price.float32_share_before == 0
    assert (price.slowdown, price.speedup) == (None, None)
    said = "price: 3.9 % of the arithmetic in float32 (0 % without)"
    assert said in str(report)
    assert "price of the cure: 3.9 %" in full(report)


def test_native_it_is_timed_beside_the_uncured_and_the_reference(digits, monkeypatch):
    raced = []

    def race(runs):
        raced.append(list(runs))
        for run in runs.values():
            run()
        return {"cured": [2.0, 3.0, 4.0], "uncured": [2.0, 2.0, 2.0], "reference": [6.0] * 3}

    monkeypatch.setattr("pytest_fp16.evaluation.price.race", race)
    report = check(subject(digits), precision="16-true", emulate="never", device="cpu")
    assert raced == [["cured", "reference", "uncured"]]
    assert (report.cure.price.slowdown, report.cure.price.speedup) == (1.5, 2.0)
    assert "1.50 times the time without, 2.00 times as fast as 32-true" in str(report)


def test_a_model_that_raises_has_no_time_without_the_cure(digits, monkeypatch):
    class Qr(nn.Module):
        def forward(self, x):
            return x - torch.linalg.qr(x.unflatten(-1, (8, 4))).R.flatten(1).mean(-1, keepdim=True)

    given = subject(digits)
    given.model.norm = Qr()
    monkeypatch.setattr(
        "pytest_fp16.evaluation.price.race", lambda runs: {name: [1.0] for name in runs}
    )
    report = check(given, precision="16-true", emulate="never", device="cpu")
    assert report.cure.verified
    price = report.cure.price
    assert (price.float32_share_before, price.slowdown, price.speedup) == (None, None, 1.0)
