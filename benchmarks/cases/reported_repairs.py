"""Held-out pairs around a commit that repaired 16 bits: attention, pairs, tables, sources.

Each is written anew after what the commit changed, before and after it; nothing is copied.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import FP16, TRUE, Built, built, fitted, healthy, planted
from benchmarks.cases.reported_quantities import perceptron


class LinearAttention(nn.Module):
    """ReLU linear attention over all pixels; a column of ones collects the divisor."""

    def __init__(self, dim: int, mended: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Conv2d(dim, 3 * dim, 1), nn.Conv2d(dim, dim, 1)
        self.mended = mended

    def summed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q @ (k.transpose(-1, -2) @ v)
        return out[..., :-1] / (out[..., -1:] + 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(2).transpose(1, 2).chunk(3, -1)
        q, k, v = q.relu(), k.relu(), F.pad(v, (0, 1), value=1.0)
        if self.mended:
            dtype = v.dtype
            with torch.autocast(v.device.type, enabled=False):
                seen = self.summed(q.float(), k.float(), v.float()).to(dtype)
        else:
            seen = self.summed(q, k, v)
        return self.out(seen.transpose(1, 2).unflatten(2, x.shape[2:]))


class Efficient(nn.Module):
    """A stem, linear attention beside its input, a head."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.stem, self.attention = nn.Conv2d(1, 16, 3, padding=1), LinearAttention(16, mended)
        self.read, self.head = nn.Conv2d(16, 32, 5, stride=4), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x * 40))
        x = F.hardswish(self.read((x + self.attention(x)) / 40))
        return self.head(F.adaptive_max_pool2d(x, 1).flatten(1))


def attended(mended: bool) -> Built:
    """Digits of four times the side, so that sums are over 1024 places."""
    (x, y), (u, v) = data.digits()
    large = [F.interpolate(t, scale_factor=4, mode="bilinear") for t in (x, u)]
    model = fitted(lambda: Efficient(mended), (large[0][:800], y[:800]), epochs=20)
    return built(model, (large[1][:384], v[:384]))


@planted("overflow", "attention", "matmul bmm", fails=FP16, family="attention")
def linear_attention_of_many_places() -> Built:
    """timm dc18cda2: keys times values, summed over all places, then times queries."""
    return attended(mended=False)


@healthy()
def linear_attention_in_float32() -> Built:
    """timm dc18cda2, as it was mended: q, k and v in float32, autocast off."""
    return attended(mended=True)


class Triangle(nn.Module):
    """The triangular update of a pair map: gated projections, summed over the third corner."""

    def __init__(self, dim: int, mended: bool) -> None:
        super().__init__()
        self.norm, self.after = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.a, self.a_gate = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.b, self.b_gate = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.gate, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.mended = mended
        with torch.no_grad():  # as after a long training
            self.a.weight *= 300
            self.b.weight *= 300

    def forward(self, z: Tensor) -> Tensor:
        z = self.norm(z)
        a, b = self.a_gate(z).sigmoid() * self.a(z), self.b_gate(z).sigmoid() * self.b(z)
        if self.mended:
            a, b = a / a.std(), b / b.std()
        x = torch.matmul(a.permute(0, 3, 1, 2), b.permute(0, 3, 2, 1)).permute(0, 2, 3, 1)
        return self.gate(z).sigmoid() * self.out(self.after(x))


class Folded(nn.Module):
    """A picture as a pair map."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.embed, self.triangle = nn.Conv2d(1, 16, 3, padding=1), Triangle(16, mended)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = self.embed(x).movedim(1, -1)
        return self.head((z + self.triangle(z)).relu().mean((1, 2)))


def folded(mended: bool) -> Built:
    """Digits as pair maps."""
    train, test = data.digits()
    return built(fitted(lambda: Folded(mended), train, epochs=30), test)


@planted("overflow", "triangle", "matmul bmm", fails=FP16, family="attention")
def triangles_of_large_projections() -> Built:
    """openfold#295: the product over the third corner, before its layer norm."""
    return folded(mended=False)


@healthy()
def triangles_of_projections_by_their_spread() -> Built:
    """openfold#295, as it was mended: both are divided by their standard deviation first."""
    return folded(mended=True)


class Blobs(nn.Module):
    """Connected components: numbers spread through each, until all of it has its largest."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.mended = mended

    def forward(self, image: Tensor) -> Tensor:
        n, _, h, w = image.shape
        mask = image > 0.5
        dtype = torch.float32 if self.mended else image.dtype
        out = torch.arange(1, n * h * w + 1, device=image.device, dtype=dtype).view(n, 1, h, w)
        out[~mask] = 0
        for _ in range(12):
            out = F.max_pool2d(out, 3, stride=1, padding=1) * mask
        return (out == out[:, :, h // 2, w // 2, None, None]).flatten(1).sum(1, keepdim=True)


class Sized(nn.Module):
    """How large is the blob in the middle?"""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.blobs, self.body = Blobs(mended), perceptron(1, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.body(self.blobs(image).to(image.dtype) / 40)


def blobs(mended: bool) -> Built:
    """Rectangles of three sizes in the middle of 32 x 32, and others around it."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (900,), generator=random)
    x = torch.zeros(900, 1, 32, 32)
    for image, size in zip(x, y.tolist(), strict=True):
        side = 2 + 2 * size
        image[0, 16 - side : 16 + side, 16 - side : 16 + side] = 1
        for _ in range(int(torch.randint(1, 4, (), generator=random))):
            row, column, below = torch.randint(0, 8, (3,), generator=random).tolist()
            row += 22 * (below > 3)
            image[0, row : row + 2, column : column + 20] = 1
    return built(
        fitted(lambda: Sized(mended), (x[:640], y[:640]), epochs=40, rate=1e-2), (x[640:], y[640:])
    )


@planted(
    "overflow", "blobs", "arange mul", fails=TRUE,
    also=("precision-loss", "absorption"), family="integers",
)  # fmt: skip
def components_numbered_in_the_images_type() -> Built:
    """kornia b2d96e76: the 128 x 1024 pixels of a batch are numbered in float16, or bfloat16."""
    return blobs(mended=False)


@healthy()
def components_numbered_in_float32() -> Built:
    """kornia b2d96e76: the same numbers in float32."""
    return blobs(mended=True)


class Source(nn.Module):
    """Harmonics of a pitch by running sums of its phase, merged by a layer, as vocoders do it."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.merge, self.mended = nn.Linear(9, 1), mended

    def forward(self, f0: Tensor) -> Tensor:
        order = torch.arange(1, 10, device=f0.device, dtype=torch.float32)
        turns = torch.cumsum((f0[..., None] * order / 24000) % 1, dim=1)
        sines = torch.sin(2 * torch.pi * turns) * 0.1
        voiced = (f0 > 10).type(torch.float32)[..., None]
        sines = sines * voiced
        if self.mended:
            sines = sines.to(self.merge.weight.dtype)
        return torch.tanh(self.merge(sines)).transpose(1, 2)


class Pitched(nn.Module):
    """A source, two strided convolutions of it, and the register of the voice."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.source = Source(mended)
        self.conv1, self.conv2 = nn.Conv1d(1, 12, 32, stride=8), nn.Conv1d(12, 24, 8, stride=4)
        self.head = nn.Linear(24, 4)

    def forward(self, f0: Tensor) -> Tensor:
        x = self.conv2(self.conv1(10 * self.source(f0)).relu()).relu()
        return self.head(x.mean(-1))


def pitched(mended: bool) -> Built:
    """Pitches of four registers, some samples without a voice."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (900,), generator=random)
    f0 = 100.0 * 2 ** (y[:, None] / 1.5 + 0.3 * torch.rand(900, 1, generator=random))
    f0 = (f0 * (torch.rand(900, 768, generator=random) > 0.02)).float()
    model = fitted(lambda: Pitched(mended), (f0[:600], y[:600]), epochs=20)
    return built(model, (f0[600:], y[600:]))


@planted("unsupported-op", "source.merge", "addmm linear mm", fails=TRUE, family="types")
def harmonics_of_another_type() -> Built:
    """RVC and its kin: a range of floats makes the sines float32, the layer that merges is not."""
    return pitched(mended=False)


@healthy()
def harmonics_of_the_layers_type() -> Built:
    """RVC's mend: the sines are handed over in the layer's type, once they are sines."""
    return pitched(mended=True)
