"""Held-out documents and waves: pages flattened, words and answers scored, peaks, levels, codes.

Each is written in the shape its project has; outputs of a random model are the labels.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases.base import ALL, TRUE, Built, healthy, planted
from benchmarks.cases.reported_quantities import perceptron, taught
from benchmarks.cases.reported_structures import settled
from benchmarks.cases.reported_tongues import decided, drawn


def fiducials(number: int) -> Tensor:
    """Points along the upper and the lower edge of a line of text."""
    x = torch.linspace(-1.0, 1.0, number // 2)
    return torch.cat([torch.stack([x, torch.full_like(x, y)], 1) for y in (-1.0, 1.0)])


class GridGenerator(nn.Module):
    """Thin-plate splines, as deep-text-recognition-benchmark has them."""

    def __init__(self, number: int, height: int, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        c = fiducials(number)
        r = torch.cdist(c, c) + torch.eye(number)
        ones = torch.ones(number, 1)
        delta = torch.cat([
            torch.cat([ones, c, r.square() * r.log()], dim=1),
            torch.cat([torch.zeros(2, 3), c.T], dim=1),
            torch.cat([torch.zeros(1, 3), ones.T], dim=1),
        ])  # fmt: skip
        ys = (torch.arange(-height, height, 2) + 1.0) / height
        xs = (torch.arange(-width, width, 2) + 1.0) / width
        p = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=2).view(-1, 2)
        norm = torch.cdist(p, c)
        rbf = norm.square() * torch.log(norm + eps)
        p_hat = torch.cat([torch.ones(len(p), 1), p, rbf], dim=1)
        self.register_buffer("inv_delta_C", torch.linalg.inv(delta))
        self.register_buffer("P_hat", p_hat)

    def forward(self, points: Tensor) -> Tensor:
        zeros = torch.zeros(len(points), 3, 2, dtype=points.dtype, device=points.device)
        t = torch.matmul(self.inv_delta_C, torch.cat([points, zeros], dim=1))
        return torch.matmul(self.P_hat, t)


class Rectified(nn.Module):
    """A net that finds where the edges of a line are, and the line made straight."""

    def __init__(self, number: int = 20, height: int = 16, width: int = 48) -> None:
        super().__init__()
        self.shape = (height, width)
        self.localize = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 3 * 11, 2 * number)
        )
        self.register_buffer("start", fiducials(number))
        self.grid = GridGenerator(number, height, width)

    def forward(self, image: Tensor) -> Tensor:
        moved = self.start + 0.3 * torch.tanh(self.localize(image)).view(len(image), -1, 2)
        grid = self.grid(moved).view(len(image), *self.shape, 2)
        return F.grid_sample(image, grid.to(image.dtype), padding_mode="border",
                             align_corners=True)  # fmt: skip


@planted("precision-loss", "grid", "matmul bmm mm expand _to_copy", task="regression",
         family="documents", fails=ALL, also=("cancellation",))  # fmt: skip
def pages_flattened_by_splines() -> Built:
    """deep-text-recognition-benchmark: bends by weights of tens, which cancel."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        image = F.interpolate(torch.rand(96, 1, 8, 24), scale_factor=2.0, mode="bilinear")
    return taught(Rectified, (image,), 0.02)


class Lexicon(nn.Module):
    """Which word of a small lexicon a strip says: the likelihood of each by its alignments."""

    def __init__(self, wide: bool, letters: int = 11, words: int = 8, length: int = 4) -> None:
        super().__init__()
        self.wide, self.blank = wide, 0
        self.net = perceptron(12, letters)
        random = torch.Generator().manual_seed(1)
        self.register_buffer(
            "lexicon", torch.randint(1, letters, (words, length), generator=random)
        )

    def forward(self, strip: Tensor) -> Tensor:
        log_probs = self.net(strip).mul(3).log_softmax(-1).transpose(0, 1)
        if self.wide:
            log_probs = log_probs.float()
        t, n, _ = log_probs.shape
        scores = []
        for word in self.lexicon:
            loss = F.ctc_loss(
                log_probs, word.expand(n, -1), torch.full((n,), t), torch.full((n,), len(word)),
                blank=self.blank, reduction="none", zero_infinity=True,
            )  # fmt: skip
            scores.append(-loss)
        return torch.stack(scores, dim=1)


def strips() -> tuple[Tensor]:
    """Strips of a dozen columns."""
    return (drawn(300, 14, 12, seed=2),)


@planted("unsupported-op", "", "_ctc_loss ctc_loss", fails=TRUE, family="documents")
def words_scored_by_their_alignments() -> Built:
    """pytorch: ctc_loss takes float32 and float64; autocast's log_softmax is float32 already."""
    return decided(partial(Lexicon, False), strips())


@healthy()
def words_scored_by_their_alignments_in_float32() -> Built:
    """The same with log-probabilities made float32."""
    return decided(partial(Lexicon, True), strips())


class Choices(nn.Module):
    """A language model that reads four answers, and how likely each is as a whole."""

    def __init__(self, wide: bool, words: int = 400, dim: int = 32) -> None:
        super().__init__()
        self.wide = wide
        self.embed, self.rnn = nn.Embedding(words, dim), nn.GRU(dim, dim, batch_first=True)
        self.lm_head = nn.Linear(dim, words)
        with torch.no_grad():
            self.lm_head.weight *= 6

    def forward(self, *, input_ids: Tensor) -> dict[str, Tensor]:
        n, choices, _ = input_ids.shape
        ids = input_ids.flatten(0, 1)
        logits = self.lm_head(self.rnn(self.embed(ids))[0])[:, :-1]
        if self.wide:
            logits = logits.float()
        said = F.log_softmax(logits, dim=-1).gather(2, ids[:, 1:, None]).squeeze(-1)
        return {"logits": said.sum(-1).view(n, choices)}


def answers(wide: bool) -> Built:
    """Four answers of 200 words to each of 240 questions, that differ in their last sixth."""
    random = torch.Generator().manual_seed(4)
    ids = torch.randint(0, 400, (240, 1, 200), generator=random).repeat(1, 4, 1)
    ids[:, :, 190:] = torch.randint(0, 400, (240, 4, 10), generator=random)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = Choices(wide).eval()
        said = torch.cat([model(input_ids=part)["logits"] for part in ids.split(60)])
    sure = (said.topk(2).values.diff().squeeze(1)).argsort()[:180].sort().values
    ids, label = ids[sure], said.argmax(1)[sure]
    return model, [({"input_ids": ids[i : i + 60]}, label[i : i + 60]) for i in (0, 60, 120)]


@planted("absorption", "", "sum _log_softmax", fails=("bf16-true",),
         fails_cpu=("bf16-mixed",), family="documents",
         also=("precision-loss", "cancellation"))  # fmt: skip
def answers_by_likelihoods_of_all_their_words() -> Built:
    """lm-evaluation-harness#2921: bfloat16 knows -1500 to eight, and answers differ by fours."""
    return answers(False)


@healthy()
def answers_by_likelihoods_in_float32() -> Built:
    """lm-evaluation-harness#2921: the softmax and what follows in float32."""
    return answers(True)


class Peaks(nn.Module):
    """CenterNet's peaks: places that are the largest of their neighbourhood, and how many."""

    def __init__(self, by_logits: bool) -> None:
        super().__init__()
        self.by_logits = by_logits
        self.blur = nn.Conv2d(1, 1, 5, padding=2, bias=True)
        with torch.no_grad():
            axis = torch.exp(-0.5 * (torch.arange(-2.0, 3.0) / 1.2) ** 2)
            self.blur.weight.copy_(5 * torch.outer(axis, axis))
            self.blur.bias.fill_(-2.0)

    def forward(self, image: Tensor) -> Tensor:
        heat = self.blur(image)
        if not self.by_logits:
            heat = heat.sigmoid()
        peak = F.max_pool2d(heat, 3, stride=1, padding=1)
        keep = (peak == heat).to(heat.dtype)
        score = heat.sigmoid() if self.by_logits else heat
        return (score * keep > 0.5).flatten(1).sum(1).float()


def lights(by_logits: bool) -> Built:
    """Pictures of up to twelve lights, none at a pixel's centre."""
    random = torch.Generator().manual_seed(5)
    image = torch.zeros(256, 1, 36, 36)
    for one in image:
        for at in torch.randperm(36, generator=random)[
            : int(torch.randint(1, 13, (), generator=random))
        ]:
            y, x = 3 + 6 * int(at // 6), 3 + 6 * int(at % 6)
            near = 0.6 + 0.6 * torch.rand(2, 2, generator=random)
            one[0, y : y + 2, x : x + 2] = near
    return taught(partial(Peaks, by_logits), (image,), 0.02)


@planted("precision-loss", "", "sigmoid eq max_pool2d max_pool2d_with_indices", task="regression",
         fails=ALL, family="detection", also=("absorption",))  # fmt: skip
def lights_counted_by_their_peaks() -> Built:
    """xingyizhou/CenterNet: sigmoids near one are one, and a light has several largest pixels."""
    return lights(False)


class WaveNetFront(nn.Module):
    """Levels of a wave by mu-law, a table of 256, and what is made of them."""

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        self.mu = levels - 1
        self.table, self.conv = nn.Embedding(levels, 16), nn.Conv1d(16, 16, 5, stride=4)
        self.head = nn.Linear(16, 5)
        with torch.no_grad():
            x = torch.linspace(-1, 1, levels)[:, None]
            self.table.weight.copy_(torch.sin(x * torch.arange(1.0, 17.0)))

    def forward(self, wave: Tensor) -> Tensor:
        squeezed = torch.sign(wave) * torch.log1p(self.mu * wave.abs()) / math.log1p(self.mu)
        level = ((squeezed + 1) / 2 * self.mu + 0.5).to(torch.int64)
        x = self.table(level).transpose(1, 2)
        return self.head(F.relu(self.conv(x)).mean(2))


@planted("absorption", "", "add embedding _to_copy", fails=("bf16-true",), family="speech",
         also=("precision-loss", "unsupported-op"))  # fmt: skip
def waves_by_levels_of_their_logarithm() -> Built:
    """torchaudio's mu_law_encoding: 255 and a half is 256 in bfloat16, which no table has."""
    return settled(WaveNetFront, ((0.4 * drawn(400, 96, seed=6)).clamp(-1, 1),))
