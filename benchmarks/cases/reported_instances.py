"""A held-out segmenter of instances: boxes from bins, the best of them, masks from prototypes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import TRUE, Built, built, fitted, healthy, planted

CELLS, BINS, CLASSES, PROTOTYPES = 8, 8, 3, 8


class Conv(nn.Module):
    """Convolution, batch norm, SiLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.bn(self.conv(x)))


class C2f(nn.Module):
    """Split, bottlenecks one behind the other, all of them put together."""

    def __init__(self, width: int, count: int = 1) -> None:
        super().__init__()
        self.enter, self.leave = Conv(width, width, 1), Conv((2 + count) * width // 2, width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(Conv(width // 2, width // 2), Conv(width // 2, width // 2))
            for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class Proto(nn.Module):
    """Prototypes of masks at half the size of the picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.up = Conv(width, width), nn.ConvTranspose2d(width, width, 2, 2)
        self.second, self.last = Conv(width, width), nn.Conv2d(width, PROTOTYPES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.up(self.first(x))))


class Bins(nn.Module):
    """The mean of a distribution over distances, as a convolution with 0, 1, 2, …."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(BINS, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data[:] = torch.arange(BINS).float().view(1, BINS, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, a = x.shape
        return self.conv(x.view(n, 4, BINS, a).transpose(1, 2).softmax(1)).view(n, 4, a)


class Segment(nn.Module):
    """Boxes, classes and coefficients of every cell; the best cell's mask is the answer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.box = nn.Sequential(Conv(width, width), nn.Conv2d(width, 4 * BINS, 1))
        self.cls = nn.Sequential(Conv(width, width), nn.Conv2d(width, CLASSES, 1))
        self.coefficients = nn.Sequential(Conv(width, width), nn.Conv2d(width, PROTOTYPES, 1))
        self.bins, self.proto = Bins(), Proto(width)

    def forward(self, x: Tensor) -> Tensor:
        protos = self.proto(x)
        box, cls, c = (f(x).flatten(2) for f in (self.box, self.cls, self.coefficients))
        if self.training:
            masks = torch.einsum("nka,nkhw->nahw", c, protos)
            return torch.cat([cls.flatten(1), self.decoded(box).flatten(1), masks.flatten(1)], 1)
        found = torch.cat([self.decoded(box), cls.sigmoid(), c], 1).mT
        return self.masks(self.best(found), protos)

    def decoded(self, box: Tensor) -> Tensor:
        start = torch.arange(CELLS, device=box.device, dtype=box.dtype) + 0.5
        y, x = torch.meshgrid(start, start, indexing="ij")
        centre = torch.stack([x.flatten(), y.flatten()])
        near, far = self.bins(box).chunk(2, 1)
        return torch.cat([centre - near, centre + far], 1) * (32 // CELLS)

    def best(self, found: Tensor, count: int = 2) -> Tensor:
        boxes, scores, coefficients = found.split([4, CLASSES, PROTOTYPES], -1)
        score, label = scores.max(-1)
        score, place = score.topk(count)
        label = self.labels(label.gather(1, place), score)
        boxes, coefficients = (
            t.gather(1, place[..., None].expand(-1, -1, t.shape[-1])) for t in (boxes, coefficients)
        )
        return torch.cat([boxes, score[..., None], label[..., None], coefficients], -1)

    def labels(self, label: Tensor, score: Tensor) -> Tensor:
        return label

    def masks(self, found: Tensor, protos: Tensor) -> Tensor:
        """The mask of the best, cut to its box."""
        n, _, h, w = protos.shape
        mask = (found[:, :1, 6:] @ protos.float().flatten(2)).view(n, h, w)
        x1, y1, x2, y2 = (found[:, 0, :4] / 2).unbind(-1)
        row = torch.arange(h, device=mask.device, dtype=mask.dtype)[None, :, None]
        column = torch.arange(w, device=mask.device, dtype=mask.dtype)[None, None, :]
        inside = (column >= x1.view(n, 1, 1) - 1) & (column < x2.view(n, 1, 1) + 1)
        inside = inside & (row >= y1.view(n, 1, 1) - 1) & (row < y2.view(n, 1, 1) + 1)
        return torch.where(inside, mask, torch.full_like(mask, -8.0))


class LabelledSegment(Segment):
    """Labels as floats, which makes all that is put together with them float32."""

    def labels(self, label: Tensor, score: Tensor) -> Tensor:
        return label.float()


class Yolo(nn.Module):
    """A small backbone with a top-down path, and the head."""

    def __init__(self, head: type[Segment], width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(Conv(1, width, 3, 2), C2f(width))
        self.down1 = nn.Sequential(Conv(width, width, 3, 2), C2f(width))
        self.down2 = nn.Sequential(Conv(width, width, 3, 2), C2f(width))
        self.fuse, self.head = C2f(width), head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down1(self.stem(x))
        return self.head(self.fuse(x + F.interpolate(self.down2(x), scale_factor=2.0)))


def scenes(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A bright disc, square or cross on noise; its mask at half size, what a cell must say."""
    random = torch.Generator().manual_seed(seed)
    kind = torch.randint(0, CLASSES, (count, 1, 1), generator=random)
    y, x = (8 + 16 * torch.rand(count, 1, 1, generator=random) for _ in range(2))
    size = 4 + 3 * torch.rand(count, 1, 1, generator=random)
    axis = torch.arange(32).float() + 0.5
    down, over = (axis[None, :, None] - y).abs(), (axis[None, None, :] - x).abs()
    disc, square = (down**2 + over**2) < size**2, torch.maximum(down, over) < size
    mask = torch.where(
        kind == 0, disc, torch.where(kind == 1, square, square & ((down < 2) | (over < 2)))
    )
    picture = mask.float() + 0.3 * torch.randn(count, 32, 32, generator=random)
    small = F.max_pool2d(mask.float()[:, None], 2)[:, 0]
    cell = (y / 4).long() * CELLS + (x / 4).long()
    box = torch.cat([x - size, y - size, x + size, y + size], 1)
    packed = torch.cat([kind.float(), cell.float(), box], 1).flatten(1)
    return picture[:, None], small, torch.cat([packed, small.flatten(1)], 1)


def detected(out: Tensor, labels: Tensor) -> Tensor:
    """Class of every cell, box and mask of the cell in the middle of the thing."""
    n, cells = len(out), CELLS * CELLS
    kind, cell = labels[:, 0].long(), labels[:, 1].long()
    cls, boxes, masks = out.split([CLASSES * cells, 4 * cells, 256 * cells], 1)
    wanted = torch.zeros(n, CLASSES, cells).index_put_(
        (torch.arange(n), kind, cell), torch.tensor(1.0)
    )
    weight = 1 + 20 * wanted
    loss = F.binary_cross_entropy_with_logits(cls.view_as(wanted), wanted, weight)
    row = torch.arange(n)
    loss = loss + 0.05 * F.l1_loss(boxes.view(n, 4, cells)[row, :, cell], labels[:, 2:6])
    mask = masks.view(n, cells, 256)[row, cell]
    return loss + F.binary_cross_entropy_with_logits(mask, labels[:, 6:])


def segmented(head: type[Segment]) -> Built:
    """Pictures of one thing, and where it is."""
    x, _, packed = scenes(600, 0)
    model = fitted(lambda: Yolo(head), (x, packed), loss=detected, epochs=14, batch=32, rate=6e-3)
    u, mask, _ = scenes(200, 1)
    return built(model, (u, mask), size=100)


@planted("unsupported-op", "head", "bmm matmul", fails=TRUE, family="detector", task="multilabel")
def labels_left_as_integers() -> Built:
    """ultralytics#25613: a cat with integers stays half, and meets prototypes in float32."""
    return segmented(Segment)


@healthy(task="multilabel")
def labels_made_floats() -> Built:
    """ultralytics#25613: a cat with float32 labels is float32, as the prototypes are."""
    return segmented(LabelledSegment)
