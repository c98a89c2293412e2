"""Held-out levels: faces in micrometres, energies, paths, brain waves, rotations, pitches, pixels.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import FP16, Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_tongues import decided, drawn


class Morphable(nn.Module):
    """3DDFA's: parameters by their mean and spread, a face of a mean and two bases, a pose."""

    def __init__(self, vertices: int = 30, unit: float = 1.0) -> None:
        super().__init__()
        spread = torch.cat([torch.full((12,), 1e-4 * unit), 4e5 * torch.rand(8) / unit])
        mean = torch.cat([5e-4 * unit * torch.eye(3, 4).flatten(), torch.zeros(8)])
        self.register_buffer("param_std", spread)
        self.register_buffer("param_mean", mean)
        self.register_buffer("u", 5e4 * torch.randn(vertices, 3) / unit)
        self.register_buffer("w", 0.02 * torch.randn(vertices * 3, 8))

    def forward(self, param: Tensor) -> Tensor:
        param = param * self.param_std + self.param_mean
        pose, alpha = param[:, :12].view(-1, 3, 4), param[:, 12:]
        shape = self.u + (alpha @ self.w.T).view(len(param), -1, 3)
        return shape @ pose[:, :, :3].transpose(1, 2)


class Face(nn.Module):
    """Features of a picture to 20 parameters, and these to vertices in pixels."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.backbone, self.morphable = perceptron(16, 20), Morphable(unit=unit)

    def forward(self, x: Tensor) -> Tensor:
        return self.morphable(3 * self.backbone(x)).flatten(1)


@planted("overflow", "morphable", "_to_copy mul mm", fails=FP16, family="units", task="regression")
def faces_in_micrometres() -> Built:
    """cleardusk/3DDFA: a face of 1e5 micrometres, before a scale of 5e-4 brings it to pixels."""
    return taught(lambda: Face(1.0), (drawn(300, 16, seed=1),))


@healthy(task="regression", precisions=FP16)
def faces_in_decimetres() -> Built:
    """sicxu/Deep3DFaceRecon_pytorch is of its kin: the same face, divided by 1e5."""
    return taught(lambda: Face(1e5), (drawn(300, 16, seed=1),))


class SimAM(nn.Module):
    """Attention without parameters: what stands out from its channel counts more."""

    def __init__(self, e_lambda: float = 1e-4) -> None:
        super().__init__()
        self.e_lambda = e_lambda

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[2] * x.shape[3] - 1
        square = (x - x.mean(dim=[2, 3], keepdim=True)).pow(2)
        y = square / (4 * (square.sum(dim=[2, 3], keepdim=True) / n + self.e_lambda)) + 0.5
        return x * torch.sigmoid(y)


class Attended(nn.Module):
    """A stem, that attention, another convolution; what a picture shows."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level
        self.stem, self.attention = nn.Conv2d(1, 8, 3, padding=1), SimAM()
        self.body = nn.Conv2d(8, 8, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(self.stem(x) * self.level) / self.level
        return (4 * F.relu(self.body(x))).amax((2, 3))


@planted("overflow", "attention", "sum", fails=("16-true",), family="attention", task="regression")
def what_stands_out_of_large_channels() -> Built:
    """ZjjConan/SimAM: squares of 40, summed over 256 places; one over it quietly weighs alike."""
    return taught(lambda: Attended(60.0), (drawn(240, 1, 16, 16, seed=2),), noise=0.02)


@healthy(task="regression")
def what_stands_out_of_small_channels() -> Built:
    """ZjjConan/SimAM: the same of activations of one; 1e-4 is a number of float16."""
    return taught(lambda: Attended(1.0), (drawn(240, 1, 16, 16, seed=2),), noise=0.1)


class Signature(nn.Module):
    """A path by its iterated integrals to the fourth level, step by step by Chen's identity."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, path: Tensor) -> Tensor:
        steps = (path[:, 1:] - path[:, :-1]) / self.unit
        levels = [torch.zeros_like(steps[:, 0])]
        for k in range(2, 5):
            levels.append(steps.new_zeros(len(steps), 2**k))
        for x in steps.unbind(1):
            powers = [x]
            for k in range(2, 5):
                powers.append((powers[-1].unsqueeze(-1) * x.unsqueeze(1)).flatten(1) / k)
            grown = []
            for k in range(4):
                level = levels[k] + powers[k]
                for i in range(k):
                    level = level + (
                        levels[i].unsqueeze(-1) * powers[k - 1 - i].unsqueeze(1)
                    ).flatten(1)
                grown.append(level)
            levels = grown
        return torch.cat(levels, -1)


class Strokes(nn.Module):
    """A stroke of a pen, its signature, brought to a common size, and what it is."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.signature, self.head = Signature(unit), nn.Linear(30, 4)
        with torch.no_grad():
            size = self.signature(strokes()).square().mean(0).sqrt()
        self.register_buffer("size", size)
        with torch.no_grad():
            self.head.weight *= 6

    def forward(self, path: Tensor) -> Tensor:
        return self.head(self.signature(path) / self.size)


def strokes() -> Tensor:
    """Twelve places of a pen, in pixels from where it began."""
    return F.pad((8 * drawn(400, 12, 2, seed=3) + 6).cumsum(1), (0, 0, 1, 0))


@planted("overflow", "signature", "mul add", fails=("16-true",), family="series")
def signatures_of_strokes_in_pixels() -> Built:
    """patrick-kidger/signatory and its kin: 100 pixels to the fourth, by 24, is four million."""
    return decided(lambda: Strokes(1.0), (strokes(),))


@healthy()
def signatures_of_strokes_by_their_length() -> Built:
    """The same of paths in units of 50 pixels: fourth powers of two."""
    return decided(lambda: Strokes(50.0), (strokes(),))


class Shallow(nn.Module):
    """ShallowFBCSPNet: filters in time and over electrodes, squared, pooled, their logarithm."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.conv_time, self.conv_spat = (
            nn.Conv2d(1, 8, (1, 9)),
            nn.Conv2d(8, 8, (6, 1), bias=False),
        )
        nn.init.zeros_(self.conv_time.bias)
        self.bnorm, self.head = nn.BatchNorm2d(8, momentum=None), nn.Linear(8, 4)
        with torch.no_grad():
            self.conv_time.weight *= 3
            self.conv_spat.weight *= 3
            self.train()(level * drawn(64, 6, 64, seed=40))
            self.head.weight *= 6

    def forward(self, x: Tensor) -> Tensor:
        x = self.bnorm(self.conv_spat(self.conv_time(x.unsqueeze(1))))
        x = F.avg_pool2d(x * x, (1, 56))
        return self.head(torch.log(torch.clamp(x, min=1e-6)).flatten(1))


@healthy()
def brain_waves_in_volts() -> Built:
    """braindecode: 2e-5 V have few bits in float16, variances of 1e-10 none, beside 1e-5."""
    own = 1 + 0.8 * drawn(300, 6, 1, seed=41)
    return decided(lambda: Shallow(2e-5), (2e-5 * own * drawn(300, 6, 64, seed=42),))


def hadamard(x: Tensor, first: bool) -> Tensor:
    """QuIP#'s matmul_hadU: sums and differences of halves, then the root of their number."""
    n = x.shape[-1]
    out = x.reshape(-1, n, 1)
    if first:
        out = out / torch.tensor(n).sqrt()
    while out.shape[1] > 1:
        out = out.view(len(out), out.shape[1] // 2, 2, out.shape[2])
        a, b = out[:, :, 0], out[:, :, 1]
        out = torch.stack([a + b, a - b], 2).view(len(out), -1, 2 * out.shape[-1])
    out = out.reshape(x.shape)
    return out if first else out / torch.tensor(n).sqrt()


class Rotated(nn.Module):
    """A perceptron whose inner values are turned, as its second weight was, before they go on."""

    def __init__(self, first: bool, width: int = 128) -> None:
        super().__init__()
        self.first, self.up, self.down = first, nn.Linear(16, width), nn.Linear(width, 16)
        with torch.no_grad():
            self.up.weight *= 40
            self.down.weight /= 2000

    def forward(self, x: Tensor) -> Tensor:
        return self.down(hadamard(F.relu(self.up(x)).square(), self.first))


class Quantized(nn.Module):
    """That perceptron beside its input, and a class."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.mlp, self.norm, self.head = Rotated(first), nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x + self.mlp(x))) * 6


@planted("overflow", "mlp", "add stack", fails=("16-true",), family="range")
def turned_before_it_is_scaled() -> Built:
    """Cornell-RelaxML/quip-sharp's matmul_hadU: a sum of 128 thousands, then by their root."""
    return decided(lambda: Quantized(False), (drawn(400, 16, seed=5),))


@healthy()
def turned_after_it_is_scaled() -> Built:
    """Dao-AILab/fast-hadamard-transform is of its kin: the root first."""
    return decided(lambda: Quantized(True), (drawn(400, 16, seed=5),))


class LPIPS(nn.Module):
    """How alike two pictures look: unit features of every place, their squares, weighed."""

    def __init__(self, eps: float, dead: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("shift", torch.tensor([-0.03]).view(1, 1, 1, 1))
        self.register_buffer("scale", torch.tensor([0.45]).view(1, 1, 1, 1))
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.lins = nn.ModuleList(nn.Conv2d(8, 1, 1, bias=False) for _ in range(2))
        with torch.no_grad():
            self.conv1.bias.fill_(dead)
            for lin in self.lins:
                lin.weight.abs_()

    def unit(self, x: Tensor) -> Tensor:
        return x / (torch.sqrt(torch.sum(x**2, dim=1, keepdim=True)) + self.eps)

    def features(self, x: Tensor) -> list[Tensor]:
        first = F.relu(self.conv1((x - self.shift) / self.scale))
        return [first, F.relu(self.conv2(F.max_pool2d(first, 2)))]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(self.features(a), self.features(b), self.lins, strict=True)
        apart = [lin((self.unit(p) - self.unit(q)) ** 2).mean((2, 3)) for p, q, lin in pairs]
        return torch.cat(apart, 1) * 10


def alike() -> tuple[Tensor, Tensor]:
    """Pictures with a dark half, and the same with some noise."""
    x = drawn(240, 1, 12, 12, seed=6)
    x[..., 6:] *= 0.1
    return x, x + drawn(240, 1, 1, 1, seed=7).abs() * drawn(240, 1, 12, 12, seed=8) * 0.5


@planted("eps-underflow", "", "add div", fails=("16-true",), family="similarity", task="regression")
def how_alike_where_nothing_is_seen() -> Built:
    """richzhang/PerceptualSimilarity: 1e-10 is zero in float16, and features of none 0 / 0."""
    return taught(lambda: LPIPS(1e-10, -0.5), alike())


@healthy(task="regression", precisions=FP16)
def how_alike_where_all_is_seen() -> Built:
    """richzhang/PerceptualSimilarity: the same floor, beside features that are never none."""
    return taught(lambda: LPIPS(1e-10, 1.0), alike(), noise=0.1)


class Yin(nn.Module):
    """YIN's: energies of a frame and of a later one, less twice what they share, by their mean."""

    def __init__(self, window: int = 96, least: int = 12, most: int = 48) -> None:
        super().__init__()
        self.window, self.least, self.most = window, least, most

    def forward(self, x: Tensor) -> Tensor:
        frames = x.unfold(-1, self.window, 1)[:, : self.most]
        energy = (frames**2).sum(-1)
        shared = torch.bmm(frames, frames[:, :1].transpose(1, 2)).squeeze(-1)
        d = energy[:, :1] + energy - 2 * shared
        tau = torch.arange(1, self.most, device=x.device, dtype=x.dtype)
        cmdf = d[:, 1:] * tau / torch.clamp(d[:, 1:].cumsum(-1), min=1e-5)
        return -cmdf[:, self.least :]


class Pitch(nn.Module):
    """A voice to its period."""

    def __init__(self) -> None:
        super().__init__()
        self.emphasis, self.yin = nn.Conv1d(1, 1, 2, bias=False), Yin()
        with torch.no_grad():
            self.emphasis.weight.copy_(torch.tensor([[[-0.5, 1.0]]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.yin(self.emphasis(x.unsqueeze(1)).squeeze(1)) * 20


def voiced(count: int = 400) -> Tensor:
    """Harmonics of periods of 14 to 22 samples, the first of them strongest, and breath."""
    random = torch.Generator().manual_seed(9)
    period = 14 + 8 * torch.rand(count, 1, generator=random)
    t = torch.arange(145).float()
    waves = [torch.sin(2 * torch.pi * k * t / period + k) / k for k in (1, 2, 3)]
    return 0.5 * sum(waves) + 0.01 * torch.randn(count, 145, generator=random)


@healthy()
def periods_of_a_voice() -> Built:
    """brentspell/torch-yin: a hundredth is left of two energies, and of its double more."""
    return decided(Pitch, (voiced(),))


def averages(classes: int, pixels: int) -> Tensor:
    """A picture, a little different for each class."""
    return 0.5 * drawn(1, pixels, seed=19) + 0.02 * drawn(classes, pixels, seed=20)


class Logistic(nn.Module):
    """PixelCNN++'s: how likely each pixel is, by two sigmoids a 255th apart; of each class."""

    def __init__(self, classes: int = 5, pixels: int = 64) -> None:
        super().__init__()
        self.means = nn.Parameter(averages(classes, pixels))
        self.log_scales = nn.Parameter(-3 + 0.5 * drawn(classes, pixels, seed=21))

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)
        log_scales = torch.clamp(self.log_scales, min=-7.0)
        centered, inv_stdv = x - self.means, torch.exp(-log_scales)
        plus_in = inv_stdv * (centered + 1.0 / 255.0)
        min_in = inv_stdv * (centered - 1.0 / 255.0)
        cdf_delta = torch.sigmoid(plus_in) - torch.sigmoid(min_in)
        log_cdf_plus = plus_in - F.softplus(plus_in)
        log_one_minus_cdf_min = -F.softplus(min_in)
        mid_in = inv_stdv * centered
        log_pdf_mid = mid_in - log_scales - 2.0 * F.softplus(mid_in)
        floored = torch.log(torch.clamp(cdf_delta, min=1e-12))
        inner = torch.where(cdf_delta > 1e-5, floored, log_pdf_mid - 4.8481)
        inner = torch.where(x > 0.999, log_one_minus_cdf_min, inner)
        return torch.where(x < -0.999, log_cdf_plus, inner).sum(-1)


class Likeliest(nn.Module):
    """Pixels shrunk a little by a layer of weights, and the class that explains them best."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.likelihood = nn.Linear(64, 64), Logistic()
        with torch.no_grad():
            self.mix.weight.copy_(torch.eye(64) + 0.01 * self.mix.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.likelihood(torch.tanh(self.mix(x)))


@planted(
    "cancellation", "likelihood", "sub sigmoid sum log", fails=("bf16-true",), family="likelihood",
    also=("precision-loss", "absorption"),
)  # fmt: skip
def pixels_by_two_sigmoids() -> Built:
    """openai/pixel-cnn: sigmoids near one differ by nothing in bfloat16."""
    labels = torch.arange(400) % 5
    return decided(Likeliest, (averages(5, 64)[labels] + 0.05 * drawn(400, 64, seed=22),))


class DNC(nn.Module):
    """A memory whose cells are taken by how little they are used, and read by content."""

    def __init__(self, cells: int = 12, width: int = 8, delta: float = 5e-6) -> None:
        super().__init__()
        self.cells, self.width, self.delta = cells, width, delta
        self.controller, self.out = nn.GRUCell(6 + width, 24), nn.Linear(24 + width, 4)
        self.interface = nn.Linear(24, 3 * width + 4)

    def allocation(self, usage: Tensor) -> Tensor:
        usage = self.delta + (1 - self.delta) * usage
        ordered, phi = torch.topk(usage, self.cells, dim=1, largest=False)
        v = torch.cat((torch.ones_like(ordered[:, :1]), ordered), 1)
        given = (1 - ordered) * torch.cumprod(v, 1)[:, :-1]
        return given.gather(1, torch.topk(phi, self.cells, dim=1, largest=False).indices)

    def content(self, memory: Tensor, key: Tensor, strength: Tensor) -> Tensor:
        a = memory / (torch.norm(memory, 2, dim=2, keepdim=True) + self.delta)
        b = key / (torch.norm(key, 2, dim=1, keepdim=True) + self.delta)
        return torch.softmax((a @ b.unsqueeze(-1)).squeeze(-1) * strength, 1)

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        memory = torch.full((n, self.cells, self.width), self.delta, dtype=x.dtype, device=x.device)
        usage, state = x.new_zeros(n, self.cells), x.new_zeros(n, 24)
        read, written = x.new_zeros(n, self.width), x.new_zeros(n, self.cells)
        weights = x.new_zeros(n, self.cells)
        for step in x.unbind(1):
            state = self.controller(torch.cat([step, read], 1), state)
            key, erase, value, rest = self.interface(state).split([self.width] * 3 + [4], 1)
            strength = F.softplus(rest[:, :1]) + 1
            free, gate, share = (torch.sigmoid(rest[:, i : i + 1]) for i in (1, 2, 3))
            usage = (usage + (1 - usage) * (1 - (1 - written))) * (1 - free * weights)
            taken = self.allocation(usage)
            by_content = self.content(memory, key, strength)
            written = gate * (share * taken + (1 - share) * by_content)
            memory = memory * (1 - written.unsqueeze(2) * torch.sigmoid(erase).unsqueeze(1))
            memory = memory + written.unsqueeze(2) * torch.tanh(value).unsqueeze(1)
            weights = self.content(memory, key, strength)
            read = (weights.unsqueeze(1) @ memory).squeeze(1)
        return self.out(torch.cat([state, read], 1)) * 8


@healthy(cuda_only=("16-true",))
def cells_by_how_little_they_are_used() -> Built:
    """ixaxaar/pytorch-dnc: 5e-6 is little more than nothing, and which of two free cells is any."""
    return decided(DNC, (drawn(240, 8, 6, seed=23),))
