"""An interception sends each operation to the method for its kind, with carriers as arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pytest_fp16.engine.emulation.interception import Carrier, Interception
from pytest_fp16.engine.emulation.operations import AUTOCAST, flat, rebuild


class Plus(Carrier):
    """Carries its values, one larger than the program sees them."""

    def __new__(cls, values: Tensor, dtype: torch.dtype):
        return cls.like(values, dtype)

    def __init__(self, values: Tensor, dtype: torch.dtype):
        self.values, self.reads = values, 0

    def shown(self):
        return self.values - 1

    def was_read(self):
        self.reads += 1


def inner(value):
    if isinstance(value, Plus):
        return value.values
    return [inner(v) for v in value] if isinstance(value, (list, tuple)) else value


class Counted(Interception):
    """Computes on what is carried, and notes which method was asked."""

    def __init__(self):
        super().__init__(None)
        self.seen: list[tuple[str, str]] = []

    def adopt(self, value):
        return Plus(value + 1 if value.is_floating_point() else value, value.dtype)

    def _compute(self, kind, func, args, kwargs):
        self.seen.append((kind, func.overloadpacket.__name__))
        out = func(*inner(args), **{k: inner(v) for k, v in kwargs.items()})
        wrapped = [Plus(o, o.dtype) if isinstance(o, Tensor) else o for o in flat(out)]
        return rebuild(out, iter(wrapped))

    def view(self, func, known, args, kwargs):
        return self._compute("view", func, args, kwargs)

    def reshape(self, func, args, kwargs):
        self.seen.append(("reshape", func.overloadpacket.__name__))
        func(args[0].values, *args[1:], **kwargs)
        return args[0]

    def operate(self, func, known, args, kwargs):
        return self._compute("operate", func, args, kwargs)


def test_each_operation_goes_to_the_method_for_its_kind():
    with torch.no_grad(), Counted() as run:
        x = torch.ones(2, 3)
        y = torch.cat([x.t(), x.view(3, 2)]).exp()
        y.t_()
    kinds = {name: kind for kind, name in run.seen}
    assert kinds["t"] == kinds["view"] == "view"
    assert kinds["cat"] == kinds["exp"] == "operate"
    assert kinds["t_"] == "reshape"


def test_plain_tensors_are_adopted_wherever_they_stand():
    plain, seen = torch.zeros(2), []

    class Watching(Counted):
        def operate(self, func, known, args, kwargs):
            seen.extend(flat([*args, *kwargs.values()]))
            return super().operate(func, known, args, kwargs)

    with torch.no_grad(), Watching():
        total = torch.stack([plain, plain]).sum()
        torch.add(plain, plain, alpha=2)
    assert not [v for v in seen if isinstance(v, Tensor) and not isinstance(v, Plus)]
    assert float(total.values) == 4  # four values of zero, carried as one


class Scaled(torch.Tensor):
    """Whole numbers and a scale, as quantised weights are kept."""

    @staticmethod
    def __new__(cls, numbers, scale):
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype)

    def __init__(self, numbers, scale):
        self.numbers, self.scale = numbers, scale

    def __tensor_flatten__(self):
        return ["numbers", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner, meta, size, stride):
        return Scaled(inner["numbers"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        plain = (a.numbers.to(a.scale.dtype) * a.scale if isinstance(a, cls) else a for a in args)
        return func(*plain, **(kwargs or {}))


def test_a_wrapper_says_what_is_computed_with_carriers():
    weight = Scaled(torch.tensor([2, 4], dtype=torch.int8), torch.tensor(0.5))

    with torch.no_grad(), Counted() as run:
        out = torch.exp(torch.zeros(2)) + weight

    assert isinstance(out, Plus)
    assert run.seen[-1] == ("operate", "add")
    assert ("operate", "mul") in run.seen, "what the wrapper is made of is followed"
    assert out.values.tolist() == [1 + 2 * 1.5, 1 + 4 * 1.5]  # its scale is carried one larger


def test_operations_run_below_autocast_which_has_acted():
    dtypes = []

    class Watching(Counted):
        def operate(self, func, known, args, kwargs):
            dtypes.append((inner(args[0]) @ inner(args[0]).t()).dtype)
            assert torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.AutocastCPU)
            return super().operate(func, known, args, kwargs)

    x = torch.ones(2, 2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Watching():
        torch.exp(x)
    assert dtypes == [torch.float32]
    assert AUTOCAST.has(torch._C.DispatchKey.AutocastCUDA)


def test_a_carrier_has_the_shape_and_dtype_the_program_sees():
    values = torch.arange(6.0).reshape(2, 3).t()
    carrier = Plus(values, torch.float16)
    assert (carrier.shape, carrier.dtype) == (values.shape, torch.float16)
    assert carrier.stride() == values.stride()
    native = carrier.native()
    assert type(native) is Tensor
    assert native.dtype == torch.float16
    assert torch.equal(native, (values - 1).half())


@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support")
@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_coo])
def test_a_carrier_of_sparse_values_has_their_shape(layout):
    carrier = Carrier.like(torch.eye(3, 4).to_sparse(layout=layout), torch.float16)
    assert carrier.shape == (3, 4)
    assert carrier.dtype is torch.float16


def test_what_the_program_reads_on_the_host_is_what_it_sees_and_is_told():
    carrier = Plus(torch.tensor([1.0, 2.0 + 2**-13]), torch.float16)
    with Counted():
        assert carrier.tolist() == [0.0, 1.0]  # in float16, and not among the operations
        assert carrier.numpy().dtype == "float16"
    assert carrier.reads == 2


def test_after_its_run_a_carrier_says_so():
    carrier = Plus(torch.ones(2), torch.float16)
    with pytest.raises(RuntimeError, match="called on a Plus after its run had ended"):
        torch.exp(carrier)
