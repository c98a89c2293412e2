"""Where a check runs, and what its settings mean there."""

import pytest
import torch

from pytest_fp16.engine.device import effective_target, is_out_of_memory, resolve_device, run_mode
from pytest_fp16.errors import DeviceError
from pytest_fp16.settings import Settings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_the_device_is_cuda_where_there_is_one():
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == wanted
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gpu", "unknown device 'gpu'"),
        ("meta", "not supported"),
        ("cuda:99", r"is not there: this machine has \d+ CUDA"),
    ],
)
def test_what_is_no_device_here_says_what_is(name, said):
    with pytest.raises(DeviceError, match=said) as caught:
        resolve_device(name)
    assert "cpu" in str(caught.value)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is one")
def test_mps_where_there_is_none():
    with pytest.raises(DeviceError, match="'mps' is not there"):
        resolve_device("mps")


@pytest.mark.parametrize(
    ("emulate", "on_cpu", "on_cuda"),
    [
        ("auto", "emulated", "native"),
        ("always", "emulated", "emulated"),
        ("never", "native", "native"),
    ],
)
def test_who_is_emulated(emulate, on_cpu, on_cuda):
    settings = Settings().with_(emulate=emulate)
    assert (run_mode(settings, CPU), run_mode(settings, CUDA)) == (on_cpu, on_cuda)


def test_a_native_run_speaks_for_its_own_device():
    settings = Settings().with_(target="cuda")
    assert effective_target(settings, CPU, "native") == "cpu"
    assert effective_target(settings, CPU, "emulated") == "cuda"
    assert effective_target(Settings().with_(target="cpu"), CUDA, "emulated") == "cpu"


@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),  # not an allocator's
    ],
)
def test_a_lack_of_memory_is_known_by_its_words(error, is_so):
    assert is_out_of_memory(error) is is_so
