"""Models that carry something from one batch to the next: hidden states, averages, counts."""

import copy

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check


class Adapting(nn.Module):
    """Classifies what is left of an input when the average of the batches before is taken off."""

    def __init__(self, keep="buffer"):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = nn.Linear(64, 64), nn.Linear(64, 10)
        self.keep, self.steps = keep, 0
        if keep == "buffer":
            self.register_buffer("memory", torch.zeros(64))
        else:
            self.memory = None

    def forward(self, x):
        z = torch.tanh(3 * self.encoder(x.flatten(1)))
        now = z.detach().mean(0)
        if self.keep == "buffer":
            self.memory.mul_(0.5).add_(0.5 * now)
        else:
            self.memory = now if self.memory is None else 0.5 * self.memory + 0.5 * now
        self.steps += 1
        return self.head(z - 4 * self.memory) + 0.5 * self.steps * z[:, :10]


def unlabelled(digits, size=50):
    return list(digits[1][0][:300].split(size))


def by_hand(model, batches):
    with torch.no_grad():
        return torch.cat([model(x) for x in batches]).argmax(-1)


@pytest.mark.parametrize("keep", ["buffer", "attribute"])
@pytest.mark.parametrize("made", ["module", "function"])
def test_every_run_begins_and_goes_on_as_the_reference(digits, keep, made):
    batches = unlabelled(digits)
    labels = by_hand(Adapting(keep).eval(), batches).split(50)
    model = Adapting(keep).eval() if made == "module" else lambda: Adapting(keep).eval()
    data = list(zip(batches, labels, strict=True))
    report = check(Evaluation(model=model, data=data), precision="16-true", target="cuda")
    assert report.metric.reference == 1.0  # no batch was run that the program does not run
    assert report.verdict == "equivalent"
    assert report.forecast.verdict == "equivalent"
    assert report.standardised.spread < 1.9
    assert report.run.deterministic
    assert [w for w in report.warnings if "carries something from one batch to the next" in w]
    if made == "module":
        assert model.steps == 0  # the user's own model was left alone


def test_kernels_that_stray_are_set_beside_emulation_from_the_same_state(digits):
    """σ knows nothing of errors carried along; an ideal emulation of the same batch has them."""
    data = unlabelled(digits)
    subject = Evaluation(model=Adapting().eval(), data=data, labelled=False)
    report = check(subject, precision="bf16-true", emulate="never", device="cpu", budget=0.99)
    assert [c.name for c in report.checks if not c.passed] == []


def test_a_diagnosis_goes_back_to_where_the_data_began(digits):
    class Overflowing(Adapting):
        def forward(self, x):
            return super().forward(x) * (self.encoder(x.flatten(1)) * 1e4).pow(2).mean()

    subject = Evaluation(model=Overflowing().eval(), data=unlabelled(digits), labelled=False)
    report = check(subject, precision="16-true", target="cuda")
    assert report.verdict == "not equivalent"
    assert (report.culprit.operation, report.culprit.mechanism) == ("pow", "overflow")


GLOBAL = torch.Generator().manual_seed(0)  # a model's own would be put back


def test_a_model_that_draws_is_not_taken_for_one_that_carries(digits):
    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, x):
            return self.layer(x.flatten(1) + torch.rand(64, generator=GLOBAL))

    report = check(Evaluation(model=Drawing, data=unlabelled(digits), labelled=False, task="auto"))
    assert not report.run.deterministic
    assert [w for w in report.warnings if "the reference is not deterministic" in w]


class Solving(nn.Module):
    """Factors a matrix at its first use and keeps the factor, as Gaussian processes do."""

    def __init__(self, ridge):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.places = nn.Parameter(torch.rand(24, 2, generator=generator))
        self.targets = nn.Parameter((6 * self.places.detach()).sin().sum(1))
        self.ridge, self.cache = ridge, {}

    def kernel(self, x):
        return (-8 * (x @ -self.places.T * 2 + x.square().sum(1, keepdim=True))).exp() * (
            -8 * self.places.square().sum(1)
        ).exp()

    def forward(self, x):
        if "factor" not in self.cache:
            ridge = self.ridge * torch.eye(24)
            self.cache["factor"] = torch.linalg.cholesky(self.kernel(self.places).float() + ridge)
        weights = torch.cholesky_solve(self.targets.float().unsqueeze(1), self.cache["factor"])
        return self.kernel(x).float() @ weights


def solved(ridge):
    x = torch.rand(64, 2, generator=torch.Generator().manual_seed(1))
    subject = Evaluation(Solving(ridge).eval(), [x], labelled=False, task="regression")
    report = check(subject, precision="bf16-mixed")
    assert report.verdict == report.forecast.verdict == "not equivalent"
    assert report.culprit.mechanism == "precision-loss"
    return report


def test_what_lies_in_a_cache_is_diagnosed_all_the_same():
    culprit = solved(0.1).culprit
    assert culprit.operation == "mm"  # of the kernel; the factor was there when it was looked at
    assert "an error of 0;" not in culprit.evidence


def test_a_factor_that_16_bits_make_impossible_is_forecast():
    report = solved(0.001)
    assert "LinAlgError" in report.error
    assert "LinAlgError" in report.forecast.reason
    assert "exact values" not in report.culprit.evidence


def behind_autograd(module, value):
    module.shift.data.copy_(value)


def counted(module, value):
    with torch.no_grad():
        module.shift.copy_(value)


def exchanged(module, value):
    module.shift.data = value


def replaced(module, value):
    module.shift = nn.Parameter(value, requires_grad=False)


def in_a_list(module, value):
    module.nested["shifts"][0].copy_(value)


class Adapts(nn.Module):
    """A layer whose shift follows what it has seen, from some size of the inputs on."""

    def __init__(self, write, beyond=-1.0):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = nn.Linear(64, 64), nn.Linear(64, 10)
        self.shift, self.nested = nn.Parameter(torch.zeros(64)), {"shifts": [torch.zeros(64)]}
        self.write, self.beyond = write, beyond

    def forward(self, x):
        z = torch.tanh(3 * self.encoder(x.flatten(1)))
        listed = self.write is in_a_list
        if listed and self.nested["shifts"][0].dtype != z.dtype:
            self.nested["shifts"][0] = self.nested["shifts"][0].to(z.dtype)
        shift = self.nested["shifts"][0] if listed else self.shift
        if x.mean() > self.beyond:
            self.write(self, (0.5 * shift + 0.5 * z.mean(0)).detach())
        return self.head(z - 4 * (self.nested["shifts"][0] if listed else self.shift))


WEIGHTS = [behind_autograd, counted, exchanged, replaced]


@pytest.mark.parametrize(
    ("write", "later"), [(in_a_list, False), *((w, late) for w in WEIGHTS for late in (0, 1))]
)
@pytest.mark.parametrize("name", ["16-true", "bf16-mixed"])
def test_weights_that_are_written_cumulatively_are_followed(digits, write, name, later):
    batches = unlabelled(digits)
    if later:  # the first batch leaves no trace
        batches[2:] = [x + 1 for x in batches[2:]]
    model = Adapts(write, 0.9 if later else -1.0).eval()
    labels = by_hand(copy.deepcopy(model), batches).split(50)
    data = list(zip(batches, labels, strict=True))
    report = check(Evaluation(model=model, data=data), precision=name, target="cuda")
    assert report.metric.reference == 1.0  # no trial pass has moved what the program has not
    assert report.verdict == report.forecast.verdict == "equivalent"
    assert report.standardised.spread < 1.9
    assert report.run.deterministic
    assert not model.shift.any()  # the user's own


def test_a_diagnosis_of_weights_that_move_goes_back_to_where_they_were(digits):
    class Overflowing(Adapts):
        def forward(self, x):
            return super().forward(x) * (self.encoder(x.flatten(1)) * 1e4).pow(2).mean()

    subject = Evaluation(Overflowing(behind_autograd).eval(), unlabelled(digits), labelled=False)
    report = check(subject, precision="16-true", target="cuda")
    assert report.verdict == "not equivalent"
    assert (report.culprit.operation, report.culprit.mechanism) == ("pow", "overflow")


class Averaging(nn.Module):
    """Takes off the mean of all batches so far: of one batch it is the same, however often."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(64, 10)
        self.register_buffer("mean", torch.zeros(64))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        self.mean.lerp_(x.flatten(1).mean(0), 1 / self.count.item())
        return 4 * self.head(x.flatten(1) - self.mean)


@pytest.mark.parametrize("name", ["bf16-true", "bf16-mixed"])
def test_a_mean_over_all_batches_is_carried_along(digits, name):
    batches = unlabelled(digits)
    labels = by_hand(Averaging().eval(), batches).split(50)
    data = list(zip(batches, labels, strict=True))
    report = check(Evaluation(model=Averaging().eval(), data=data), precision=name, budget=0.05)
    assert report.verdict == report.forecast.verdict == "equivalent"
    assert report.standardised.spread < 1.9
    assert [w for w in report.warnings if "carries something from one batch to the next" in w]


class Centred(nn.Module):
    """Takes off the mean of its outputs, which it keeps in float32 and takes in no other dtype."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.centre = nn.Linear(64, 10), None

    def forward(self, x):
        out = self.head(x.flatten(1)).float()
        first, mean = self.centre is None, out.mean(0)
        self.centre = mean if first else torch.lerp(self.centre, mean, 0.1)
        return 10 * (out - self.centre)


def test_a_mean_that_the_program_keeps_in_float32_stays_so_in_the_forecast(digits):
    batches = unlabelled(digits)
    labels = by_hand(Centred().eval(), batches).split(50)
    data = list(zip(batches, labels, strict=True))
    report = check(Evaluation(model=Centred().eval(), data=data), precision="16-true", budget=0.05)
    assert report.verdict == report.forecast.verdict == "equivalent", report.forecast.reason


def test_what_is_carried_along_is_no_error(digits):
    class Vanishing(Averaging):
        def forward(self, x):
            return (super().forward(x) * 1e-4).square() * 1e8

    subject = Evaluation(model=Vanishing().eval(), data=unlabelled(digits), labelled=False)
    report = check(subject, precision="16-true")
    assert report.verdict == "not equivalent"
    assert (report.culprit.operation, report.culprit.mechanism) == ("pow", "underflow"), report
