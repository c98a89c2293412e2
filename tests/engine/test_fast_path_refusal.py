"""What torch's fast path refuses under autocast on a CPU, held against torch's own."""

import pytest
import torch
from torch import nn

from pytest_fp16 import Settings, Training
from pytest_fp16.conformance import examine
from pytest_fp16.engine.fast_path import fast_path_off, without_fast_path
from pytest_fp16.engine.fast_path_refusal import refusal, with_refusal
from pytest_fp16.precision import PRECISIONS
from tests.engine.test_fast_path import CALLS, RIGHT, X, encoder

pytestmark = pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype")
DTYPES = [torch.float16, torch.bfloat16]


def mixed(dtype):
    return PRECISIONS["16-mixed" if dtype is torch.float16 else "bf16-mixed"]


def stops(net, dtype, **call):
    """What it raises under autocast; None where it runs."""
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype):
            net(X, **call)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("switched", ["", "off by the user", "off for the encoder", "training"])
def test_it_stops_where_torch_does(call, dtype, switched):
    mha = torch.backends.mha
    net = encoder(enable_nested_tensor=switched != "off for the encoder")
    net.train(switched == "training")
    try:
        mha.set_fastpath_enabled(switched != "off by the user")
        wanted = stops(net, dtype, **CALLS[call])
        with fast_path_off():
            assert stops(net, dtype, **CALLS[call]) is None
            with_refusal(net, mixed(dtype), "cpu")
            found = stops(net, dtype, **CALLS[call])
    finally:
        mha.set_fastpath_enabled(True)
    if wanted is None:
        assert found is None
    else:
        assert found == f"{wanted} (in torch's fast path of nn.TransformerEncoder)"


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_asked_of_torch_and_draws_nothing(dtype):
    before = torch.get_rng_state()
    refusal.cache_clear()
    with fast_path_off():
        said = refusal(dtype)
    assert torch.equal(torch.get_rng_state(), before)
    wanted = stops(encoder(), dtype, src_key_padding_mask=RIGHT)
    assert (said is None) == (wanted is None)
    assert said is None or said.startswith(wanted)


def test_arguments_may_be_given_by_place_and_out_of_autocast_nothing_stops():
    net = encoder()
    wanted = stops(net, DTYPES[1], src_key_padding_mask=RIGHT)
    with fast_path_off(), torch.no_grad():
        with_refusal(net, mixed(DTYPES[1]), "cpu")
        net(X, None, RIGHT)
        if wanted is not None:
            with torch.autocast("cpu", DTYPES[1]), pytest.raises(RuntimeError, match="fast path"):
                net(X, None, RIGHT)


def test_an_encoder_whose_path_is_switched_off_later_runs():
    net = nn.Sequential(encoder())[0]
    with fast_path_off():
        with_refusal(net, mixed(DTYPES[0]), "cpu")
        without_fast_path(net)
        assert stops(net, DTYPES[0], src_key_padding_mask=RIGHT) is None


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = encoder(), nn.Linear(16, 2)

    def forward(self, x):
        padded = x[..., 0] == 9.0
        hidden = self.encoder(x, src_key_padding_mask=padded)
        return self.head(hidden.masked_fill(padded.unsqueeze(-1), 0.0).mean(1))


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_training_is_evaluated_so_too(target):
    x = torch.randn(8, 16, 7, 16, generator=torch.Generator().manual_seed(2))
    x[:, :, 5:, 0] = 9.0
    data = [(rows, (rows[:, 0, 0] > 0).long()) for rows in x]
    subject = Training(
        model=Pooled,
        train_data=data,
        eval_data=data,
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda p: torch.optim.SGD(p, 0.05),
        epochs=1,
    )
    settings = Settings(precisions=("bf16-mixed",), target=target, seeds=2, budget="50pt")
    (report,) = examine(subject, settings)
    refuses = target == "cpu" and refusal(torch.bfloat16) is not None
    assert (report.verdict == "not equivalent") == refuses, str(report)
    assert ("in torch's fast path of nn.TransformerEncoder" in str(report)) == refuses
