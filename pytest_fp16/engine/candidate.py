"""One model at one precision: its own copy, and how a batch goes through it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_fp16.engine.copies import make_model, own_model
from pytest_fp16.engine.emulation.cast_cache import nothing_kept
from pytest_fp16.engine.emulation.emulate import Emulation
from pytest_fp16.engine.emulation.operations import LOW, facts, flat, tensors
from pytest_fp16.engine.emulation.regions import LeftOff
from pytest_fp16.engine.fast_path import with_zero_padding
from pytest_fp16.engine.fast_path_refusal import with_refusal
from pytest_fp16.engine.models import (
    Location,
    autocast,
    call,
    prepare,
    quiet,
)
from pytest_fp16.engine.outputs import Others, main_output, others
from pytest_fp16.engine.own_randomness import put_back
from pytest_fp16.engine.randomness import seed_everything
from pytest_fp16.engine.stored import BeforeCast, Stored
from pytest_fp16.engine.uncompiled import FollowingMode
from pytest_fp16.engine.untouched import Habits
from pytest_fp16.engine.use import ignores
from pytest_fp16.errors import ModelError
from pytest_fp16.precision import Precision
from pytest_fp16.subject import Evaluation
from pytest_fp16.theory.rounding import FORMATS

_MAKER_SEED = 20230510


def fresh_model(
    source: Any, like: nn.Module | None = None, weights: nn.Module | None = None
) -> nn.Module:
    """A model of our own, with the weights of `like` where a function makes a new one each time.

    Args:
        source: the user's module, or function.
        like: one that it made.
        weights: see `make_model`.

    Raises:
        ModelError: see `make_model`.
    """
    if like is not None and not isinstance(source, nn.Module):
        try:
            return make_model(like, weights)
        except ModelError:
            return called_model(source, like)
    seed_everything(_MAKER_SEED)
    return make_model(source, weights) if isinstance(source, nn.Module) else own_model(source)


def called_model(source: Any, like: nn.Module) -> nn.Module:
    """What the user's function makes, with the weights of another that it made.

    Raises:
        ModelError: see `make_model`; or they do not fit.
    """
    seed_everything(_MAKER_SEED)
    made = make_model(source)
    try:
        made.load_state_dict(like.state_dict())
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise ModelError(f"model= makes another module each time: {said}") from None
    return made


class Candidate:
    """A model of our own in one precision, ready to run batches.

    Args:
        model: a fresh model, still in float32; it is cast and kept.
        precision: how it runs.
        subject: how it is called.
        device: where.
        target: whose autocast policy and kernels an emulated run follows.

    Attributes:
        stored: what it stores in 16 bits, where it was cast.
        habits: what the model does to itself.
        beside: what was returned beside the predictions of the batch that ran last.
    """

    def __init__(
        self,
        model: nn.Module,
        precision: Precision,
        subject: Evaluation,
        device: torch.device,
        target: str,
    ) -> None:
        self.precision = precision
        self.subject = subject
        self.device = device
        self.target = target
        before = BeforeCast(model, FORMATS[precision.dtype]) if precision.casts else None
        self.model = prepare(model, precision, device)
        with_zero_padding(self.model, not precision.mixed)  # autocast switches it off
        with_refusal(self.model, precision, target)  # but not a CPU's
        self.stored: list[Stored] = before.cast(self.model) if before is not None else []
        put_back(self.model, subject.forward)
        self.habits = Habits()
        self.beside = Others()
        self.own_autocast = False  # the model enters one, which was left off
        self.keeps_casts = True  # as autocast does of its weights, if not told otherwise
        self._where: Location | None = None

    @property
    def where(self) -> Location:
        """The module that is running. One for all who ask: every pass runs the hooks of each."""
        if self._where is None or not self._where.attached:
            self._where = Location(self.model)
        return self._where

    @contextmanager
    def region(self) -> Iterator[Any]:
        """The context the model runs in; see `autocast`."""
        kept = nullcontext() if self.keeps_casts else nothing_kept()
        with kept, autocast(self.precision, self.device, self.target) as regions:
            yield regions

    def outputs(
        self,
        inputs: Any,
        seed: int,
        *,
        emulated: bool = False,
        kernels: str | None = None,
        opaque: str = "native",
        observer: TorchDispatchMode | None = None,
    ) -> Tensor:
        """The predictions for one batch, as float32.

        Args:
            inputs: a batch on the device, floating tensors in float32.
            seed: the random state every precision's run of this batch starts from.
            emulated: run emulated rather than in the device's own kernels.
            kernels: whose, where it is emulated and not the target's are meant.
            opaque: how emulation treats kernels from outside ATen, see `Emulation`.
            observer: a mode that sees the operations of the program, such as a `DtypeObserver`.
        """
        seed_everything(seed)
        emulation = (
            Emulation(kernels or self.target, opaque, self.precision.mixed)
            if emulated
            else nullcontext()
        )
        with torch.no_grad(), quiet(), self.region() as regions:
            with emulation, observer or nullcontext():
                output = call(self.model, inputs, self.precision, self.subject)
            self.own_autocast |= isinstance(regions, LeftOff) and regions.any
            predictions = main_output(output)
            self.beside = others(output, predictions)
            return predictions.detach().to(torch.float32)

    def ignored(self, inputs: Any, seed: int) -> bool:
        """Whether `forward` of the subject comes to its end without this model."""

        def run(given: Any) -> None:
            seed_everything(seed)
            with torch.no_grad(), quiet(), self.region():
                call(given, inputs, self.precision, self.subject)

        return ignores(self.model, run)


class DtypeObserver(FollowingMode):
    """Records which operations gave 16-bit and which float32 results, and where.

    Args:
        where: tells the module that is running.

    Attributes:
        dtypes: operations by the dtype of their floating results.
        float32_modules: modules some of whose operations gave float32 results.
        opaque: kernels from outside ATen that ran on 16-bit tensors.
        read: some operation read a 16-bit tensor, if only to cast it to float32.
    """

    def __init__(self, where: Location) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.where = where
        self.dtypes: Counter[str] = Counter()
        self.float32_modules: dict[str, None] = {}
        self.opaque: set[str] = set()
        self.read = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.read = self.read or any(t.dtype in LOW for t in tensors(args, kwargs or {}))
        out = func(*args, **(kwargs or {}))
        known = facts(func)
        if known.view or known.exact:
            return out
        floating = [t for t in flat(out) if isinstance(t, Tensor) and t.is_floating_point()]
        # Beside a 16-bit result, float32 ones are its statistics: a layer norm's mean.
        statistics = any(t.dtype in LOW for t in floating)
        for item in floating:
            name = str(item.dtype).removeprefix("torch.")
            self.dtypes[name] += 1
            if name == "float32" and not statistics:
                self.float32_modules.setdefault(self.where())
            elif item.dtype in LOW and known.opaque:
                self.opaque.add(known.name)
        return out
