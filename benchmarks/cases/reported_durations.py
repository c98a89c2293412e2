"""Held-out durations, pitches, times of noise, chains of residues: numbers that are counted or cut.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_structures import settled
from benchmarks.cases.reported_tongues import drawn


def sequence_mask(length: Tensor, longest: int) -> Tensor:
    """VITS': which frames there are."""
    x = torch.arange(longest, dtype=length.dtype, device=length.device)
    return x.unsqueeze(0) < length.unsqueeze(1)


def generate_path(duration: Tensor, mask: Tensor) -> Tensor:
    """VITS': which phoneme each frame belongs to, from how many frames each lasts."""
    b, _, t_y, t_x = mask.shape
    cum_duration = torch.cumsum(duration, -1)
    path = sequence_mask(cum_duration.reshape(b * t_x), t_y).to(mask.dtype).view(b, t_x, t_y)
    path = path - F.pad(path, [0, 0, 1, 0, 0, 0])[:, :-1]
    return path.unsqueeze(1).transpose(2, 3) * mask


class Synthesizer(nn.Module):
    """Phonemes, how long each lasts, and what is said in each of 24 stretches of 20 frames."""

    def __init__(self, frames: int = 480, dim: int = 24) -> None:
        super().__init__()
        self.frames, self.dim = frames, dim
        self.emb, self.dp = nn.Embedding(40, dim), nn.Embedding(40, 1)
        self.proj, self.dec = nn.Conv1d(dim, dim, 1), nn.Conv1d(dim, 6, 20, 20)
        with torch.no_grad():
            self.dp.weight.copy_((torch.arange(40.0)[:, None] % 9 + 3.5).log())

    def forward(self, x: Tensor) -> Tensor:
        x_mask = (x > 0).unsqueeze(1)
        logw, x = self.dp(x).transpose(1, 2), self.emb(x) * math.sqrt(self.dim)
        x_mask = x_mask.to(x.dtype)
        m_p = self.proj(x.transpose(1, 2)) * x_mask
        w_ceil = torch.ceil(torch.exp(logw) * x_mask)
        y_lengths = torch.clamp_min(torch.sum(w_ceil, [1, 2]), 1).long()
        y_mask = sequence_mask(y_lengths, self.frames).unsqueeze(1).to(x_mask.dtype)
        attn_mask = torch.unsqueeze(x_mask, 2) * torch.unsqueeze(y_mask, -1)
        attn = generate_path(w_ceil.squeeze(1), attn_mask).squeeze(1)
        m_p = torch.matmul(attn.to(m_p.dtype), m_p.transpose(1, 2)).transpose(1, 2)
        return self.dec(m_p).transpose(1, 2)


@planted("absorption", "", "cumsum arange", fails=("bf16-true",), family="speech",
         also=("precision-loss",))  # fmt: skip
def frames_by_a_running_sum_of_durations() -> Built:
    """jaywalnut310/vits: bfloat16 counts to 256, and frames and where phonemes end to 480."""
    ids = (40 * drawn(120, 56, seed=1).sigmoid()).long().clamp(1, 39)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = Synthesizer().eval()
        said = model(ids)
        model.dec.bias -= said.mean((0, 1))
        label = model(ids).argmax(-1)
    return model, [(ids[i : i + 40], label[i : i + 40]) for i in (0, 40, 80)]


class CoarsePitch(nn.Module):
    """so-vits-svc and RVC: hertz to mel, mel to one of 255 bins, a vector for each."""

    def __init__(self, dim: int, f0_min: float = 50.0, f0_max: float = 1100.0) -> None:
        super().__init__()
        self.f0_mel_min = 1127 * math.log(1 + f0_min / 700)
        self.f0_mel_max = 1127 * math.log(1 + f0_max / 700)
        self.emb_pitch = nn.Embedding(256, dim)
        with torch.no_grad():
            place = torch.linspace(0, 1, 256)[:, None] * torch.arange(1, dim + 1) * math.pi / 2
            self.emb_pitch.weight.copy_(place.cos())

    def forward(self, f0: Tensor) -> Tensor:
        f0_mel = 1127 * torch.log(1 + f0 / 700)
        f0_mel[f0_mel > 0] = (f0_mel[f0_mel > 0] - self.f0_mel_min) * 254 / (
            self.f0_mel_max - self.f0_mel_min
        ) + 1
        f0_mel[f0_mel <= 1] = 1
        f0_mel[f0_mel > 255] = 255
        return self.emb_pitch(torch.round(f0_mel).long())


class Voice(nn.Module):
    """What is said, and at which pitch."""

    def __init__(self) -> None:
        super().__init__()
        self.pitch, self.content = CoarsePitch(8), nn.Linear(12, 8)
        self.body, self.head = nn.GRU(8, 24, batch_first=True), nn.Linear(24, 4)

    def forward(self, *, phone: Tensor, f0: Tensor) -> dict[str, Tensor]:
        x = self.content(phone) + self.pitch(f0)
        return {"logits": self.head(self.body(x)[0].mean(1)) * 4}


@planted("overflow", "pitch", "mul", fails=("16-true",), family="speech")
def pitches_in_255_bins() -> Built:
    """RVC, so-vits-svc: 300 Hz are 401 mel, times 254 are more than 65504, and in the last bin."""
    f0 = 90 + 60 * (drawn(300, 1, seed=2) + 0.3 * drawn(300, 24, seed=3)).exp()
    f0 = f0.clamp(60, 1000) * (drawn(300, 24, seed=4) > -1)
    data = {"phone": drawn(300, 24, 12, seed=5), "f0": f0}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = Voice().eval()
        model.head.bias -= model(**data)["logits"].mean(0) / 4
        said = model(**data)["logits"]
    sure = said.topk(2).values.diff().squeeze(1).argsort()[:225].sort().values
    data, label = {k: v[sure] for k, v in data.items()}, said.argmax(1)[sure]
    return model, [
        ({k: v[i : i + 75] for k, v in data.items()}, label[i : i + 75]) for i in (0, 75, 150)
    ]


def timestep_transform(
    t: Tensor, height: Tensor, width: Tensor, num_frames: Tensor, wide: bool
) -> Tensor:
    """Open-Sora's: noisier times for larger and longer films."""
    if wide:
        height, width, num_frames = height.float(), width.float(), num_frames.float()
    ratio_space = (height * width / (512 * 512)).sqrt()
    frames = torch.ones_like(num_frames) if num_frames[0] == 1 else num_frames // 17 * 5
    ratio = ratio_space * (frames / 1).sqrt()
    return ratio * t / (1 + (ratio - 1) * t)


class RectifiedFlow(nn.Module):
    """What is added to a latent at a time, by the size of its film."""

    def __init__(self, wide: bool) -> None:
        super().__init__()
        self.wide = wide
        self.t_embed, self.body = perceptron(1, 16), perceptron(8 + 16, 6)

    def forward(
        self, z: Tensor, t: Tensor, height: Tensor, width: Tensor, num_frames: Tensor
    ) -> Tensor:
        t = timestep_transform(t, height, width, num_frames, self.wide)
        t = self.t_embed(t.to(z.dtype).unsqueeze(-1))
        return self.body(torch.cat([z, t], dim=-1))


def films() -> tuple[Tensor, ...]:
    """Latents, times, and films of 51 frames in the usual sizes."""
    sizes = torch.tensor([[360.0, 640], [480, 854], [720, 1280], [512, 512]]).repeat(80, 1)
    t = torch.rand(320, generator=torch.Generator().manual_seed(6))
    return drawn(320, 8, seed=7), t, sizes[:, 0], sizes[:, 1], torch.full((320,), 51.0)


@planted("overflow", "", "mul", fails=("16-true",), family="diffusion", task="regression")
def times_of_large_films() -> Built:
    """hpcaitech/Open-Sora#523: 480 by 854 pixels are infinite in float16, and inf / inf NaN."""
    return taught(partial(RectifiedFlow, False), films())


@healthy(task="regression")
def times_of_large_films_in_float32() -> Built:
    """hpcaitech/Open-Sora#523, as it was mended: sizes are made float32 first."""
    return taught(partial(RectifiedFlow, True), films())


class AngularDistribution(nn.Module):
    """SchNetPack's: how wide the angles at an atom are, to powers of 1, 4, 16 and 32."""

    def __init__(self, zetas: tuple[int, ...] = (1, 4, 16, 32)) -> None:
        super().__init__()
        self.zetas = zetas

    def forward(self, cos_theta: Tensor, radial: Tensor) -> Tensor:
        total = []
        for zeta in self.zetas:
            for sign in (1.0, -1.0):
                angular = 2 ** (1 - zeta) * torch.pow(1.0 - sign * cos_theta, zeta)
                total.append((angular * radial).sum(-1))
        return torch.stack(total, -1)


class BehlerParrinello(nn.Module):
    """Energies of the atoms of a molecule, by the angles between pairs of their neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.angular = AngularDistribution()
        self.norm, self.net = nn.LayerNorm(8), perceptron(8, 1)

    def forward(self, triples: Tensor) -> Tensor:
        a, b = triples[..., :3], triples[..., 3:]
        r_ij, r_ik = a.norm(dim=-1), b.norm(dim=-1)
        cos_theta = (a * b).sum(-1) / (r_ij * r_ik)
        radial = torch.exp(-0.25 * (r_ij * r_ij + r_ik * r_ik))
        return self.net(self.norm(self.angular(cos_theta, radial))).sum(1)


@planted("overflow", "angular", "pow", fails=("16-true",), moot=("bf16-true", "bf16-mixed"),
         family="molecules", task="regression")  # fmt: skip
def angles_to_the_power_of_32() -> Built:
    """SchNetPack, n2p2: (1 + cos)^32 of an acute angle is beyond float16, and 2^-31 below it."""
    return taught(BehlerParrinello, (drawn(256, 5, 12, 6, seed=8),), 0.02)


class ProteinFeatures(nn.Module):
    """ProteinMPNN's: distances to the nearest residues of a chain, in sixteen bells."""

    def __init__(self, top_k: int = 8) -> None:
        super().__init__()
        self.top_k = top_k
        self.edge_embedding = nn.Linear(16, 24)

    def _dist(self, x: Tensor, mask: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
        mask_2d = mask.unsqueeze(1) * mask.unsqueeze(2)
        d = x.unsqueeze(1) - x.unsqueeze(2)
        d = mask_2d * torch.sqrt(torch.sum(d**2, 3) + eps)
        d_max = d.max(-1, keepdim=True).values
        return torch.topk(d + (1.0 - mask_2d) * d_max, self.top_k, dim=-1, largest=False)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        near, index = self._dist(x, mask)
        mu = torch.linspace(2.0, 22.0, 16, device=x.device).view(1, 1, 1, -1)
        rbf = torch.exp(-(((near.unsqueeze(-1) - mu) / 1.25) ** 2))
        return self.edge_embedding(rbf.to(self.edge_embedding.weight.dtype)), index


class Designer(nn.Module):
    """Which kind of amino acid each residue is, by its neighbours' distances."""

    def __init__(self) -> None:
        super().__init__()
        self.features = ProteinFeatures()
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 5)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        edges, index = self.features(x, mask)
        node = self.norm(edges.mean(2))
        index = index.flatten(1).unsqueeze(-1).expand(-1, -1, node.shape[-1])
        seen = torch.gather(node, 1, index).view(edges.shape).mean(2)
        return self.head(node + seen).mean(1) * 16


def chains(far: float) -> tuple[Tensor, Tensor]:
    """Loose chains of forty residues, some unresolved and at the origin, `far` from it."""
    step = drawn(256, 40, 3, seed=9) + 0.5 * drawn(256, 1, 3, seed=10)
    x = (3.8 * step / step.norm(dim=-1, keepdim=True)).cumsum(1)
    x = x * (0.7 + 0.3 * torch.arange(256).view(-1, 1, 1) % 3) + far
    mask = (drawn(256, 40, seed=11) > -1.6).float()
    return x * mask.unsqueeze(-1), mask


@planted("overflow", "features", "pow sum", fails=("16-true",), family="molecules")
def residues_far_from_an_unresolved_one() -> Built:
    """ProteinMPNN: what is unresolved is at the origin, 330 away, and inf times nothing NaN."""
    return settled(Designer, chains(190.0))
