"""A second device made in Python: its tensors lie in the CPU's memory, but never meet a CPU's.

Whoever mixes the two gets an error, as on CUDA. Runs a few checks there and prints their verdicts;
`test_second_device.py` starts it in a process of its own, since a device cannot be unregistered.
"""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import pytest_fp16.evaluation.run
import pytest_fp16.training.run
from pytest_fp16 import Evaluation, Settings, Training
from pytest_fp16.conformance import examine

NAME = "far"
#: By the storage of the tensor on the device: its values. (Views have storages of their own.)
HELD: dict[int, torch.Tensor] = {}
#: Operations that may take tensors of both, as CUDA's may.
BOTH = {"copy_", "_to_copy", "index", "index_put_", "_index_put_impl_"}
#: They keep the storage, so that what is held stays found.
KEPT = {"detach", "detach_", "alias", "_reshape_alias", "empty_strided", "_to_copy", "copy_"}


def far(values):
    made = torch._C._acc.create_empty_tensor(tuple(values.shape), values.dtype)
    HELD[made.untyped_storage()._cdata] = values
    return made


def near(value, strangers):
    if isinstance(value, torch.Tensor) and value.device.type == NAME:
        return HELD[value.untyped_storage()._cdata]
    if isinstance(value, torch.Tensor):
        strangers += [value] if value.dim() else []
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(near(item, strangers) for item in value)
    away = isinstance(value, torch.device) and value.type == NAME
    return torch.device("cpu") if away else value


def sent(value):
    if isinstance(value, torch.Tensor):
        return far(value)
    return type(value)(map(sent, value)) if isinstance(value, (list, tuple)) else value


def kernel(op, *args, **kwargs):
    """Any operation on the device: on the values it holds."""
    name, arguments = op._schema.name.partition("::")[2], op._schema.arguments
    numbers = [isinstance(a, (int, float)) and str(s.type) == "Tensor"
               for a, s in zip(args, arguments, strict=False)]  # fmt: skip
    args = [torch.tensor(a) if n else a for a, n in zip(args, numbers, strict=True)]
    strangers: list[torch.Tensor] = []
    given = [near(a, strangers) for a in args]
    named = {k: near(v, strangers) for k, v in kwargs.items()}
    if name in ("_copy_from", "_copy_from_and_resize"):
        given[1].copy_(given[0])
        return args[1]
    if strangers and name not in BOTH:
        raise RuntimeError(f"{name}: tensors on {NAME} and on cpu")
    written = [
        a for a, s in zip(args, arguments, strict=False) if s.alias_info and s.alias_info.is_write
    ]
    written += [kwargs[s.name] for s in arguments if s.kwarg_only and s.name in kwargs
                and s.alias_info and s.alias_info.is_write]  # fmt: skip
    reshaped = name == "view" and not isinstance(given[1], torch.dtype)
    out = given[0].reshape(given[1]) if reshaped else op(*given, **named)
    if written and isinstance(out, torch.Tensor):
        return next((w for w in written if HELD.get(w.untyped_storage()._cdata) is out), written[0])
    return out if name == "_local_scalar_dense" else sent(out)


def register():
    """Make the device, with `kernel` for everything."""
    _setup_privateuseone_for_python_backend(NAME)
    every, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(kernel, "PrivateUse1")
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    keys = ("CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
    for name in torch._C._dispatch_get_all_op_names():
        space, _, rest = name.partition("::")
        packet, _, overload = rest.partition(".")
        if space != "aten" or packet in KEPT or not any(has(name, key) for key in keys):
            continue  # these have kernels that come before a fallback, and look into the storage
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        if any("Tensor" in str(a.type) for a in op._schema.arguments):
            aten.impl(rest, lambda *a, op=op, **k: kernel(op, *a, **k), "PrivateUse1")
    return every, aten


class Generator(torch.Generator):
    """A generator of the device's is one of the CPU's."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 32), nn.Linear(32, 5)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, ids):
        x = self.layers(self.embedding(ids), src_key_padding_mask=ids == 0)
        return 5 * self.head(x.mean(1))


class Overflows(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x) * 1e5 / 1e5


def convolves():
    features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), features, nn.Flatten(), nn.Linear(72, 10))


def evaluations():
    x = torch.rand(60, 64)
    ids = torch.randint(1, 50, (60, 9)).index_fill(1, torch.tensor([7, 8]), 0)
    kinds = {"task": "classification"}
    yield Evaluation(model=Attends().eval(), data=[ids], name="attends", **kinds)
    yield Evaluation(model=convolves().eval(), data=[x], name="convolves", **kinds)
    yield Evaluation(model=Overflows().eval(), data=[x], name="overflows", **kinds)
    targets = torch.randn(60, 3)
    yield Evaluation(model=nn.Linear(64, 3).eval(), data=[(x, targets)], name="regression")
    yield Evaluation(model=nn.Linear(64, 16).eval(), data=[x], name="embeds", task="embedding")


def training():
    x, y = torch.randn(400, 64), torch.randint(0, 10, (400,))
    x[torch.arange(400), y] += 3.0
    parts = [(x[i : i + 50], y[i : i + 50]) for i in range(0, 400, 50)]
    return Training(
        model=lambda: nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10)),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
        loss=nn.CrossEntropyLoss(),
        train_data=parts[:6],
        eval_data=parts[6:],
        name="training",
    )


def main():
    libraries = register()
    import torch._dynamo

    torch.Generator = Generator
    for module in (pytest_fp16.evaluation.run, pytest_fp16.training.run):
        module.resolve_device = torch.device
    torch.manual_seed(0)
    assert libraries, "the kernels live as long as these"
    for emulate in ("always", "never"):
        for subject in (*evaluations(), training()):
            settings = Settings(
                precisions=("16-true",), device=f"{NAME}:0", emulate=emulate, seeds=2
            )
            (report,) = examine(subject, settings)
            culprit = report.culprit.mechanism if report.culprit else None
            forecast, method = report.forecast.verdict, report.forecast.method
            print(emulate, report.name, report.verdict, forecast, method, culprit, sep="|")


if __name__ == "__main__":
    sys.exit(main())
