"""Functions of torch's that a program's file has imported by name."""

import sys
import types

import torch
from torch import as_tensor, nn, tensor
from torch.fft import irfft as back
from torch.fft import rfft

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.emulation.patching import replaced, replaced_everywhere


def ours(*args, **kwargs):
    return "ours"


def others(*args, **kwargs):
    return "others"


def test_members_are_given_back_and_inherited_ones_inherited_again():
    class Parent:
        def own(self):
            return "own"

        def inherited(self):
            return "inherited"

    class Child(Parent):
        def own(self):
            return "child's"

    before = dict(vars(Child))
    with replaced(Child, own=ours, inherited=others):
        assert (Child().own(), Child().inherited()) == ("ours", "others")
    assert dict(vars(Child)) == before
    assert Child().inherited() == "inherited"


def test_a_name_in_any_file_means_the_other_function_and_is_given_back():
    own = torch.fft.rfft
    with replaced_everywhere(torch.fft, {"rfft": ours, "irfft": others}):
        assert (rfft(), back(), torch.fft.rfft()) == ("ours", "others", "ours")
    assert rfft is own
    assert torch.fft.rfft is own
    assert back is torch.fft.irfft


def test_it_nests():
    own = rfft
    with replaced_everywhere(torch.fft, {"rfft": ours, "irfft": ours}):
        with replaced_everywhere(torch.fft, {"rfft": others, "irfft": others}):
            assert rfft() == "others"
        assert rfft() == "ours"
    assert rfft is own


def test_a_file_imported_before_or_meanwhile_is_seen(monkeypatch):
    own, before, meanwhile = rfft, types.ModuleType("before"), types.ModuleType("meanwhile")
    before.transform = torch.fft.rfft
    monkeypatch.setitem(sys.modules, "before", before)
    with replaced_everywhere(torch.fft, {"rfft": ours, "irfft": lambda: "mine"}):
        assert before.transform() == "ours"
        meanwhile.transform = torch.fft.rfft
        monkeypatch.setitem(sys.modules, "meanwhile", meanwhile)
        with replaced_everywhere(torch.fft, {"rfft": others, "irfft": lambda: "theirs"}):
            assert (before.transform(), meanwhile.transform()) == ("others", "others")
    assert before.transform is own
    assert meanwhile.transform is own


def test_what_a_program_puts_there_itself_stays(monkeypatch):
    file = types.ModuleType("file")
    file.transform = torch.fft.rfft
    monkeypatch.setitem(sys.modules, "file", file)
    with replaced_everywhere(torch.fft, {"rfft": ours, "irfft": ours}):
        file.transform = others
    assert file.transform is others


class Filtered(nn.Module):
    """A learned filter, its transforms imported by name."""

    def __init__(self):
        super().__init__()
        self.gains = nn.Parameter(torch.randn(17))
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(back(rfft(x) * self.gains))


class Shifted(nn.Module):
    """Adds a tensor made of its own values, by functions imported by name."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        z = self.head(x)
        with torch.no_grad():
            shift = tensor([z[0, 0], z[0, 1]]) + as_tensor([z[1, 0], 1.0])
        return z + shift.sum() / 10


def test_a_model_is_followed_through_them():
    torch.manual_seed(0)
    x = torch.randn(64, 32)
    for model in (Filtered().eval(), Shifted().eval()):
        labels = model(x).argmax(1)
        report = check(Evaluation(model=model, data=[(x, labels)]), precision="16-true")
        assert report.verdict == "equivalent", report.cause
        assert report.forecast.verdict == "equivalent", report.forecast.reason
