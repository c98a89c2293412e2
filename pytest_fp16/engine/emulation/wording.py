"""What errors of torch say, recognised by their words: torch has few classes for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_fp16.engine.source import raised_by_program

if TYPE_CHECKING:
    from pytest_fp16.report.model import Mechanism, Variant

_MISSING_KERNEL = (
    "not implemented for '",
    "Low precision dtypes not supported",
    "Unsupported dtype",
    "FFT doesn't support tensors of type",
    "when computing in half precision",  # cuFFT's, of sizes that are no powers of two
    "could not create a primitive",  # oneDNN's, which a CPU without float16 arithmetic lacks
)

#: Classes of errors, and words in them, by which torch refuses a dtype.
_REFUSALS = ("RuntimeError", "NotImplementedError", "TypeError")
_OF_DTYPES = ("dtype", "scalar type", "ScalarType", "Half", "BFloat16", "kernel", "autocast")

_DTYPE_TROUBLE = ("dtype", "scalar type", "Half", "BFloat16", "cannot be converted", "kernel")
#: Words of ATen where a number is too large for a dtype; "converted to Scalar" counts elements.
_BEYOND_RANGE = "value cannot be converted"
#: Words of ATen where a kernel reads the memory of a carrier, which has none: not the program's.
_OF_A_CARRIER = "data is not allocated yet"
#: Words before the traceback of TorchScript's own code.
_OF_A_SCRIPT = "failed in the TorchScript interpreter"
#: Words of ATen where an index leaves its table: one that was computed, and rounded.
_INDEX_TROUBLE = ("out of range in self", "out of bounds")
#: ATen's words where the bits of numbers are read as another dtype's, of another size.
_BITS = "(different element sizes)"
#: Words of an error that tensors of different dtypes met in an operation that no device promotes.
_MIXED_DTYPES = (
    "same dtype", "same data type", "same scalar type", "the same type", "dtypes match",
    "expected scalar type", "expected dtype", "not match weight dtype", "dtype to be equal",
    "and weight type", "and bias type", "different dtypes", "input must have the type torch.",
    "Type promoting not supported",
)  # fmt: skip
#: Autograd's words where nothing was recorded.
_NO_GRADIENT = ("does not require grad", "appears to not have been used in the graph")
#: A scaler's words where gradients are gone before the optimizer's own step.
_NOTHING_TO_SCALE = "No inf checks were recorded"
#: Words where a tensor is handed to NumPy, which has no bfloat16.
_NOT_IN_NUMPY = "Got unsupported ScalarType"
#: Autocast's words where a loss would be unsafe in 16 bits.
_UNSAFE = "unsafe to autocast"
#: Behind what torch says that stops in its fast path, which nothing in it tells.
FAST_PATH = "in torch's fast path of nn.TransformerEncoder"


def name_of(error: BaseException) -> str:
    """The class of an exception, as the target itself would raise it."""
    return getattr(error, "told_as", type(error).__name__)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, cut to a sensible length; its class if it has none.

    Of one from TorchScript it is the last, before which it tells where it was.
    """
    lines = str(error).strip().splitlines()
    if not lines:
        return name_of(error)
    if _OF_A_SCRIPT in lines[0]:
        lines = [lines[-1].removeprefix("RuntimeError: ")]
    return lines[0].split(" and mode <")[0][:200]  # torch goes on with the address of our mode


def lost_its_text(error: BaseException | None) -> bool:
    """Whether TorchScript raised it in place of an error of Python's, whose text it leaves out."""
    text = str(error)
    return _OF_A_SCRIPT in text and text.strip().endswith("Error:")


def told(error: BaseException) -> str:
    """An exception in one line: its class, its text if it has one, and whether it is a warning."""
    name, line = name_of(error), first_line(error)
    said = name if line == name else f"{name}: {line}"
    warned = " (a warning, which a filter of pytest's or of -W makes an error)"
    return said + warned * isinstance(error, Warning)


def misses_a_gradient(error: BaseException) -> bool:
    """Whether a program has asked for a gradient where none is recorded."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_GRADIENT)


def is_missing_kernel(error: BaseException) -> bool:
    """Whether an error of ATen says that an operation has no kernel for a dtype."""
    says = any(words in str(error) for words in _MISSING_KERNEL)
    refuses = isinstance(error, (RuntimeError, NotImplementedError)) and says
    return refuses and not raised_by_program(error)  # whose words may be the same


def stops_the_program(error: BaseException) -> bool:
    """Whether what a trace met would stop the 16-bit program too, rather than the trace alone."""
    return is_trouble_with_dtypes(error) or raised_by_program(error)


def comes_of_values(error: BaseException) -> bool:
    """Whether a program that runs on other values stopped for those it met: an index, a matrix."""
    if _leaves_its_table(error):
        return True
    ours = isinstance(error, NotImplementedError) or stops_the_program(error)
    return isinstance(error, RuntimeError) and not ours and _OF_A_CARRIER not in str(error)


def _leaves_its_table(error: BaseException) -> bool:
    says = any(words in str(error) for words in _INDEX_TROUBLE)  # gather raises RuntimeError
    return isinstance(error, (IndexError, RuntimeError)) and says


def is_trouble_with_dtypes(error: BaseException) -> bool:
    """Whether a 16-bit program stopped because of its dtypes, as the native one would."""
    if _OF_A_CARRIER in str(error):
        return False
    if isinstance(error, IndexError) or _leaves_its_table(error):
        return _leaves_its_table(error)
    return is_missing_kernel(error) or (
        isinstance(error, (RuntimeError, TypeError, ValueError, NotImplementedError))
        and any(word in str(error) for word in _DTYPE_TROUBLE)
    )


def mechanism_of(said: str) -> Mechanism:
    """Why a 16-bit program stopped, from an error as `told` says it.

    What the device refuses says so. Anything else (a check of the program's own, an index outside
    of its table, a matrix that is not positive definite) comes of values that were rounded.
    """
    if _BEYOND_RANGE in said:
        return "mask-inf"
    refused = said.startswith(_REFUSALS) and any(words in said for words in _OF_DTYPES)
    refused = refused or refuses_closure(said) or mixes_dtypes(said)
    refused = refused or finds_nothing_to_scale(said) or is_missing_kernel(RuntimeError(said))
    return "unsupported-op" if refused else "precision-loss"


def variant_of(said: str) -> Variant | None:
    """Which form of its mechanism a refusal is, from an error as `told` says it; None for none."""
    if FAST_PATH in said:
        return "fast path"
    if mixes_dtypes(said):
        return "mixed dtypes"
    if refuses_closure(said):
        return "closure"
    if finds_nothing_to_scale(said):
        return "no gradient left"
    if _NOT_IN_NUMPY in said:
        return "not in NumPy"
    if _BITS in said:
        return "other bits"
    return "refused by autocast" if _UNSAFE in said else None


def variant_where(said: str, operation: str) -> Variant | None:
    """The same of a training, where no operation has raised what a statement of the program did."""
    own = not operation and mechanism_of(said) == "precision-loss"
    return variant_of(said) or ("own statement" if own else None)


def mixes_dtypes(said: str) -> bool:
    """Whether an error says that tensors of different dtypes met where none is promoted."""
    return any(words in said for words in _MIXED_DTYPES)


def of_the_step(said: str) -> bool:
    """Whether an error is of how a scaler and an optimizer step, wherever it was raised."""
    return refuses_closure(said) or finds_nothing_to_scale(said)


def refuses_closure(said: str) -> bool:
    """Whether an error is torch's refusal to scale an optimizer that evaluates the loss itself."""
    return "Closure use is not currently supported" in said


def finds_nothing_to_scale(said: str) -> bool:
    """Whether an error is a gradient scaler's that found no gradient: a hook has stepped."""
    return _NOTHING_TO_SCALE in said
