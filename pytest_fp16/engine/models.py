"""A model in a precision, how it is called, and the proof of what dtypes it really used."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pytest_fp16.engine.batching import cast_inputs, cast_module, copied
from pytest_fp16.engine.emulation.autocast import own_regions, target_autocast
from pytest_fp16.engine.emulation.branches import branches_as_python
from pytest_fp16.engine.emulation.operations import LOW
from pytest_fp16.engine.emulation.regions import regions_off
from pytest_fp16.engine.outputs import main_output
from pytest_fp16.engine.own_caches import without_caches
from pytest_fp16.engine.own_randomness import as_before
from pytest_fp16.engine.source import entrance
from pytest_fp16.errors import ModelError
from pytest_fp16.precision import Precision
from pytest_fp16.subject import Evaluation, Training


def complex_tensors(model: nn.Module) -> list[str]:
    """Names of the complex parameters and buffers, which stay complex in a 16-bit model."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, value in tensors if value.is_complex()]


def require_float32(model: nn.Module) -> None:
    """Refuse a model that cannot be a 32-bit reference.

    Raises:
        ModelError: parameters in 16 bits already, all in float64, on no device, quantised, or
            frozen in a graph.
    """
    _require_castable(model)
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if dtypes == {torch.float64}:  # which autocast does not touch: nothing would be compared
        raise ModelError(
            "the model is in float64; pass it in float32, as model.float() makes it, and its "
            "inputs likewise"
        )
    low = [n for n, p in model.named_parameters() if p.dtype in LOW]
    if low:
        raise ModelError(
            f"the model is in 16 bits already ({low[0]} is {model.get_parameter(low[0]).dtype}, "
            f"{len(low)} such); pass the float32 model, the check makes its own 16-bit copies"
        )


def _require_castable(model: nn.Module) -> None:
    """Refuse what no precision can cast."""
    for name, module in model.named_modules():
        what = name or "the model itself"
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if any(tensor.is_meta for tensor in own):
            raise ModelError(
                f"{what} lies on the meta device, where there are no values; load its weights first"
            )
        if isinstance(module, torch.jit.ScriptModule) and not hasattr(module, "training"):
            raise ModelError(
                f"{what} is frozen TorchScript, whose weights are constants that cannot be cast; "
                "pass the module as it was before torch.jit.freeze"
            )
    quantised = next((n for n, v in model.state_dict().items() if _is_quantised(v)), None)
    if quantised is not None:
        raise ModelError(
            f"the model is quantised already ({quantised} holds integers); pass the float32 model "
            "it was made from"
        )


def _is_quantised(value: Any) -> bool:
    """Whether a part of a state is, or packs, a tensor of integers with a scale."""
    if isinstance(value, Tensor):
        return value.is_quantized
    return isinstance(value, (tuple, list)) and any(map(_is_quantised, value))


def has_modes(model: Any) -> bool:
    """Whether a model can be set to evaluate: an exported program cannot, it is as it was traced.

    torch puts methods that refuse in the place of its own; a copy of the program is without them.
    """
    return not isinstance(model, nn.Module) or "eval" not in vars(model)


def evaluating(model: nn.Module) -> nn.Module:
    """The model itself, in eval mode where it has one."""
    return model.eval() if has_modes(model) else model


def prepare(model: nn.Module, precision: Precision, device: torch.device) -> nn.Module:
    """Move and, for a "true" precision, cast a model of our own; in eval mode.

    Autocast keeps the cast of a weight that may get a gradient, so there its weights still may.
    """
    named = model.named_parameters() if precision.mixed else ()
    trained = {name for name, parameter in named if parameter.requires_grad}
    with torch.no_grad():  # a traced module's parameters would get a history
        _without_gradient(model)
        model = evaluating(model.to(device))
        if precision.casts:
            model = cast_module(model, precision.dtype)
    _without_gradient(model)
    for name, parameter in model.named_parameters():
        if name in trained:
            parameter.requires_grad_()
    return model


def _without_gradient(model: nn.Module) -> None:
    """A copy of a scripted module, or its cast, leaves parameters that are no leaves: torch warns
    of those when it casts them."""
    for parameter in model.parameters():
        if parameter.is_leaf:
            parameter.requires_grad_(False)
        else:
            parameter.detach_()


def autocast(precision: Precision, device: torch.device, target: str) -> Any:
    """The context a model of that precision runs in; float32's tells of the model's own regions."""
    if precision.mixed:
        return target_autocast(device.type, precision.dtype, target)
    if precision.low:
        return own_regions(device.type, target)
    return regions_off()


def call(
    model: nn.Module,
    inputs: Any,
    precision: Precision,
    subject: Evaluation | Training,
) -> Any:
    """The subject's outputs on a copy of the inputs, cast first where the whole model is."""
    inputs = copied(inputs)
    if precision.casts:
        inputs = cast_inputs(inputs, precision.dtype, subject.keep_inputs)
    return call_as_is(model, inputs, subject.forward)


def taking_gradients(forward: Callable[[Any, Any], Any] | None) -> Callable[[Any, Any], Any]:
    """`forward` for a model that differentiates on its own, such as forces from an energy."""

    def run(model: nn.Module, inputs: Any) -> Any:
        with torch.enable_grad():
            return call_as_is(model, inputs, forward)

    return run


@entrance
def call_as_is(model: nn.Module, inputs: Any, forward: Callable[[Any, Any], Any] | None) -> Any:
    """The model's outputs on inputs that need no cast."""
    __tracebackhide__ = True
    with as_before(model), without_caches(), branches_as_python():
        if forward is not None:
            return forward(model, inputs)
        if isinstance(inputs, Mapping):
            return model(**inputs)
        if isinstance(inputs, (list, tuple)) and not isinstance(inputs, PackedSequence):
            return model(*inputs)
        return model(inputs)


def applied_loss(loss: Any, outputs: Any, targets: Any) -> Any:
    """`loss` of what the model returned; of the predictions in it where the loss takes a tensor."""
    try:
        return loss(outputs, targets)
    except (TypeError, AttributeError):
        if isinstance(outputs, Tensor):
            raise
        try:
            predictions = main_output(outputs)
        except ModelError:
            predictions = None
        if predictions is None:
            raise
    return loss(predictions, targets)


class Location:
    """The qualified name of the module that is running, kept by hooks on a model of our own."""

    def __init__(self, model: nn.Module) -> None:
        self.stack: list[str] = []
        self._root: Any = None
        for name, module in model.named_modules():
            # By the class: a scripted module refuses hooks by its own name, and runs them where it
            # is called from Python (what it holds runs under its name).
            handle = nn.Module.register_forward_pre_hook(module, self._enter(name))
            self._root = self._root or handle
            nn.Module.register_forward_hook(module, self._leave, always_call=True)

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            self.stack.append(name)

        return hook

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.stack:
            self.stack.pop()

    def __call__(self) -> str:
        """The qualified name, empty at the root and outside the model."""
        return self.stack[-1] if self.stack else ""

    @property
    def attached(self) -> bool:
        """Whether the model still has the hooks: giving a model back what it kept removes them."""
        return self._root.id in (self._root.hooks_dict_ref() or ())

    def reset(self) -> None:
        """Forget where a run that was cut short had been."""
        self.stack.clear()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings of torch about what is done to it on purpose (a user's own still show)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ComplexHalf support is experimental.*")
        warnings.filterwarnings("ignore", message=".*CUDA is not available.*")
        yield


def parameter_dtypes(model: nn.Module) -> Counter[str]:
    """How many floating parameters and buffers there are of each dtype."""
    tensors = [*model.parameters(), *model.buffers()]
    return Counter(str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point())
