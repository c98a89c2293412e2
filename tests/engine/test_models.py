import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.models import (
    Location,
    autocast,
    call,
    make_model,
    parameter_dtypes,
    prepare,
    require_float32,
)
from pytest_fp16.engine.outputs import main_output
from pytest_fp16.errors import ModelError
from pytest_fp16.precision import precision

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


def test_a_function_makes_the_model():
    assert isinstance(make_model(lambda: nn.Linear(2, 2)), nn.Linear)
    with pytest.raises(ModelError, match="returned int, not a"):
        make_model(lambda: 3)
    with pytest.raises(ModelError, match=r"must be a torch\.nn\.Module or a function"):
        make_model("resnet")


def test_what_a_module_computed_and_keeps_is_copied_without_its_history():
    class Remembers(nn.Linear):
        def forward(self, x):
            self.seen = {"last": super().forward(x)}
            return self.seen["last"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        normed = torch.nn.utils.weight_norm(nn.Linear(4, 3))  # its weight is no leaf
    model = nn.Sequential(normed, Remembers(3, 2))
    x = torch.randn(5, 4)
    want = model(x)
    copied = make_model(model)
    assert torch.equal(copied(x), want)
    assert copied[0].weight is not model[0].weight
    assert model[1].seen["last"].grad_fn is not None, "the user's own is not changed"


def test_a_module_that_cannot_be_copied_says_what_to_do():
    model = nn.Linear(2, 2)
    model.lock = (i for i in range(3))

    with pytest.raises(ModelError, match="pass a function that makes it"):
        make_model(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_scripted_function_in_a_model_is_shared_by_its_copies():
    @torch.jit.script
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    model = nn.Linear(2, 2)
    model.part = nn.Identity()
    model.part.function = double
    ours = make_model(model)

    assert ours.part.function is double
    assert ours.part is not model.part


@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support")
@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc, torch.sparse_coo])
def test_sparse_tensors_of_a_model_are_copied(layout):
    model = nn.Linear(4, 4)
    model.register_buffer("graph", torch.eye(4).to_sparse(layout=layout))
    model.mask = nn.Parameter(torch.eye(4).to_sparse(layout=layout), requires_grad=False)
    model.plain = torch.eye(4).to_sparse(layout=layout)
    copied = make_model(model)
    for name in ("graph", "mask", "plain"):
        mine, theirs = getattr(copied, name), getattr(model, name)
        assert mine is not theirs
        assert type(mine) is type(theirs)
        assert mine.layout is layout
        assert torch.equal(mine.to_dense(), theirs.to_dense())
    assert "graph" in dict(copied.named_buffers())
    assert "mask" in dict(copied.named_parameters())


def test_a_compiled_model_is_its_own_module():
    model = nn.Linear(2, 2)
    wrapper = nn.Module()
    wrapper._orig_mod = model

    assert type(make_model(wrapper)) is nn.Linear


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


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_a_lazy_module_without_weights_is_refused():
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU())
    data = [torch.randn(2, 4)]
    with pytest.raises(ModelError, match=r"^0 is a lazy module without weights yet"):
        check(Evaluation(model=model, data=data, labelled=False))
    model(*data)
    assert check(Evaluation(model=model, data=data, labelled=False)).verdict == "equivalent"


def test_a_model_on_the_meta_device_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3, device="meta"))
    with pytest.raises(ModelError, match=r"^1 lies on the meta device.*load its weights first"):
        check(Evaluation(model=model, data=[torch.randn(2, 4)], labelled=False))


def test_inputs_are_cast_where_the_whole_model_is():
    seen = {}

    class Spy(nn.Module):
        def forward(self, x, ids=None):
            seen["dtypes"] = (x.dtype, None if ids is None else ids.dtype)
            return x

    x, ids = torch.ones(2), torch.ones(2, dtype=torch.long)
    call(Spy(), (x, ids), precision("16-true"), None)
    assert seen["dtypes"] == (torch.float16, torch.int64)
    call(Spy(), {"x": x}, precision("16-mixed"), None)
    assert seen["dtypes"] == (torch.float32, None)
    call(Spy(), [x], precision("32-true"), lambda m, inputs: m(inputs[0], ids=ids))
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
