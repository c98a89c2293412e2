from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.copies import make_model
from pytest_fp16.engine.models import (
    Location,
    autocast,
    call,
    parameter_dtypes,
    prepare,
    require_float32,
)
from pytest_fp16.engine.outputs import main_output
from pytest_fp16.errors import ModelError
from pytest_fp16.precision import precision
from pytest_fp16.smoke import smoke

CPU = torch.device("cpu")


def test_a_module_is_copied_and_never_changed():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).train()
    ours = prepare(make_model(model), precision("16-true"), CPU)

    assert ours[0].weight.dtype == torch.float16
    assert model[0].weight.dtype == torch.float32
    assert model.training
    assert not ours.training
    assert model[0].weight.requires_grad
    assert not ours[0].weight.requires_grad


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_a_traced_module_is_cast_outside_no_grad_too():
    model = torch.jit.trace(nn.Linear(3, 2), torch.randn(1, 3))
    ours = prepare(make_model(model), precision("bf16-true"), CPU)

    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert ours(torch.randn(1, 3).bfloat16()).dtype == torch.bfloat16


def test_a_model_in_16_bits_cannot_be_the_reference():
    with pytest.raises(ModelError, match=r"weight is torch\.bfloat16, 2 such"):
        require_float32(nn.Linear(2, 2).bfloat16())
    require_float32(nn.Linear(2, 2))


def test_a_model_in_float64_cannot_either():
    with pytest.raises(ModelError, match=r"the model is in float64; pass it in float32"):
        require_float32(nn.Linear(2, 2).double())
    require_float32(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()))


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quantized.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*TypedStorage.*:UserWarning")
def test_a_quantised_model_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ModelError, match=r"quantised already \(0\._packed_params.*float32 model"):
        check(Evaluation(model=quantised, data=[torch.randn(2, 4)], labelled=False))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_frozen_graph_is_refused():
    inner = torch.jit.trace(nn.Linear(4, 4).eval(), torch.randn(2, 4))
    model = nn.Sequential(torch.jit.freeze(inner), nn.ReLU())
    with pytest.raises(ModelError, match=r"^0 is frozen TorchScript.*before torch\.jit\.freeze"):
        check(Evaluation(model=model, data=[torch.randn(2, 4)], labelled=False))


def test_a_model_on_the_meta_device_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3, device="meta"))
    with pytest.raises(ModelError, match=r"^1 lies on the meta device.*load its weights first"):
        check(Evaluation(model=model, data=[torch.randn(2, 4)], labelled=False))


@pytest.mark.parametrize("made", [False, True])
def test_an_exported_program_has_no_modes(made):
    """torch makes its module refuse ``eval()``, and says that it is training."""
    program = torch.export.export(torch.nn.Linear(4, 3).eval(), (torch.randn(8, 4),))
    model, x = program.module(), torch.randn(8, 4)
    assert model.training
    with pytest.raises(NotImplementedError):
        model.eval()
    subject = Evaluation(program.module if made else model, [x], labelled=False)
    report = check(subject, precision="16-true")
    assert report.verdict == "equivalent"
    assert not any("training mode" in warning for warning in report.warnings)
    smoke(subject)


def test_inputs_are_cast_where_the_whole_model_is():
    seen = {}

    class Spy(nn.Module):
        def forward(self, x, ids=None):
            seen["dtypes"] = (x.dtype, None if ids is None else ids.dtype)
            return x

    x, ids = torch.ones(2), torch.ones(2, dtype=torch.long)
    plain = Evaluation(model=None, data=[])
    call(Spy(), (x, ids), precision("16-true"), plain)
    assert seen["dtypes"] == (torch.float16, torch.int64)
    call(Spy(), {"x": x}, precision("16-mixed"), plain)
    assert seen["dtypes"] == (torch.float32, None)
    handed = replace(plain, forward=lambda m, inputs: m(inputs[0], ids=ids))
    call(Spy(), [x], precision("32-true"), handed)
    assert seen["dtypes"] == (torch.float32, torch.int64)


def test_autocast_only_for_mixed_precisions():
    x = torch.ones(2, 2)
    for name, dtype in (("16-true", torch.float32), ("bf16-mixed", torch.bfloat16)):
        with autocast(precision(name), CPU, "cuda"):
            assert (x @ x).dtype == dtype


@dataclass
class Output:
    loss: object
    logits: torch.Tensor


def test_the_main_output_is_found():
    x, other = torch.randn(2, 3), torch.randn(2)
    ids = torch.ones(2, dtype=torch.long)
    for output in (
        x,
        (x, other),
        [ids, x],
        {"aux": None, "logits": x},
        {"mask": ids, "pred": x},
        {"aux": other, "out": x},
        Output(None, x),
        SimpleNamespace(loss=other, logits=x),
        SimpleNamespace(hidden=x),
        ([x, other],),
    ):
        assert main_output(output) is x


def test_an_output_without_a_floating_tensor_says_what_to_return():
    for output in (torch.ones(2, dtype=torch.long), "text", {}, None):
        with pytest.raises(ModelError, match=r"pass forward="):
            main_output(output)


def test_location_follows_the_modules_and_survives_an_exception():
    class Raises(nn.Module):
        def forward(self, x):
            if x.sum() > 10:
                raise ValueError
            return x

    model = nn.Sequential(nn.Identity(), nn.Sequential(Raises()))
    where, seen = Location(model), []
    model[1][0].register_forward_pre_hook(lambda *_: seen.append(where()))
    model(torch.ones(2))
    assert seen == ["1.0"]
    assert where() == ""
    with pytest.raises(ValueError):
        model(torch.full((2,), 9.0))
    where.reset()
    assert where() == ""


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_location_knows_a_scripted_module_by_its_name():
    model = nn.Sequential(nn.Sequential(nn.ReLU()), nn.Identity())
    model[0] = torch.jit.script(model[0])
    where, seen = Location(model), []
    nn.Module.register_forward_pre_hook(model[0], lambda *_: seen.append(where()))
    model[1].register_forward_pre_hook(lambda *_: seen.append(where()))
    model(torch.ones(2))
    assert seen == ["0", "1"]
    assert where() == ""


def test_dtypes_are_counted():
    model = nn.Sequential(nn.Linear(2, 2).half(), nn.BatchNorm1d(2))

    assert parameter_dtypes(model) == {"float16": 2, "float32": 4}
