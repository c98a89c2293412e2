import pytest
import torch
from torch import nn

from pytest_fp16.errors import FP16Error, PrecisionError, SettingError
from pytest_fp16.precision import ALIASES, PRECISIONS, canonical_name, mixes_dtypes, precision


@pytest.mark.parametrize(
    ("name", "dtype", "mixed"),
    [
        ("32-true", torch.float32, False),
        ("16-true", torch.float16, False),
        ("16-mixed", torch.float16, True),
        ("bf16-true", torch.bfloat16, False),
        ("bf16-mixed", torch.bfloat16, True),
    ],
)
def test_a_precision_is_a_format_and_who_brings_it(name, dtype, mixed):
    found = precision(name)

    assert (found.name, found.dtype, found.mixed) == (name, dtype, mixed)


def test_aliases_are_accelerates():
    assert {a: canonical_name(a) for a in ALIASES} == {
        "no": "32-true",
        "fp16": "16-mixed",
        "bf16": "bf16-mixed",
    }
    assert canonical_name(" 16-true ") == "16-true"


@pytest.mark.parametrize("name", ["16", 16])
def test_a_bare_16_is_refused_with_the_choice(name):
    with pytest.raises(PrecisionError, match="ambiguous; write '16-true' or '16-mixed'"):
        canonical_name(name)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(PrecisionError, match="unknown precision 'fp8'") as error:
        canonical_name("fp8")

    assert all(name in str(error.value) for name in (*PRECISIONS, *ALIASES))
    assert isinstance(error.value, (FP16Error, SettingError, ValueError))


HALF, WIDE = torch.ones(1, 4, 4).half(), torch.ones(1, 4, 4)
MIXED = {
    "product": lambda: HALF @ WIDE,
    "layer": lambda: nn.Linear(4, 4)(HALF),
    "convolution": lambda: nn.Conv1d(4, 2, 1)(HALF),
    "recurrence": lambda: nn.GRU(4, 4)(HALF),
    "scatter": lambda: HALF.scatter(0, torch.zeros(1, 4, 4).long(), WIDE),
    "lerp": lambda: torch.lerp(HALF, WIDE, 0.5),
    "normalisation": lambda: torch.nn.functional.embedding_bag(
        torch.zeros(1, 4).long(), HALF[0], per_sample_weights=WIDE[:, 0], mode="sum"
    ),
}


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
