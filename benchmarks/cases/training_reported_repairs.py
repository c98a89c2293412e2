"""Models, steps and optimizers before a commit that repaired them for 16 bits, and after it.

As `training_reported_mended`.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.training import MIXED, SGD, TRUE, case, mlp, recipe


class Remembering(nn.Module):
    """Features, and the last 256 of them with their labels."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.body, self.head = mlp(64, 64, 16), nn.Linear(16, 10)
        self.kept, self.labels = torch.zeros(256, 16), torch.full((256,), -1)
        self.at, self.mended = 0, mended

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def remember(self, h: Tensor, y: Tensor) -> None:
        if self.mended:
            self.kept = self.kept.type(h.dtype)
        at = torch.arange(self.at, self.at + len(y)) % 256
        self.kept[at], self.labels[at] = h.detach(), y
        self.at = (self.at + len(y)) % 256


def remembered(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy, and features like those kept of the same class."""
    x, y = batch
    h = model.body(x)
    model.remember(h, y)
    like = y[:, None] == model.labels
    scores = 0.2 * h @ model.kept.to(h.dtype).t()
    near = -(scores.log_softmax(-1) * like).sum(-1) / like.sum(-1)
    return F.cross_entropy(model.head(h), y) + 0.1 * near.mean()


@case(f"{TRUE} {MIXED}")
def cross_batch_memory() -> dict:
    """A memory in float32 (before KevinMusgrave/pytorch-metric-learning@d77df2e)."""
    return recipe(partial(Remembering, False), loss=None, training_step=remembered)


@case(sound=f"{TRUE} {MIXED}")
def cross_batch_memory_cast() -> dict:
    """The same, kept in the features' type."""
    return recipe(partial(Remembering, True), loss=None, training_step=remembered)


class Triangles(nn.Module):
    """Pixels as pairs that are updated by the two other sides of a triangle."""

    def __init__(self, mended: bool) -> None:
        super().__init__()
        self.first, self.ways = nn.Linear(1, 16), nn.Linear(16, 64)
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 16)
        self.head, self.mended = nn.Linear(1024, 10), mended

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x.squeeze(1).unsqueeze(-1)).relu()
        a, b, g, k = (200 * self.ways(z)).chunk(4, -1)
        a, b = a * torch.sigmoid(g), b * torch.sigmoid(k)
        if self.mended:
            a, b = a / a.std(), b / b.std()
            with torch.autocast(x.device.type, enabled=False):
                sides = torch.einsum("bikc,bjkc->bijc", a.float(), b.float())
            sides = sides.to(self.norm.weight.dtype)
        else:
            sides = torch.einsum("bikc,bjkc->bijc", a, b)
        z = z + self.out(self.norm(sides))
        return self.head(z.flatten(1))


@case("16-true 16-mixed", "bf16-true bf16-mixed")
def triangle_update() -> dict:
    """Sums of products above 65504 (before aqlaboratory/openfold@6625e8d)."""
    return recipe(partial(Triangles, False), optimizer=partial(SGD, lr=0.02), epochs=5)


@case(sound=f"{TRUE} {MIXED}")
def triangle_update_divided() -> dict:
    """The same, divided by their spread first and in float32."""
    return recipe(partial(Triangles, True), optimizer=partial(SGD, lr=0.02), epochs=5)


class Powered(nn.Module):
    """The cubic mean of features over all pixels, some of them small everywhere."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.features, self.norm = nn.Conv2d(1, 48, 3), nn.BatchNorm1d(48)
        self.head, self.least = nn.Linear(48, 10), least
        self.register_buffer("shift", torch.linspace(0, 7, 48)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        h = F.softplus(self.features(x) - self.shift).flatten(2)
        mean = h.clamp(self.least, 100).pow(3).mean(-1)
        return self.head(self.norm(mean.clamp(self.least, 100).pow(1 / 3)))


@case("16-true", "bf16-true bf16-mixed")
def power_mean() -> dict:
    """Cubes that underflow, under a root (before pyg-team/pytorch_geometric@377545b)."""
    return recipe(partial(Powered, 0.0), epochs=15)


@case(sound=f"{TRUE} bf16-mixed")
def power_mean_clamped() -> dict:
    """The same, of at least 1e-4."""
    return recipe(partial(Powered, 1e-4), epochs=15)


class Masks(nn.Module):
    """Four queries of 128 x 128 masks, and a class."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.kind = mlp(64, 64, 32), nn.Linear(32, 10)
        self.masks = nn.Linear(32, 4 * 64)

    def forward(self, x: Tensor):
        h = self.body(x).relu()
        if not self.training:
            return self.kind(h)
        masks = 100 * self.masks(h).view(-1, 4, 8, 8)
        return self.kind(h), F.interpolate(masks, scale_factor=16).flatten(2)


def matched(model: nn.Module, batch: tuple[Tensor, Tensor], mended: bool) -> Tensor:
    """Bright and dark pixels are masks, each for the query that costs least."""
    from scipy.optimize import linear_sum_assignment

    x, y = batch
    kind, masks = model(x)
    large = F.interpolate(x, scale_factor=16).flatten(2)
    true = torch.cat([large > 0.6, large < 0.1], 1)
    loss = F.cross_entropy(kind, y)
    for mask, gt in zip(masks[:8], true[:8], strict=True):
        with torch.no_grad():
            pos = F.binary_cross_entropy_with_logits(mask, torch.ones_like(mask), reduction="none")
            neg = F.binary_cross_entropy_with_logits(mask, torch.zeros_like(mask), reduction="none")
            gt = gt.to(pos.dtype)
            if mended:
                pos, neg, gt = pos.float(), neg.float(), gt.float()
            region = torch.autocast(x.device.type, enabled=False) if mended else nullcontext()
            with region:
                cost = torch.einsum("nc,mc->nm", pos, gt) + torch.einsum("nc,mc->nm", neg, 1 - gt)
            rows, columns = linear_sum_assignment((cost / mask.shape[1]).cpu())
        chosen = mask[torch.as_tensor(rows)], gt[torch.as_tensor(columns)].to(mask.dtype)
        loss = loss + 0.01 * F.binary_cross_entropy_with_logits(*chosen)
    return loss


@case(f"{TRUE} {MIXED}")
def matched_masks() -> dict:
    """Costs summed over 16384 points, and given to scipy (open-mmlab/mmdetection#11559)."""
    given = {"epochs": 4}
    return recipe(Masks, loss=None, training_step=partial(matched, mended=False), **given)


@case(sound=f"{TRUE} {MIXED}")
def matched_masks_widened() -> dict:
    """The same in float32."""
    given = {"epochs": 4}
    return recipe(Masks, loss=None, training_step=partial(matched, mended=True), **given)


class StableAdamW(torch.optim.Optimizer):
    """AdamW whose step is divided by how far squares are above their mean, at least eps²."""

    def __init__(self, params, lr: float, widened: bool) -> None:
        super().__init__(params, {"lr": lr})
        self.widened = widened

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                g, state = p.grad, self.state[p]
                g = g.float() if self.widened else g
                if not state:
                    state |= {"t": 0, "m": torch.zeros_like(g), "v": torch.zeros_like(g)}
                state["t"] += 1
                m, v, t = state["m"], state["v"], state["t"]
                b1, b2 = (0.9 - 0.9**t) / (1 - 0.9**t), (0.99 - 0.99**t) / (1 - 0.99**t)
                m.lerp_(g, 1 - b1)
                v.mul_(b2).addcmul_(g, g, value=1 - b2)
                rms = (g.square() / v.clamp(min=1e-8**2)).mean().sqrt().clamp(min=1.0)
                p.sub_((group["lr"] / rms * m / (v.sqrt() + 1e-8)).to(p.dtype))


@case("16-true", f"bf16-true {MIXED}")
def stable_adamw() -> dict:
    """g² / max(v, 1e-16) where both are zero (after kozistr/pytorch_optimizer)."""
    return recipe(optimizer=partial(StableAdamW, lr=2e-3, widened=False))


@case(sound=f"{TRUE} {MIXED}")
def stable_adamw_widened() -> dict:
    """The same with states in float32, as that library had it for 16 bits."""
    return recipe(optimizer=partial(StableAdamW, lr=2e-3, widened=True))


class AdaBelief(torch.optim.Optimizer):
    """timm's, which widens weights in place for the step, or a copy of them."""

    def __init__(self, params, lr: float, copies: bool) -> None:
        super().__init__(params, {"lr": lr})
        self.copies = copies

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                narrow = p.dtype if p.dtype != torch.float32 else None
                if narrow is not None and not self.copies and narrow == torch.float16:
                    p.data, p.grad = p.data.float(), p.grad.float()
                g = p.grad.float() if self.copies else p.grad
                w = p.float() if self.copies else p
                state = self.state[p]
                if not state:
                    state |= {"t": 0, "m": torch.zeros_like(w), "s": torch.zeros_like(w)}
                state["t"] += 1
                m, s, t = state["m"], state["s"], state["t"]
                m.mul_(0.9).add_(g, alpha=0.1)
                s.mul_(0.999).addcmul_(g - m, g - m, value=0.001).add_(1e-16)
                denominator = (s.sqrt() / (1 - 0.999**t) ** 0.5).add_(1e-8)
                w.addcdiv_(m, denominator, value=-group["lr"] / (1 - 0.9**t))
                if self.copies:
                    p.copy_(w)
                elif p.dtype != narrow and narrow is not None:
                    p.data, p.grad = p.data.half(), p.grad.half()


@case(sound=f"16-true {MIXED}")
def belief_in_place() -> dict:
    """Weights that are float32 during the step alone (before timm@a426511)."""
    return recipe(optimizer=partial(AdaBelief, lr=2e-3, copies=False))


@case(sound=f"{TRUE} {MIXED}")
def belief_of_copies() -> dict:
    """The same on copies, for bfloat16 too (huggingface/pytorch-image-models@a426511)."""
    return recipe(optimizer=partial(AdaBelief, lr=2e-3, copies=True))


class Copying(nn.Module):
    """Classes from two ways, each of which may be masked: by log(mask + tiny)."""

    def __init__(self, tiny: float | None) -> None:
        super().__init__()
        self.say, self.copy, self.tiny = mlp(), mlp(), tiny

    def forward(self, x: Tensor) -> Tensor:
        said, copied = self.say(x), self.copy(x)
        both = torch.cat([said, copied], -1).log_softmax(-1)
        dark = (x.mean((1, 2, 3)) < 0.3)[:, None]
        tiny = torch.finfo(both.dtype).tiny if self.tiny is None else self.tiny
        masks = [(m.to(both.dtype) + tiny).log() for m in (dark, ~dark)]
        return torch.logaddexp(both[:, :10] + masks[0], both[:, 10:] + masks[1])


@case(sound=f"bf16-true {MIXED}")
def copying_network() -> dict:
    """log(mask + 1e-45), which is -inf in 16 bits (before allenai/allennlp@593dd8c)."""
    return recipe(partial(Copying, 1e-45))


@case(sound=f"{TRUE} {MIXED}")
def copying_network_by_type() -> dict:
    """The same with the type's least number."""
    return recipe(partial(Copying, None))
