"""Held-out models of pictures, colours, rays and boxes; some sound, some not."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import Built, built, fitted, healthy, planted
from benchmarks.cases.parts import HandAttention, perceptron


class SinePlaces(nn.Module):
    """DETR's places: a cumulative sum of the mask, brought to 2π, its sines and cosines."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, pixels: Tensor, mask: Tensor) -> Tensor:
        y, x = mask.cumsum(1, dtype=pixels.dtype), mask.cumsum(2, dtype=pixels.dtype)
        y = y / (y[:, -1:, :] + 1e-6) * 2 * math.pi
        x = x / (x[:, :, -1:] + 1e-6) * 2 * math.pi
        step = torch.arange(self.features, dtype=pixels.dtype, device=pixels.device)
        step = 10000 ** (2 * torch.div(step, 2, rounding_mode="floor") / self.features)
        places = [t[:, :, :, None] / step for t in (y, x)]
        places = [torch.stack([p[..., 0::2].sin(), p[..., 1::2].cos()], 4) for p in places]
        return torch.cat([p.flatten(3) for p in places], 3)


class Padded(nn.Module):
    """Pictures of different width in one batch, as a transformer's pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Linear(1, 32), SinePlaces(16)
        self.norm, self.attention = nn.LayerNorm(32), HandAttention(32)
        self.mlp, self.head = perceptron(32), nn.Linear(32, 10)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> Tensor:
        x = self.embed(pixel_values.squeeze(1)[..., None]) + self.places(pixel_values, pixel_mask)
        x, mask = x.flatten(1, 2), pixel_mask.flatten(1).bool()
        x = x + self.attention(self.norm(x), mask)
        x = x + self.mlp(x)
        return self.head((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


@healthy()
def sine_places_of_padding() -> Built:
    """transformers#29013: a column of padding is 0 / 1e-6, and float16 still knows 1e-6."""

    def padded(x: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.ones(len(x), 8, 10, dtype=torch.long)
        mask[:, :, 8:] = 0
        return F.pad(x, (0, 2)), mask

    (x, y), (u, v) = data.digits()
    model = fitted(Padded, (*padded(x), y), epochs=12)
    parts = zip(*(t.split(150) for t in (*padded(u), v)), strict=True)
    return model, [({"pixel_values": p, "pixel_mask": m}, q) for p, m, q in parts]


class Stereo(nn.Module):
    """How far each place of a left row has moved in the right one, by repeated look-ups."""

    def start(self, rows: Tensor) -> Tensor:
        place = torch.arange(rows.shape[-1], device=rows.device)
        return self.typed(place, rows).expand(len(rows), -1)

    def typed(self, place: Tensor, rows: Tensor) -> Tensor:
        return place.to(rows.dtype)

    def look_up(self, rows: Tensor, place: Tensor) -> Tensor:
        low = place.floor().clamp(0, rows.shape[-1] - 2)
        part = (place - low).clamp(0, 1).to(rows.dtype)
        low = low.long()
        return rows.gather(-1, low) * (1 - part) + rows.gather(-1, low + 1) * part

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        first = self.start(right)
        place = first.clone()
        for reach in (4.0, 1.0, 0.5):
            costs = []
            offsets = torch.linspace(-reach, reach, 9, device=left.device).to(left.dtype)
            for offset in offsets:
                far = (left - self.look_up(right, place + offset)).square()[:, None]
                costs.append(F.avg_pool1d(far, 9, 1, 4).squeeze(1))
            weight = (-torch.stack(costs, -1) * 40).softmax(-1)
            place = place + (weight * offsets).sum(-1)
        return place - first


class PreciseStereo(Stereo):
    """The same with places in float32."""

    def typed(self, place: Tensor, rows: Tensor) -> Tensor:
        return place.float()


class Encoded(nn.Module):
    """Rows made features by a convolution, and compared."""

    def __init__(self, stereo: nn.Module) -> None:
        super().__init__()
        self.encode, self.stereo = nn.Conv1d(1, 1, 3, padding=1, bias=False), stereo
        nn.init.dirac_(self.encode.weight)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        both = [self.encode(t[:, None]).squeeze(1) for t in (left, right)]
        return self.stereo(*both)


def pairs_of_rows(stereo: nn.Module) -> Built:
    """Rows of 400 places, and the same moved by up to three."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.randn(64, 1, 120, generator=random)
    rows = F.interpolate(coarse, 401, mode="linear", align_corners=True).squeeze(1)[:, :400]
    moved = 3 * torch.rand(64, 1, generator=random) * torch.linspace(0.3, 1, 400)
    place = (torch.arange(400) - moved).clamp(0, 398.99)
    low = place.long()
    left = rows.gather(1, low) * (1 - place + low) + rows.gather(1, low + 1) * (place - low)
    model = Encoded(stereo)
    with torch.no_grad():
        target = model(rows, left).clone()
    return built(model, (rows, left, target), size=32)


@planted(
    "absorption", "stereo", "add _to_copy sub", fails=("bf16-true", "bf16-mixed"),
    also=("precision-loss", "cancellation"), moot=("16-true", "16-mixed"), family="flow",
    task="regression",
)  # fmt: skip
def places_in_the_features_type() -> Built:
    """RAFT#54, pytorch#36108: a place near 400 is a whole number, or an even one, in bfloat16."""
    return pairs_of_rows(Stereo())


@healthy(task="regression", precisions=("16-true", "16-mixed"))
def places_in_float32() -> Built:
    """RAFT#54: places are kept in float32, the features are not."""
    return pairs_of_rows(PreciseStereo())


class Render(nn.Module):
    """Densities and colours along a ray, composed; the last step goes on for ever."""

    def forward(self, rgb: Tensor, sigma: Tensor, z: Tensor) -> Tensor:
        steps = torch.cat([z[:, 1:] - z[:, :-1], self.last(z).expand(len(z), 1)], -1)
        alpha = 1 - torch.exp(-F.relu(sigma) * steps)
        kept = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha + 1e-10], -1), -1)
        return ((alpha * kept[:, :-1])[..., None] * rgb).sum(1)

    def last(self, z: Tensor) -> Tensor:
        return z.new_tensor([1e10])


class RenderFloat(Render):
    """The last step is a tensor of float32, as nerf-pytorch writes it."""

    def last(self, z: Tensor) -> Tensor:
        return torch.tensor([1e10], device=z.device)


class Radiance(nn.Module):
    """A field of colour and density, seen along rays."""

    def __init__(self, render: type[Render]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.out, self.render = nn.Linear(64, 4), render()

    def forward(self, origin: Tensor, direction: Tensor, z: Tensor) -> Tensor:
        points = origin[:, None] + direction[:, None] * z[..., None]
        out = self.out(self.net(points))
        return self.render(out[..., :3].sigmoid(), out[..., 3] * 10 - 2, z)


def rays(render: type[Render]) -> Built:
    """A ball before nothing, in three colours by height."""
    random = torch.Generator().manual_seed(0)
    count = 1200
    origin = torch.cat(
        [torch.rand(count, 2, generator=random) * 3 - 1.5, torch.full((count, 1), -4.0)], 1
    )
    direction = torch.tensor([[0.0, 0.0, 1.0]]).expand(count, -1)
    z = torch.linspace(2, 6, 33)[:-1].expand(count, -1).contiguous()
    hit = (origin[:, :2].norm(dim=1, keepdim=True) < 1).float()
    colour = F.one_hot(((origin[:, 1] + 1) * 1.5).clamp(0, 2.99).long(), 3) * hit
    parts = (origin, direction.contiguous(), z, colour)
    train, test = [p[:900] for p in parts], [p[900:] for p in parts]
    model = fitted(lambda: Radiance(render), tuple(train), loss=F.mse_loss, epochs=60)
    return built(model, tuple(test))


@planted(
    "overflow",
    "render",
    "mul lift_fresh cat",
    fails=("16-true",),
    also=("mask-inf",),
    moot=("bf16-true",),
    family="rays",
    task="regression",
)
def last_step_of_a_ray() -> Built:
    """Truxify#3664 and others: 1e10 is infinite in float16, and times no density NaN."""
    return rays(Render)


@healthy(task="regression", precisions=("16-true", "16-mixed", "bf16-mixed"))
def last_step_in_float32() -> Built:
    """nerf-pytorch's own: a float32 tensor makes all that follows float32."""
    return rays(RenderFloat)


class Hsv(nn.Module):
    """Hue, saturation and value, as kornia computes them."""

    def forward(self, image: Tensor) -> Tensor:
        most, which = image.max(1)
        spread = most - image.amin(1)
        saturation = spread / (most + 1e-8)
        spread = torch.where(spread == 0, torch.ones_like(spread), spread)
        r, g, b = (most.unsqueeze(1) - image).unbind(1)
        hues = torch.stack([b - g, (r - b) + 2 * spread, (g - r) + 4 * spread], 1)
        hue = (hues.gather(1, which[:, None]).squeeze(1) / spread / 6) % 1
        return torch.stack([2 * math.pi * hue, saturation, most], 1)


class Lab(nn.Module):
    """CIE L*a*b* by powers of 2.4 and of a third, each with its linear piece near zero."""

    def __init__(self) -> None:
        super().__init__()
        rows = [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169]]
        rows.append([0.019334, 0.119193, 0.950227])
        self.register_buffer("matrix", torch.tensor(rows), persistent=False)
        self.register_buffer("white", torch.tensor([0.950456, 1.0, 1.088754]), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        linear = torch.where(image > 0.04045, ((image + 0.055) / 1.055).pow(2.4), image / 12.92)
        xyz = torch.einsum("ij,njhw->nihw", self.matrix.to(linear.dtype), linear)
        xyz = xyz / self.white.view(1, 3, 1, 1).to(xyz.dtype)
        root = xyz.clamp(min=0.008856).pow(1 / 3)
        f = torch.where(xyz > 0.008856, root, 7.787 * xyz + 4.0 / 29.0)
        x, y, z = f.unbind(1)
        return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1) / 100


class Coloured(nn.Module):
    """A convolution on a picture in another space of colours."""

    def __init__(self, space: type[nn.Module]) -> None:
        super().__init__()
        self.space = space()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2))
        self.head = nn.Linear(256, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(self.space(image)).flatten(1))


def coloured(space: type[nn.Module]) -> Built:
    """Digits in a colour of their own on black."""
    random = torch.Generator().manual_seed(0)
    paint = lambda x: x * (torch.rand(len(x), 3, 1, 1, generator=random) * 0.8 + 0.2)  # noqa: E731
    (x, y), (u, v) = data.digits()
    return built(fitted(lambda: Coloured(space), (paint(x), y)), (paint(u), v))


@planted("eps-underflow", "space", "add div", fails=("16-true",), family="colour")
def saturation_of_black() -> Built:
    """kornia's rgb_to_hsv: black has the saturation 0 / (0 + 1e-8), which float16 makes 0 / 0."""
    return coloured(Hsv)


@healthy()
def lightness_by_two_pieces() -> Built:
    """kornia's rgb_to_lab: powers of small numbers, with a linear piece where they are steep."""
    return coloured(Lab)
