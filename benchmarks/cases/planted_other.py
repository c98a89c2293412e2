"""Planted failures of operations: no 16-bit kernel, mixed types, and masks that become −inf."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import ALL, FP16, TRUE, Built, built, fitted, planted
from benchmarks.cases.parts import Conv, Dense, Encoder, HandAttention, Rows, Words
from benchmarks.cases.planted_range import Nearest, class_means, columns, text_with_blanks

# --- no kernel, or two types in one operation ---------------------------------------------------


class Cdist(nn.Module):
    """Distances to prototypes by torch.cdist."""

    def __init__(self, centres: Tensor) -> None:
        super().__init__()
        self.centres = nn.Parameter(centres)

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(x.flatten(1), self.centres, p=1.0)


@planted("unsupported-op", "distance", "_cdist_forward cdist", fails=TRUE, family="prototype")
def cdist_has_no_half() -> Built:
    """torch.cdist has no kernel for 16 bits."""
    (x, y), test = data.digits()
    return built(Nearest(Cdist(class_means(x, y))), test)


class Whiten(nn.Module):
    """Whitening by solving with a learned triangular-plus-diagonal matrix."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(dim) + 0.01 * torch.randn(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.solve(self.matrix, x.flatten(1).T).T


@planted(
    "unsupported-op", "first", "_linalg_solve_ex linalg_solve linalg_solve_ex", fails=TRUE,
    family="mlp",
)  # fmt: skip
def linear_solve() -> Built:
    """torch.linalg has no 16-bit kernels."""
    train, test = data.digits()
    return built(fitted(lambda: Dense(Whiten(64), 64), train), test)


class RobustScale(nn.Module):
    """Subtract each channel's median and divide by its spread between quantiles."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        low, middle, high = torch.quantile(flat, flat.new_tensor([0.1, 0.5, 0.9]), dim=-1)[
            ..., None
        ]
        return ((flat - middle) / (high - low + 0.1)).view_as(x)


@planted(
    "unsupported-op", "middle", "quantile", fails=TRUE, fails_cuda=("16-mixed", "bf16-mixed"),
    family="cnn",
)  # fmt: skip
def quantile_scaling() -> Built:
    """torch.quantile wants float or double."""
    train, test = data.digits()
    return built(fitted(lambda: Conv(middle=RobustScale()), train), test)


class Spectrum(nn.Module):
    """Magnitudes of the two-dimensional Fourier transform of a 7x7 crop."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft2(x[:, 0, :7, :7]).abs().flatten(1)


@planted("unsupported-op", "first", "_fft_r2c fft_rfft2", fails=TRUE, family="spectral")
def fourier_7x7() -> Built:
    """FFTs have no bfloat16 kernel, and a float16 one on CUDA only, for powers of two."""
    train, test = data.digits()
    return built(fitted(lambda: Dense(Spectrum(), 28), train), test)


class HouseholderLinear(nn.Module):
    """A linear layer whose weight is made orthogonal by a QR factorisation at every pass."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.randn(dim, dim) * 0.1 + torch.eye(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.linalg.qr(self.raw).Q


@planted("unsupported-op", "first", "linalg_qr", fails=TRUE, family="recurrent")
def orthogonal_by_qr() -> Built:
    """Orthogonal weights by QR: no 16-bit kernel."""
    train, test = data.digits()
    return built(fitted(lambda: Rows(first=HouseholderLinear(8)), train), test)


class Blur(nn.Module):
    """A fixed blur whose kernel is made on the spot, in the default type."""

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.tensor([1.0, 2.0, 1.0], device=x.device)
        kernel = (kernel[:, None] * kernel / 16).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(x, kernel, padding=1, groups=x.shape[1])


@planted("unsupported-op", "middle", "convolution conv2d", fails=TRUE, family="cnn")
def float32_blur_kernel() -> Built:
    """A float32 kernel made in forward meets 16-bit activations: two types in one convolution."""
    train, test = data.digits()
    return built(fitted(lambda: Conv(middle=Blur()), train), test)


class Neighbours(nn.Module):
    """One round of message passing along a path, adjacency made in the default type."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        t = x.shape[1]
        adjacency = torch.eye(t, device=x.device) + torch.eye(t, device=x.device).roll(1, 0)
        return self.linear(adjacency.expand(len(x), t, t) @ x)


@planted("unsupported-op", "first", "bmm matmul", fails=TRUE, family="graph")
def float32_adjacency() -> Built:
    """A float32 identity matrix made in forward, times 16-bit features."""
    train, test = data.digits()
    return built(fitted(lambda: Rows(first=Neighbours(8, 8)), train), test)


class OwnState(nn.Module):
    """An LSTM whose first state is made by hand, in the default type."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(8, 48, batch_first=True), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        start = torch.zeros(1, len(x), 48, device=x.device)
        y, _ = self.cell(x.flatten(1, 2), (start, start))
        return self.head(y[:, -1])


@planted(
    "unsupported-op", "cell", "lstm _thnn_fused_lstm_cell mkldnn_rnn_layer addmm linear "
    "_cudnn_rnn add mm", fails=TRUE, moot=("16-mixed",), family="recurrent",
)  # fmt: skip
def float32_initial_state() -> Built:
    """A hidden state by torch.zeros without a type."""
    train, test = data.digits()
    return built(fitted(OwnState, train), test)


class Stretch(nn.Module):
    """A spatial transformer whose grid is a buffer kept, and made, in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))

    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.theta.float().expand(len(x), 2, 3), x.shape, align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


@planted(
    "unsupported-op", "first", "grid_sampler_2d grid_sampler grid_sample", fails=TRUE, family="cnn"
)
def float32_sampling_grid() -> Built:
    """grid_sample wants image and grid of one type."""
    train, test = data.digits()
    return built(fitted(lambda: Conv(first=Stretch()), train), test)


class Interpolated(nn.Module):
    """A highway layer by torch.lerp, which wants all its arguments in one type."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.part = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return torch.lerp(x, F.relu(self.part(x)), torch.sigmoid(self.gate(x)))


@planted("unsupported-op", "first", "lerp", fails=("16-mixed", "bf16-mixed"), family="mlp")
def lerp_of_two_types() -> Built:
    """Under autocast a linear layer's output is 16-bit and its input is not: lerp refuses."""
    train, test = data.digits()
    return built(fitted(lambda: Dense(Interpolated(), 64), train), test)


# --- masks --------------------------------------------------------------------------------------


class FilledBillion(HandAttention):
    """masked_fill with −1e9, the constant of the first transformer code."""

    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        return scores.masked_fill(~mask[:, None, None, :], -1e9)


@planted(
    "mask-inf", "encoder.attention", "masked_fill masked_fill_", fails=FP16, family="transformer"
)
def masked_fill_1e9() -> Built:
    """−1e9 does not fit float16: torch refuses to fill with it."""
    train, test = data.text_split()
    return built(fitted(lambda: Words(encoder=Encoder(FilledBillion(32))), train), test)


class AddedBillion(HandAttention):
    """scores + (1 − mask) · −1e9, with the mask in the type of the scores."""

    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        keep = mask[:, None, None, :].to(scores.dtype)
        return scores + (1 - keep) * -1e9


@planted(
    "mask-inf", "encoder.attention", "mul add _softmax softmax", fails=FP16, family="transformer"
)
def added_mask_empty_text() -> Built:
    """An empty text masks every key: in float32 uniform attention, in float16 NaN."""
    train, test = text_with_blanks()
    return built(fitted(lambda: Words(encoder=Encoder(AddedBillion(32))), train), test)


class SinglePrecisionMinimum(HandAttention):
    """A mask prepared with float32's lowest number, then cast to the type of the scores."""

    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        lowest = torch.full_like(mask, torch.finfo(torch.float32).min, dtype=torch.float32)
        bias = lowest.masked_fill(mask, 0.0)[:, None, None, :]
        return scores + bias.to(scores.dtype)


@planted(
    "mask-inf",
    "encoder.attention",
    "_to_copy add _softmax softmax",
    fails=ALL,
    family="transformer",
)
def float32_minimum_cast() -> Built:
    """float32's minimum is −inf in both 16-bit formats; with every key masked softmax is NaN."""
    train, test = text_with_blanks()
    model = lambda: Words(encoder=Encoder(SinglePrecisionMinimum(32)))  # noqa: E731
    return built(fitted(model, train), test)


class TimesConstant(HandAttention):
    """A causal mask as (1 − keep) · constant, the constant a tensor of the scores' type."""

    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        t = scores.shape[-1]
        keep = torch.ones(t, t, dtype=scores.dtype, device=scores.device).tril()
        return scores + (1 - keep) * torch.tensor(-1e9, device=keep.device).to(keep.dtype)


class Characters(nn.Module):
    """A causal character model with one block."""

    def __init__(self, attention: nn.Module, dim: int = 32, length: int = 47) -> None:
        super().__init__()
        self.embed = nn.Embedding(28, dim)
        self.encoder = Encoder(attention, dim, length)
        self.head = nn.Linear(dim, 28)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(ids), None))


def per_token(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy over every position."""
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def next_character() -> tuple[tuple, tuple]:
    """Characters, and for each the one that follows."""
    text = data.characters()
    return (text[:2400, :-1], text[:2400, 1:]), (text[2400:2700, :-1], text[2400:2700, 1:])


@planted("mask-inf", "encoder.attention", "mul _to_copy", fails=FP16, family="language model")
def zero_times_minus_infinity() -> Built:
    """−1e9 in a float16 tensor is −inf, and 0 · −inf is NaN for every key that is kept."""
    train, test = next_character()
    model = fitted(lambda: Characters(TimesConstant(32)), train, loss=per_token, epochs=12)
    return built(model, test)


class MaxPool(nn.Module):
    """The largest value over real tokens: padding is filled with −1e9."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x.masked_fill(~mask.unsqueeze(-1), -1e9).amax(1)


class Convolve(nn.Module):
    """One convolution along the text."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return F.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)


@planted("mask-inf", "pool", "masked_fill masked_fill_", fails=FP16, family="text cnn")
def max_pool_sentinel() -> Built:
    """The sentinel of a masked maximum does not fit float16."""
    train, test = data.text_split()
    return built(fitted(lambda: Words(MaxPool(), Convolve()), train), test)


class InkAttention(nn.Module):
    """Each row attends to its own pixels with ink; where(…, −1e9) elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        score = self.score(x)
        weight = torch.where(x > 0, score, score.new_tensor(-1e9)).softmax(-1)
        return torch.cat([x, weight * x], -1)


@planted(
    "mask-inf", "first", "where _softmax softmax lift_fresh_copy lift_fresh _to_copy new_tensor",
    fails=FP16, family="recurrent",
)  # fmt: skip
def where_blank_rows() -> Built:
    """A blank row masks all its pixels, and −1e9 as a float16 tensor is −inf."""
    train, test = columns()
    return built(fitted(lambda: Rows(first=InkAttention(), inputs=16), train), test)


class LogMaskPool(nn.Module):
    """Attention pooling whose mask enters as (mask + 1e-45).log(), AllenNLP's way."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        bias = (mask.to(x.dtype) + 1e-45).log().unsqueeze(-1)
        return (x * (self.score(x) + bias).softmax(1)).sum(1)


@planted(
    "mask-inf", "pool", "add log _softmax softmax", fails=TRUE, also=("eps-underflow",),
    family="embedding",
)  # fmt: skip
def log_mask_1e45() -> Built:
    """1e-45 is float32's smallest number and zero in 16 bits: an empty text is NaN."""
    train, test = text_with_blanks()
    return built(fitted(lambda: Words(pool=LogMaskPool(32)), train), test)
