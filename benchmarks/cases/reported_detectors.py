"""Held-out detectors, routers and quantizers, which decide inside; some sound, some not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import TRUE, Built, built, fitted, healthy, planted


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every two boxes (x1, y1, x2, y2)."""
    area = lambda t: (t[..., 2] - t[..., 0]) * (t[..., 3] - t[..., 1])  # noqa: E731
    low = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    both = (high - low).clamp(min=0).prod(-1)
    return both / (area(a)[..., :, None] + area(b)[..., None, :] - both)


class ShiftedOverlap(nn.Module):
    """Overlaps within a class: boxes of another class are moved out of the page."""

    def forward(self, boxes: Tensor, kind: Tensor) -> Tensor:
        moved = boxes + (kind * (boxes.amax((1, 2), keepdim=True)[..., 0] + 1))[..., None]
        return overlap(moved, moved)


class MaskedOverlap(nn.Module):
    """Overlaps within a class: those between classes are set to zero."""

    def forward(self, boxes: Tensor, kind: Tensor) -> Tensor:
        return overlap(boxes, boxes) * (kind[:, :, None] == kind[:, None])


class Suppression(nn.Module):
    """Recognise the digit in every box; drop a box that overlaps a surer one of its class."""

    def __init__(self, overlaps: type[nn.Module]) -> None:
        super().__init__()
        self.overlap = overlaps()
        self.body = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, crops: Tensor, boxes: Tensor | None = None) -> Tensor:
        scores = self.body(crops)
        if boxes is None:
            return scores
        sure, kind = scores.softmax(-1).max(-1)
        image = torch.arange(len(crops), device=crops.device) % 8
        kind = kind * 8 + image[:, None]  # a batch is suppressed in one go
        shared = self.overlap(boxes, kind.to(boxes.dtype))
        surer = sure[:, None] > sure[:, :, None]
        return 0.5 - (shared * surer).amax(-1)  # above zero: kept


def pages(count: int = 200, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Six digits a page: crops, boxes, and which are duplicates of a clearer crop beside them."""
    random = torch.Generator().manual_seed(seed)
    x = data.digits()[1][0].flatten(1)
    pick = torch.randint(0, len(x), (count, 3), generator=random)
    crops = x[pick].repeat(1, 2, 1)
    crops[:, 3:] *= 0.6  # the worse view of the same digit
    corner = torch.rand(count, 3, 2, generator=random) * 150
    corner += torch.tensor([[0.0, 0.0], [220.0, 180.0], [440.0, 380.0]])
    size = 24 + torch.rand(count, 3, 2, generator=random) * 24
    apart = (torch.rand(count, 3, 1, generator=random) < 0.5).float()
    shift = size * torch.where(apart > 0, 0.75, 0.1) * torch.tensor([1.0, 0.0])
    first = torch.cat([corner, corner + size], -1)
    second = torch.cat([corner + shift, corner + shift + size], -1)
    boxes = torch.cat([first, second], 1)
    return crops, boxes, torch.cat([torch.ones(count, 3), apart[..., 0]], 1)


def suppression(overlaps: type[nn.Module]) -> Built:
    """A recogniser trained on crops, and pages to suppress duplicates on."""
    (x, y), _ = data.digits()
    model = fitted(lambda: Suppression(overlaps), (x.flatten(1), y))
    return built(model, pages())


@planted(
    "absorption", "overlap", "add mul sub maximum minimum", fails=TRUE,
    also=("precision-loss", "cancellation"), family="detection", task="multilabel",
)  # fmt: skip
def suppression_by_shifted_boxes() -> Built:
    """MultimediaTechLab/YOLO#234: class times page is thousands, and a box forgets its corners."""
    return suppression(ShiftedOverlap)


@healthy(task="multilabel")
def suppression_by_class() -> Built:
    """torchvision's other way of batched_nms (vision#3371): classes compared, boxes left alone."""
    return suppression(MaskedOverlap)


class Overlap(nn.Module):
    """How much two boxes share."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return overlap(a[:, None], b[:, None])[:, 0]


class SameObject(nn.Module):
    """Do two boxes show the same object? From their overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.iou = Overlap()
        self.body = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 2))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.body(self.iou(a, b))


@planted("overflow", "iou", "mul prod sub div", fails=("16-true",), family="detection")
def area_of_large_boxes() -> Built:
    """pytorch/vision#3371: 300 by 400 pixels are more than 65504."""
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(1500, 2, generator=random) * 300
    size = 200 + torch.rand(1500, 2, generator=random) * 300
    same = torch.rand(1500, generator=random) < 0.5
    moved = corner + size * torch.where(same, 0.05, 0.6)[:, None]
    a, b = torch.cat([corner, corner + size], -1), torch.cat([moved, moved + size], -1)
    train = (a[:1000], b[:1000], same[:1000].long())
    return built(fitted(SameObject, train), (a[1000:], b[1000:], same[1000:].long()))


class Refined(nn.Module):
    """A box from a reference point and a correction, both before their sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(66, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, x: Tensor, point: Tensor) -> Tensor:
        delta = self.body(torch.cat([x.flatten(1), point], 1))
        point = point.clamp(0, 1)
        before = torch.log(point.clamp(min=1e-5) / (1 - point).clamp(min=1e-5))
        return (before + delta).sigmoid()


@healthy(task="regression")
def reference_points_at_the_edge() -> Built:
    """mmdetection#10335: 1 / 1e-5 is infinite in float16, and its sigmoid one, as it should be."""
    (x, _), (u, _) = data.digits()
    axis = torch.arange(8) / 7

    def task(x: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        random = torch.Generator().manual_seed(seed)
        ink = x[:, 0] / x[:, 0].sum((1, 2), keepdim=True)
        centre = torch.stack([(ink.sum(1) * axis).sum(1), (ink.sum(2) * axis).sum(1)], 1)
        point = torch.where(centre > 0.53, 1.0, centre)  # far ones are taken to the edge
        near = (centre + 0.1 * torch.randn(point.shape, generator=random)).clamp(0.05, 0.95)
        return x, torch.where(point < 1, near, point), torch.where(point < 1, centre, point)

    return built(fitted(Refined, task(x, 0), loss=F.mse_loss), task(u, 1))


class FiniteScalars(nn.Module):
    """Four numbers rounded to 8, 5, 5 and 5 levels, and the place of all four in the codebook."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor([8, 5, 5, 5]), persistent=False)
        self.register_buffer("basis", torch.tensor([1, 8, 40, 200]), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        level = (z.sigmoid() * (self.levels - 1)).round()
        return (level * self.basis).sum(-1).to(torch.int32)


class Tokens(nn.Module):
    """Codes of the four quarters of a digit, and a table of what they say of its class."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(16, 4)
        self.quantize, self.table = FiniteScalars(), nn.Embedding(1000, 32)
        self.head = nn.Linear(128, 10)
        self.project.requires_grad_(False).weight.data.mul_(12)

    def forward(self, x: Tensor) -> Tensor:
        quarters = F.unfold(x, 4, stride=4).transpose(1, 2)
        z = self.project(quarters - quarters.mean(-1, keepdim=True))
        return self.head(self.table(self.quantize(z)).flatten(1))


@planted(
    "precision-loss", "quantize", "sum mul _to_copy", fails=("bf16-true",), also=("absorption",),
    family="quantizer",
)  # fmt: skip
def finite_scalar_codes() -> Built:
    """lucidrains/vector-quantize-pytorch#114: bfloat16 counts to 256, the codes to 1000."""
    train, test = data.digits()
    return built(fitted(Tokens, train, epochs=60), test)


class Balanced(nn.Module):
    """Two of eight experts, chosen by sigmoid scores and a bias, gathered with index_add."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, 8, bias=False)
        self.register_buffer("bias", torch.linspace(-0.02, 0.02, 8))
        self.experts = nn.ModuleList(nn.Linear(dim, dim) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x).sigmoid()
        chosen = (scores + self.bias).topk(2, -1).indices
        weight = scores.gather(-1, chosen)
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            row, place = (chosen == i).nonzero(as_tuple=True)
            said = expert(x[row]) * weight[row, place, None]
            out.index_add_(0, row, said.to(out.dtype))
        return out


class Routed(nn.Module):
    """Features, an expert layer beside an identity, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.moe, self.head = nn.Linear(64, 32), Balanced(), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.enter(x.flatten(1)))
        return self.head(x + self.moe(x))


@healthy()
def experts_by_biased_scores() -> Built:
    """vllm#14027, Megatron-LM#1482: an expert may change, the answer does not."""
    train, test = data.digits()
    return built(fitted(Routed, train), test)
