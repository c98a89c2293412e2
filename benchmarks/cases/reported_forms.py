"""Held-out models handed over in odd forms, or that meet the world outside tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import Built, built, fitted, healthy, planted


class Plain(nn.Module):
    """A perceptron on pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.gelu(self.first(x.flatten(1))))


@healthy()
def traced_graph() -> Built:
    """A graph of torch.fx, as quantizers and compilers hand it on."""
    train, test = data.digits()
    return built(symbolic_trace(fitted(Plain, train).eval()), test)


class Ranks(nn.Module):
    """The order of features, found by NumPy."""

    def forward(self, x: Tensor) -> Tensor:
        order = np.argsort(np.argsort(x.detach().cpu().numpy(), axis=1), axis=1)
        return torch.from_numpy(order).to(x.device, x.dtype) / x.shape[1]


class Ranked(nn.Module):
    """Features, their ranks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.rank, self.head = nn.Linear(64, 32), Ranks(), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rank(self.body(x.flatten(1))))


@planted(
    "unsupported-op", "rank", "numpy detach _to_copy", fails=("bf16-true", "bf16-mixed"),
    family="kernel",
)  # fmt: skip
def through_numpy() -> Built:
    """pytorch#90574: NumPy has no bfloat16."""
    train, test = data.digits()
    return built(fitted(Ranked, train), test)


class Padded(nn.Module):
    """A stock encoder, which takes its fast path where texts are padded."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
        self.embed, self.encoder = nn.Embedding(1200, 32), nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 8)

    def forward(self, ids: Tensor) -> Tensor:
        gone = ids == 0
        gone[:, 0] = False
        x = self.encoder(self.embed(ids), src_key_padding_mask=gone)
        x = x.masked_fill(gone[:, : x.shape[1], None], 0)
        return self.head(x.sum(1) / (~gone).sum(1, keepdim=True).to(x.dtype))


@healthy()
def encoder_by_its_fast_path() -> Built:
    """pytorch's encoder layers in evaluation: nested tensors and a fused kernel."""
    (ids, y), (u, v) = data.text_split()
    return built(fitted(Padded, (ids[:1500], y[:1500]), epochs=6), (u[:300], v[:300]), 100)


class Observed(nn.Module):
    """Eight-bit activations whose range is an average over what was seen, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("top", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.top.copy_(
                torch.where(self.top == 0, x.abs().max(), self.top * 0.9 + x.abs().max() * 0.1)
            )
        scale = self.top.to(x.dtype) / 127
        return x + ((x / scale).round().clamp(-127, 127) * scale - x).detach()


class Observing(nn.Module):
    """A perceptron with observed activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.fake, self.second = nn.Linear(64, 48), Observed(), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.fake(self.first(x.flatten(1)).relu()))


@healthy()
def observer_left_on() -> Built:
    """torch.ao: an observer that nobody switched off changes its buffer at every batch."""
    train, test = data.digits()
    return built(fitted(Observing, train), test)


class Hooked(Plain):
    """A perceptron whose hooks do a part of the work."""

    def __init__(self) -> None:
        super().__init__()
        self.first.register_forward_hook(lambda m, i, out: out - out.mean(-1, keepdim=True))
        self.second.register_forward_pre_hook(
            lambda m, i: (i[0] / (i[0].std(-1, keepdim=True) + 1e-3),)
        )


@healthy()
def hooks_that_compute() -> Built:
    """Forward hooks that change what passes, as steering and pruning libraries use them."""
    train, test = data.digits()
    return built(fitted(Hooked, train), test)


class Doubled(nn.Module):
    """A logarithm of a sum of exponentials of large numbers, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x.flatten(1) * 8).double() * 3
        return (z - z.exp().sum(-1, keepdim=True).log()).to(x.dtype)


@healthy()
def island_of_doubles() -> Built:
    """A part in float64 inside a model of 16 bits."""
    train, test = data.digits()
    return built(fitted(Doubled, train), test)


class Int8(torch.Tensor):
    """A weight of eight bits that says it is a floating one, as torchao's are."""

    number: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls: type[Int8], number: Tensor, scale: Tensor) -> Int8:
        """A wrapper; the memory is that of the two tensors."""
        keywords = {"dtype": scale.dtype, "device": number.device}
        return torch.Tensor._make_wrapper_subclass(cls, number.shape, **keywords)

    def __init__(self, number: Tensor, scale: Tensor) -> None:
        self.number, self.scale = number, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """The tensors within."""
        return ["number", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], *_: object) -> Int8:
        """The wrapper around them again."""
        return cls(**inner)

    def plain(self) -> Tensor:
        """The floating weight."""
        return self.number.to(self.scale.dtype) * self.scale

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """A linear layer scales what the integers gave."""
        if func is F.linear:
            x, weight, *bias = args
            out = F.linear(x, weight.number.to(x.dtype)) * weight.scale[:, 0]
            return out + bias[0] if bias and bias[0] is not None else out
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Casts and copies act on what is within; all else on the floating weight."""
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if name in ("detach", "clone", "alias"):
            return cls(func(args[0].number), func(args[0].scale))
        if name == "_to_copy":
            rest = {k: v for k, v in kwargs.items() if k != "dtype"}
            return cls(func(args[0].number, **rest), func(args[0].scale, **kwargs))
        args = tuple(a.plain() if isinstance(a, cls) else a for a in args)
        return func(*args, **kwargs)


@healthy()
def weights_of_a_subclass() -> Built:
    """torchao: quantised weights are parameters of a class of their own."""
    train, test = data.digits()
    model = fitted(Plain, train)
    for layer in (model.first, model.second):
        weight = layer.weight.detach()
        scale = weight.abs().amax(1, keepdim=True) / 127
        quantised = Int8((weight / scale).round().to(torch.int8), scale)
        layer.weight = nn.Parameter(quantised, requires_grad=False)
    return built(model, test)


class Ensemble(nn.Module):
    """Four perceptrons as one: parameters stacked, the function mapped over them."""

    def __init__(self) -> None:
        super().__init__()
        nets = [nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)) for _ in range(4)]
        stacked, _ = torch.func.stack_module_state(nets)
        self.names = list(stacked)
        self.stacked = nn.ParameterList(stacked[n].detach() for n in self.names)
        self.skeleton = [nets[0].to("meta")]  # in a list: its weights are not the ensemble's

    def forward(self, x: Tensor) -> Tensor:
        def one(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(self.skeleton[0], weights, (x,))

        weights = dict(zip(self.names, self.stacked, strict=True))
        return torch.func.vmap(one, (0, None))(weights, x.flatten(1)).mean(0)


@healthy()
def ensemble_by_vmap() -> Built:
    """torch.func's recipe for ensembles."""
    train, test = data.digits()
    return built(fitted(Ensemble, train), test)
