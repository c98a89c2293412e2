"""What errors say, beside the errors that torch really raises."""

import pytest
import torch
from torch import nn

from pytest_fp16.engine.emulation.refusal import UnsupportedOperation
from pytest_fp16.engine.emulation.wording import (
    FAST_PATH,
    comes_of_values,
    first_line,
    is_missing_kernel,
    lost_its_text,
    mechanism_of,
    mixes_dtypes,
    name_of,
    told,
    variant_of,
)

HALF, WIDE = torch.ones(1, 4, 4).half(), torch.ones(1, 4, 4)
MIXED = {
    "product": lambda: HALF @ WIDE,
    "layer": lambda: nn.Linear(4, 4)(HALF),
    "convolution": lambda: nn.Conv1d(4, 2, 1)(HALF),
    "recurrence": lambda: nn.GRU(4, 4)(HALF),
    "scatter": lambda: HALF.scatter(0, torch.zeros(1, 4, 4).long(), WIDE),
    "lerp": lambda: torch.lerp(HALF, WIDE, 0.5),
    "prelu": lambda: nn.functional.prelu(WIDE, HALF.flatten()[:1]),
    "normalisation": lambda: torch.nn.functional.embedding_bag(
        torch.zeros(1, 4).long(), HALF[0], per_sample_weights=WIDE[:, 0], mode="sum"
    ),
}


def _said(program):
    with pytest.raises(RuntimeError) as error:
        program()
    return told(error.value)


@pytest.mark.parametrize("name", MIXED)
def test_tensors_of_two_dtypes_are_known_by_what_torch_says(name):
    with pytest.raises((RuntimeError, ValueError)) as error:
        MIXED[name]()
    assert mixes_dtypes(str(error.value)), error.value


@pytest.mark.parametrize(
    ("said", "mixed"),
    [
        ("input must have the type torch.float16, got type torch.float32", True),  # torch 2.6
        ("\"linalg_qr\" not implemented for 'Half'", False),
        ("mat1 and mat2 shapes cannot be multiplied (4x4 and 3x3)", False),
        ("value cannot be converted to type at::Half without overflow", False),
    ],
)
def test_other_errors_are_not_taken_for_it(said, mixed):
    assert mixes_dtypes(said) is mixed


@pytest.mark.parametrize(
    ("program", "of_values"),
    [
        (lambda: torch.zeros(2)[torch.tensor([2])], True),
        (lambda: torch.linalg.cholesky(-torch.eye(2)), True),
        (lambda: torch.linalg.cholesky(torch.eye(2).half()), False),
        (lambda: HALF @ WIDE, False),
    ],
)
def test_what_values_stop_is_told_from_what_dtypes_do(program, of_values):
    with pytest.raises((RuntimeError, IndexError)) as error:
        program()
    assert comes_of_values(error.value) is of_values


def test_the_report_names_what_the_target_itself_would_raise():
    refused = UnsupportedOperation("_linalg_svd", "float16", "cuda")
    assert name_of(refused) == "RuntimeError"
    assert name_of(ZeroDivisionError()) == "ZeroDivisionError"


def test_an_error_is_told_by_its_first_line_or_else_by_its_class():
    assert first_line(ValueError("\nwhat\nwhere")) == "what"
    assert first_line(RuntimeError()) == "RuntimeError"
    assert len(first_line(ValueError("x" * 999))) == 200


SCRIPT = (
    "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript\n"
)


def test_an_error_of_a_script_is_told_by_its_last_line():
    assert (
        first_line(RuntimeError(f"{SCRIPT}RuntimeError: not these dtypes\n")) == "not these dtypes"
    )
    assert lost_its_text(RuntimeError(f"{SCRIPT}RuntimeError: \n"))
    assert not lost_its_text(RuntimeError(f"{SCRIPT}RuntimeError: not these dtypes\n"))
    assert not lost_its_text(RuntimeError("RuntimeError: \n"))
    assert not lost_its_text(None)
    assert told(ValueError("what")) == "ValueError: what"
    assert told(AssertionError()) == "AssertionError"
    warned = "UserWarning: slow (a warning, which a filter of pytest's or of -W makes an error)"
    assert told(UserWarning("slow")) == warned


@pytest.mark.parametrize(
    ("said", "mechanism"),
    [
        ("RuntimeError: value cannot be converted to type c10::Half without overflow", "mask-inf"),
        ("RuntimeError: a Tensor with 3 elements cannot be converted to Scalar", "precision-loss"),
        ("RuntimeError: _linalg_slogdet has no float16 kernel on cuda", "unsupported-op"),
        ("NotImplementedError: \"x\" not implemented for 'Half'", "unsupported-op"),
        ("RuntimeError: expected scalar type Half but found Float", "unsupported-op"),
        ("TypeError: Got unsupported ScalarType BFloat16", "unsupported-op"),
        ("RuntimeError: Closure use is not currently supported if GradScaler", "unsupported-op"),
        ("AssertionError: No inf checks were recorded for this optimizer.", "unsupported-op"),
        ("AssertionError: underflow in dt 1e-4", "precision-loss"),
        ("AssertionError: the loss overflows", "precision-loss"),
        (
            "IndexError: index 9 is out of bounds for dimension 0 with size 9",
            "precision-loss",
        ),
        ("ValueError: tensor([0.5], dtype=torch.float16) does not add up to 1", "precision-loss"),
        ("_LinAlgError: the input is not positive-definite", "precision-loss"),
        (
            "ValueError: RNN input dtype (torch.float32) does not match weight dtype",
            "unsupported-op",
        ),
    ],
)
def test_why_a_program_stopped(said, mechanism):
    assert mechanism_of(said) == mechanism


@pytest.mark.parametrize(
    ("said", "variant"),
    [
        ("RuntimeError: expected scalar type Half but found Float", "mixed dtypes"),
        ("RuntimeError: Closure use is not currently supported if GradScaler", "closure"),
        ("AssertionError: No inf checks were recorded for this optimizer.", "no gradient left"),
        ("RuntimeError: binary_cross_entropy is unsafe to autocast", "refused by autocast"),
        (f"RuntimeError: expected scalar type Float but found Half ({FAST_PATH})", "fast path"),
        ("TypeError: Got unsupported ScalarType BFloat16", "not in NumPy"),
        (_said(lambda: torch.ones(3, 1).half().view(torch.int32)), "other bits"),
        ("NotImplementedError: \"x\" not implemented for 'Half'", None),
    ],
)
def test_which_form_a_refusal_takes(said, variant):
    assert variant_of(said) == variant


def test_a_program_that_refuses_a_dtype_lacks_no_kernel():
    def chooses(dtype):
        if dtype is not torch.float32:
            raise RuntimeError("Unsupported dtype for the jitter")

    with pytest.raises(RuntimeError) as raised:
        chooses(torch.float16)
    assert not is_missing_kernel(raised.value)
    with pytest.raises(RuntimeError) as raised:
        torch.linalg.slogdet(torch.eye(2, dtype=torch.float16))
    assert is_missing_kernel(raised.value)


def test_a_primitive_that_cannot_be_made_is_a_missing_kernel():
    said = "could not create a primitive descriptor for the LSTM forward propagation primitive"
    assert is_missing_kernel(RuntimeError(said))
