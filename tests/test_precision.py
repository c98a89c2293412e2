import pytest
import torch

from pytest_fp16 import Evaluation, check
from pytest_fp16.errors import FP16Error, PrecisionError, SettingError
from pytest_fp16.precision import ALIASES, PRECISIONS, canonical_name, precision


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
    assert found.low == (dtype != torch.float32)
    assert found.casts == (found.low and name.endswith("true"))


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


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("half", "'16-true' or '16-mixed'"),
        ("float16", "'16-true' or '16-mixed'"),
        (torch.float16, "'16-true' or '16-mixed'"),
        (torch.bfloat16, "'bf16-true' or 'bf16-mixed'"),
        ("float32", "'32-true'"),
        ("16-ture", "'16-true'"),
        ("bf16_mixed", "'bf16-mixed'"),
    ],
)
def test_another_name_of_a_format_is_answered_with_ours(name, meant):
    with pytest.raises(PrecisionError, match=f"did you mean {meant}\\? known are 32-true"):
        canonical_name(name)


def test_what_is_near_no_name_gets_no_guess():
    with pytest.raises(PrecisionError, match="unknown precision 'exact'; known are"):
        canonical_name("exact")


@pytest.mark.parametrize("names", [["16-true", "bf16-true"], ("16-true",)])
def test_several_names_are_for_examine(names):
    with pytest.raises(PrecisionError, match=r"one name \(got .*16-true.*examine\(subj"):
        canonical_name(names)
    with pytest.raises(PrecisionError, match="one name"):
        check(Evaluation(model=torch.nn.Linear(2, 2), data=[torch.ones(3, 2)]), precision=names)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(PrecisionError, match="unknown precision 'fp8'") as error:
        canonical_name("fp8")

    assert all(name in str(error.value) for name in (*PRECISIONS, *ALIASES))
    assert isinstance(error.value, (FP16Error, SettingError, ValueError))
