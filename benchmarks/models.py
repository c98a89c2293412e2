"""The benchmarks' models, trained on the spot and cached: ``trained(name, seed=0)``.

Own small definitions, so that nobody needs a hub or torchvision. Weights are a function of name,
seed and recipe alone; they lie in ``benchmarks/.cache`` (ignored by git).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.data import CACHE


class MLP(nn.Module):
    """Two hidden layers on flattened pixels."""

    def __init__(self, inputs: int = 784, hidden: int = 256, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
        )
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class ResMLP(nn.Module):
    """A residual network of linear layers: each block adds to its input."""

    def __init__(self, width: int = 96, depth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(784, width))
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.second = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(F.relu(first(x)))
        return self.head(F.relu(x))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around an identity (or 1x1) shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """The CIFAR residual network of 6n+2 layers for one input channel."""

    def __init__(self, blocks: int = 3, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        stages, inputs = [], width
        for stage in range(3):
            outputs = width * 2**stage
            for block in range(blocks):
                stages.append(BasicBlock(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


class Attention(nn.Module):
    """Multi-head self-attention over [N, T, D] by the fused operation."""

    def __init__(self, dim: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(n, t, d))


class TransformerBlock(nn.Module):
    """Pre-norm attention and a GELU perceptron, each beside an identity."""

    def __init__(self, dim: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, causal)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A small vision transformer with a class token."""

    def __init__(
        self, size: int = 28, patch: int = 4, dim: int = 64, depth: int = 4, heads: int = 4
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, dim) * 0.02)
        self.blocks = nn.Sequential(*[TransformerBlock(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


# name: (constructor, epochs, training images, batch size, peak learning rate)
RECIPES: dict[str, tuple[Callable[[], nn.Module], int, int, int, float]] = {
    "mlp": (MLP, 4, 60_000, 128, 1e-3),
    "resmlp": (ResMLP, 3, 60_000, 128, 1e-3),
    "resnet8": (lambda: ResNet(1, 8), 3, 20_000, 64, 4e-3),
    "resnet20": (lambda: ResNet(3, 16), 2, 24_000, 64, 4e-3),
    "vit": (ViT, 4, 24_000, 64, 2e-3),
}


def fit(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    labels: Tensor,
    *,
    epochs: int,
    batch: int = 64,
    rate: float = 2e-3,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    seed: int = 0,
) -> nn.Module:
    """Train with AdamW under a one-cycle schedule; deterministic by seed. Returns it in eval."""
    torch.manual_seed(seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    steps = epochs * -(-len(labels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(labels)).split(batch):
            optimizer.zero_grad()
            loss(model(*(x[index] for x in inputs)), labels[index]).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


def cached(key: str, model: nn.Module, train: Callable[[nn.Module], object]) -> nn.Module:
    """The model with its cached weights, trained first where there are none.

    Written to a name of its own and moved into place, because benchmarks run side by side.
    """
    path = CACHE / f"{key}.pt"
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    with torch.random.fork_rng(devices=[]):
        train(model)
    CACHE.mkdir(exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    torch.save(model.state_dict(), scratch)
    scratch.replace(path)
    return model.eval()


def trained(name: str, seed: int = 0) -> nn.Module:
    """A model of `RECIPES` trained on Fashion-MNIST, in eval mode, on the CPU in float32."""
    make, epochs, count, batch, rate = RECIPES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
    recipe = hashlib.sha256(f"{model}{epochs, count, batch, rate}".encode()).hexdigest()[:8]

    def train(model: nn.Module) -> None:
        x, y = data.fashion("train")
        fit(
            model, (x[:count],), y[:count], epochs=epochs, batch=batch, rate=rate, seed=seed
        )  # fmt: skip

    return cached(f"{name}-{seed}-{recipe}", model, train)


@torch.inference_mode()
def accuracy(model: nn.Module, x: Tensor, y: Tensor, batch: int = 500) -> float:
    """Share of right predictions, in float32."""
    pairs = zip(x.split(batch), y.split(batch), strict=True)
    return sum(int((model(a).argmax(-1) == b).sum()) for a, b in pairs) / len(y)


def main() -> None:
    """Train what is not cached and print each model's accuracy."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="*", default=list(RECIPES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in options.names:
        start = time.perf_counter()
        share = accuracy(trained(name, options.seed), *data.fashion("test"))
        print(f"{name}: {share:.2%} in {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
