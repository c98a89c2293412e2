import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.tracing.shadow import Cell, Shadow, unwrap, wrap_inputs


def test_floating_inputs_are_rounded_and_carry_the_dtype():
    shadow = wrap_inputs(torch.tensor([0.1, 70000.0]), torch.float16)

    assert shadow.dtype == torch.float16
    assert shadow.inner.dtype == torch.float32
    assert shadow.inner.tolist() == [0.0999755859375, float("inf")]
    assert shadow.cell.depends
    assert not shadow.cell.noisy


def test_without_a_cast_inputs_keep_their_values():
    x = torch.tensor([0.1])

    assert wrap_inputs(x, None).inner is x
    assert wrap_inputs(x, None).dtype == torch.float32


def test_nested_inputs_keep_their_structure():
    ids = torch.tensor([3])
    wrapped = wrap_inputs({"a": [torch.ones(1), ids], "b": ("text", None)}, torch.bfloat16)

    assert wrapped["a"][0].dtype == torch.bfloat16
    assert wrapped["a"][1].dtype == torch.long
    assert wrapped["b"] == ("text", None)
    assert unwrap(wrapped)["a"][1] is ids


def test_what_the_program_reads_on_the_host():
    shadow = Shadow(torch.tensor([1 / 3]), torch.float16, Cell(True, False))

    assert shadow.numpy().dtype == "float16"
    assert shadow.tolist() == [0.333251953125]
    assert shadow.native().dtype == torch.float16


def test_a_value_is_written_into_a_text_as_a_number():
    """Mixtures of experts look one up by name: ``experts[f"expert_{index}"]``."""
    shadow = Shadow(torch.tensor([3, 7]), torch.int64, Cell(True, False))
    one = Shadow(torch.tensor(3), torch.int64, Cell(True, False))

    assert f"expert_{one} {one:03d}" == f"expert_{torch.tensor(3)} {torch.tensor(3):03d}"
    assert f"{shadow}" == "tensor([3, 7])"


def test_outside_a_trace_an_operation_on_it_is_an_error():
    shadow = wrap_inputs(torch.ones(2), torch.float16)

    with pytest.raises(RuntimeError, match="after its run had ended"):
        shadow + 1


def test_what_is_written_takes_part_in_what_the_memory_is():
    shadow = Shadow(torch.zeros(2), torch.float16, Cell(False, False, torch.float16))
    values = torch.ones(2)
    shadow.write(values, depends=True, noisy=False)
    assert shadow.inner is values
    assert (shadow.cell.depends, shadow.cell.noisy, shadow.cell.grid) == (True, False, None)
    shadow.write(values, depends=False, noisy=True)  # what was there once leaves its trace
    assert (shadow.cell.depends, shadow.cell.noisy) == (True, True)


def test_inputs_that_require_a_gradient_bring_no_graph_along():
    wrapped = wrap_inputs(torch.ones(2, requires_grad=True) * 2, None)

    assert wrapped.requires_grad
    assert not wrapped.inner.requires_grad


class Wavelengths(nn.Module):
    """Makes a tensor by its class, as old code does; then the layer meets another dtype."""

    def __init__(self, meets):
        super().__init__()
        self.linear, self.meets = nn.Linear(4, 3), meets

    def forward(self, x):
        waves = torch.Tensor([10.0]).to(x.device) ** torch.arange(4, device=x.device)
        return self.linear(x / (waves if self.meets else waves.to(x.dtype)))


@pytest.mark.parametrize("meets", [False, True])
def test_a_program_may_call_the_class_of_tensors(meets):
    """What that returns is initialised again by Python, with the program's own arguments."""
    torch.manual_seed(0)
    data = [(torch.randn(40, 4), torch.randint(0, 3, (40,)))]
    report = check(Evaluation(Wavelengths(meets).eval(), data), precision="16-true")
    assert report.forecast.verdict == report.verdict
    assert (report.verdict == "equivalent") != meets
    if meets:
        assert (report.culprit.module, report.culprit.operation) == ("linear", "addmm")
