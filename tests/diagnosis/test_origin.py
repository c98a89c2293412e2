"""The origin is where it was born: not where it shows first, nor what lies downstream."""

import pytest
import torch
from torch import nn

from pytest_fp16.diagnosis.damage import ENOUGH
from pytest_fp16.diagnosis.origin import Origin, _expected, find_origin
from pytest_fp16.diagnosis.tape import Tape
from pytest_fp16.diagnosis.twin_run import Operation


class Rms(nn.Module):
    def forward(self, x):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt()


class Inside(nn.Module):
    """Leaves the range within its own forward: at its border everything is finite."""

    def forward(self, x):
        return x * torch.reciprocal((x * x).sum(-1, keepdim=True) + 1.0)


class Deltas(nn.Module):
    def forward(self, x):
        return x - x.roll(1, -1)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.Tanh())

    def forward(self, x):
        return x + self.inner(x)


def place(found):
    assert isinstance(found, Origin)
    return found.operation.module, found.operation.name


def test_an_overflow_inside_a_module_whose_output_is_finite(make_net, comparison):
    model = make_net(Inside(), gain=300.0)
    found = comparison(model)
    assert bool(found.run().isfinite().all())
    assert place(find_origin(found))[0] == "core.part"


def test_what_lies_downstream_is_not_blamed(make_net, comparison):
    class Later(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = Rms(), nn.LayerNorm(32), nn.Softmax(-1)

        def forward(self, x):
            return self.third(self.second(self.first(x)))

    found = find_origin(comparison(make_net(Later(), gain=5000.0, steps=0)))
    assert place(found) == ("core.part.first", "pow")


class Scaled(nn.Module):
    """By the spread of what is too small for float16, or of what a norm takes as it is."""

    def __init__(self, size, normed):
        super().__init__()
        self.size, self.norm = size, nn.LayerNorm(32) if normed else nn.Identity()

    def forward(self, x):
        small = self.size * x
        return self.norm(x if self.size > 1e-6 else small) / ((small * small).sum(-1, True) + 1e-9)


@pytest.mark.parametrize(
    ("size", "operation"),
    [
        (1e-8, "mul"),  # what is left of it is nothing, whatever the epsilon
        (1e-5, "add"),  # with it the squares would be as good as nothing, as they are
    ],
)
def test_where_all_was_lost_before_it_became_nan_is_the_origin(
    make_net, comparison, size, operation
):
    found = comparison(make_net(Scaled(size, size > 1e-6), gain=1.0, steps=0))
    assert not bool(found.run().isfinite().any())
    assert place(find_origin(found)) == ("core.part", operation)


def test_what_a_dtype_alone_ruins_hides_no_overflow_behind_it(make_net, comparison):
    class Masked(nn.Module):
        """Leaves out what the smallest number of its dtype marks, beside one that is -1e30."""

        def forward(self, x):
            scores = torch.stack([x + torch.finfo(x.dtype).min, x - 1e30], -1)
            mixed = (scores.softmax(-1) * torch.stack([-x, x], -1)).sum(-1)
            large = 300 + mixed
            return mixed + (large.square() - large * large)

    under = comparison(make_net(Masked(), gain=1.0, steps=0))
    assert not bool(under.run().isfinite().any())
    assert place(find_origin(under)) == ("core.part", "pow")


def test_a_harmless_infinite_mask_is_passed_over(make_net, comparison):
    class Masked(nn.Module):
        def forward(self, x):
            upper = (torch.ones(8, 8).triu(1) * -1e9).to(x.dtype)  # −inf, and no row is all of it
            rows = x.unflatten(-1, (4, 8))
            return (rows @ (upper.softmax(-1))).flatten(1)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.mask, self.norm = Masked(), Rms()

        def forward(self, x):
            return self.norm(self.mask(x) * 900.0)

    found = find_origin(comparison(make_net(Both())))
    assert place(found)[0] == "core.part.norm"


def test_an_input_that_is_too_coarse_is_its_consumers(comparison, digits):
    class Kelvin(nn.Module):
        def __init__(self):
            super().__init__()
            self.flat, self.deltas, self.head = nn.Flatten(), Deltas(), nn.Linear(64, 10)

        def forward(self, x):
            return self.head(self.deltas(self.flat(x)))

    torch.manual_seed(0)
    found = find_origin(comparison(Kelvin().eval(), inputs=digits[1][0] * 0.4 + 300))
    assert place(found) == ("deltas", "sub")


def test_a_shared_module_has_the_name_that_named_modules_gives_it(make_net, comparison):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            norm = Rms()
            self.one, self.other = norm, norm

        def forward(self, x):
            return self.other(self.one(x) * 600.0)

    assert place(find_origin(comparison(make_net(Twice()))))[0] == "core.part.one"


def test_without_any_gradient(comparison):
    class Ranks(nn.Module):
        def forward(self, x):
            place = torch.arange(64, dtype=x.dtype, device=x.device) / 64
            key = x.flatten(1) * 64 + place + 4096.0
            return key.argsort(-1)[:, :10].to(x.dtype)

    found = find_origin(comparison(nn.Sequential(Ranks())))
    assert place(found)[0] == "0"


def test_no_origin_where_nothing_is_wrong(comparison):
    assert find_origin(comparison(nn.Sequential(nn.Flatten(), nn.ReLU()))) is None


def test_many_small_parts_are_not_searched_to_the_last_operation(digits, comparison, monkeypatch):
    """No module does much, and theory says who does most: further cuts would change nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Residual() for _ in range(32)), nn.Linear(64, 10)).eval()
    found = comparison(model, "bf16-true", digits[1][0][:8].flatten(1))
    found.record()
    shares = {(o.module, o.name): 1.0 for o in found.operations}
    cuts, healed = [], found.healed
    monkeypatch.setattr(found, "healed", lambda until: cuts.append(until) or healed(until))
    assert not find_origin(found, shares).concentrated
    few = len(cuts)
    cuts.clear()
    assert not find_origin(found).concentrated  # nobody else to ask: the search goes on
    assert len(cuts) > few


def test_what_inputs_bring_is_looked_for_where_they_are_taken(digits, comparison, monkeypatch):
    """Theory's shares are those of rounding: they know nothing of inputs that are coarse."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(16)), nn.Linear(64, 10)).eval()
    found = comparison(model, "bf16-true", digits[1][0][:8].flatten(1) / 4 + 50)
    found.record()
    assert found.tape.entered() == [0]
    shares = {(o.module, o.name): 0.03 for o in found.operations} | {("16", "addmm"): 0.5}
    cuts, healed = [], found.healed
    monkeypatch.setattr(found, "healed", lambda until: cuts.append(until) or healed(until))
    assert place(find_origin(found, shares)) == ("0", "addmm")
    with_them = len(cuts)
    cuts.clear()
    monkeypatch.setattr(Tape, "entered", lambda _: [])
    assert place(find_origin(found, shares)) == ("0", "addmm")
    assert with_them < len(cuts)


def test_inputs_share_what_is_expected_of_them():
    operations = [Operation(i, name, name) for i, name in enumerate("abc")]
    shares = {(name, name): share for name, share in zip("abc", (0.5, 0.25, 0.25), strict=True)}
    assert _expected(operations, shares, []) == [0.5, 0.25, 0.25]
    assert _expected(operations, shares, [0, 1]) == [0.75, 0.5, 0.25]
    assert _expected(operations, shares, [2]) == [0.5, 0.25, 0.75]


class _Average(nn.Module):
    """A running average that stalls a little in each of 60 steps."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        x = self.layer(x.flatten(1)).sigmoid()
        state = 0 * x + 0.9
        for _ in range(60):
            state = state + 0.001 * (x - state)
        return self.head(50 * state - 45)


def test_in_a_loop_the_search_ends_at_the_very_operation(comparison):
    torch.manual_seed(0)
    under = comparison(_Average().eval())
    shares = {("", "sub"): 0.3, ("", "mul"): 0.3, ("", "add"): 0.3, ("head", "addmm"): 0.1}
    found = find_origin(under, shares)
    assert place(found) == ("", "add")
    before, after = (found.damage.of(under.healed(found.operation.index + i)) for i in (0, 1))
    assert before < ENOUGH <= after
