"""What a CPU's kernels round on the way: emulated for a CPU, bit for bit; for CUDA, once."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_fp16 import Evaluation, check
from pytest_fp16.engine.emulation.emulate import Emulation

LOW = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = 3 * drawn(6, 16, 12, 12) + 5
ROWS = 3 * drawn(64, 40)
OPERATIONS = {
    "log_softmax": lambda to: ROWS.to(to).log_softmax(-1),
    "log_softmax of three": lambda to: ROWS[:, :3].to(to).log_softmax(1),
    "log_softmax of other axes": lambda to: X.to(to).log_softmax(1),
    "log_softmax of masked": lambda to: (
        ROWS.to(to).masked_fill(ROWS > 1, -torch.inf).log_softmax(-1)
    ),
    "cross": lambda to: torch.linalg.cross(ROWS[:, :3].to(to), ROWS[:, 3:6].to(to)),
    "cross along": lambda to: torch.cross(ROWS[:3].to(to), ROWS[3:6].to(to), dim=0),
    "squared error": lambda to: F.mse_loss(ROWS.to(to), ROWS.to(to).flip(0), reduction="none"),
    "mean squared error": lambda to: F.mse_loss(ROWS.to(to), ROWS.to(to).flip(0)),
    "xlogy": lambda to: torch.xlogy(ROWS.to(to), ROWS.to(to).abs()),
    "xlogy of zeros": lambda to: torch.xlogy(ROWS.relu().to(to), ROWS.to(to)),
    "instance norm": lambda to: F.instance_norm(X.to(to)),
    "batch norm": lambda to: F.batch_norm(
        X.to(to), None, None, drawn(16).to(to), drawn(16, seed=1).to(to), training=True
    ),
    "batch norm of rows": lambda to: F.batch_norm(ROWS.to(to), None, None, training=True),
    "batch norm of turned rows": lambda to: F.batch_norm(
        drawn(4, 12, 16).to(to).transpose(1, 2),
        *(drawn(16, seed=s).abs().to(to) for s in range(4)),
        training=False,
    ),
    "batch norm of channels last": lambda to: F.batch_norm(
        X.to(to).contiguous(memory_format=torch.channels_last),
        *(drawn(16, seed=s).abs().to(to) for s in range(4)),
        training=False,
    ),
    "upsampled": lambda to: F.interpolate(X[0].to(to), size=31, mode="linear"),
    "bicubic": lambda to: F.interpolate(X.to(to), size=(20, 21), mode="bicubic"),
    "a factor without dimensions": lambda to: ROWS.to(to) * torch.tensor(0.1),
    "an addend without dimensions": lambda to: ROWS.to(to) + torch.tensor(0.1),
    "an angle without dimensions": lambda to: torch.atan2(ROWS.to(to), torch.tensor(0.1)),
    "a weight without dimensions": lambda to: torch.lerp(
        ROWS.to(to), ROWS.flip(0).to(to), torch.tensor(0.3)
    ),
}


@LOW
@pytest.mark.parametrize("name", OPERATIONS)
def test_results_are_those_of_a_cpu(name, dtype):
    try:
        native = OPERATIONS[name](dtype)
    except RuntimeError as error:  # torch before 2.7 takes no float32 weight in lerp
        pytest.skip(f"this torch refuses it: {error}")
    with Emulation("cpu"):
        emulated = OPERATIONS[name](dtype)
    assert emulated.dtype == native.dtype
    differs = (emulated != native) & ~(emulated.isnan() & native.isnan())
    assert differs.float().mean() < 1e-3  # the last bit of float32


@LOW
def test_on_a_gpu_statistics_are_float32(dtype):
    with Emulation("cuda"):
        assert torch.equal(
            F.instance_norm(X.to(dtype)), F.instance_norm(X.to(dtype).float()).to(dtype)
        )
        rows = ROWS.to(dtype)
        assert torch.equal(rows.log_softmax(-1), rows.float().log_softmax(-1).to(dtype))


@LOW
def test_statistics_that_a_batch_norm_saves_are_those_of_its_kernel(dtype):
    given = (X.to(dtype), None, None, None, None, True, 0.1, 1e-5)
    native = torch.native_batch_norm(*given)
    with Emulation("cpu"):
        emulated = torch.native_batch_norm(*given)
    assert [t.dtype for t in emulated] == [t.dtype for t in native]
    assert [t.shape for t in emulated] == [t.shape for t in native]


class Styled(nn.Module):
    def __init__(self, then):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.then = nn.Conv2d(3, 8, 3, padding=1), then

    def forward(self, x):
        return self.then(self.conv(x) + 1).flatten(1)


@pytest.mark.parametrize("emulate", ["always", "never"])
@pytest.mark.parametrize("name", ["16-true", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize(
    "then",
    [
        F.instance_norm,
        lambda z: z.flatten(1).log_softmax(-1),
        lambda z: F.interpolate(z, size=(13, 13), mode="bicubic"),
    ],
    ids=["norm", "log_softmax", "bicubic"],
)
def test_theory_rounds_where_they_do(then, name, emulate):
    data = list(drawn(122, 3, 8, 8).split(61))
    subject = Evaluation(Styled(then).eval(), data, labelled=False, task="regression")
    report = check(subject, precision=name, target="cpu", device="cpu", emulate=emulate)
    assert 0.6 < report.standardised.spread < 1.5
