"""Held-out sound models that decide inside: a comparison, a nearest code, a path, a choice."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import data
from benchmarks.cases.base import FP16, Built, built, fitted, healthy
from benchmarks.cases.planted_other import per_token


class Equilibrium(nn.Module):
    """A fixed point, iterated until it moves by less than 1e-4 or 30 times."""

    def __init__(self, dim: int = 48) -> None:
        super().__init__()
        self.give, self.keep = nn.Linear(64, dim), nn.Linear(dim, dim, bias=False)
        with torch.no_grad():
            self.keep.weight.mul_(0.4)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        given = self.give(x.flatten(1))
        z = torch.zeros_like(given)
        for _ in range(30):
            new = torch.tanh(given + 0.5 * self.keep(z))
            moved, z = (new - z).abs().max(), new
            if moved < 1e-4:
                break
        return self.head(z)


@healthy()
def equilibrium_until_it_rests() -> Built:
    """A deep equilibrium model: in 16 bits it stops after another number of steps."""
    train, test = data.digits()
    return built(fitted(Equilibrium, train), test)


class TreeAsProducts(nn.Module):
    """A decision tree by two matrix products and comparisons, as compilers of trees write it."""

    def __init__(self, tree: object, features: int) -> None:
        super().__init__()
        inner = [i for i, left in enumerate(tree.children_left) if left >= 0]
        leaves = [i for i, left in enumerate(tree.children_left) if left < 0]
        pick, paths = torch.zeros(features, len(inner)), torch.zeros(len(inner), len(leaves))
        for column, node in enumerate(inner):
            pick[tree.feature[node], column] = 1
            for sign, child in ((1, tree.children_left[node]), (-1, tree.children_right[node])):
                for leaf in _below(tree, child):
                    paths[column, leaves.index(leaf)] = sign
        votes = torch.tensor(tree.value[leaves][:, 0], dtype=torch.float32)
        self.register_buffer("pick", pick)
        self.register_buffer("limits", torch.tensor(tree.threshold[inner], dtype=torch.float32))
        self.register_buffer("paths", paths)
        self.register_buffer("depth", (paths > 0).float().sum(0))
        self.register_buffer("votes", votes / votes.sum(1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        left = (x.flatten(1) @ self.pick <= self.limits).to(x.dtype)
        return (left @ self.paths == self.depth).to(x.dtype) @ self.votes


def _below(tree: object, node: int) -> list[int]:
    if tree.children_left[node] < 0:
        return [node]
    return _below(tree, tree.children_left[node]) + _below(tree, tree.children_right[node])


@healthy()
def decision_tree_as_products() -> Built:
    """Hummingbird: comparisons of whole numbers with halves, all of them exact in 16 bits."""
    from sklearn.tree import DecisionTreeClassifier

    (x, y), (u, v) = data.digits()
    tree = DecisionTreeClassifier(max_depth=7, random_state=0)
    tree.fit((x * 16).flatten(1).numpy(), y.numpy())
    return built(TreeAsProducts(tree.tree_, 64), (u * 16, v))


class Codebook(nn.Module):
    """Each place is replaced by the nearest of 24 code vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 8, 2, stride=2)
        self.codes, self.quantise = nn.Embedding(24, 8), False
        self.up = nn.Sequential(nn.Conv2d(8, 32, 1), nn.ReLU(), nn.Conv2d(32, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        z = self.down(x).permute(0, 2, 3, 1)
        distance = (z[..., None, :] - self.codes.weight).square().sum(-1)
        near = self.codes(distance.argmin(-1)) if self.quantise else z
        return F.pixel_shuffle(self.up(near.permute(0, 3, 1, 2)), 2)


@healthy("regression", precisions=FP16)
def nearest_code_vector() -> Built:
    """A quantised autoencoder: a code as near as another may change, and the picture does not."""
    from sklearn.cluster import KMeans

    (x, _), (u, _) = data.digits()

    model = fitted(Codebook, (x, x), loss=F.mse_loss, epochs=40)
    with torch.no_grad():
        places = model.down(x).permute(0, 2, 3, 1).reshape(-1, 8)
        means = KMeans(24, n_init=1, random_state=0).fit(places.numpy()).cluster_centers_
        model.codes.weight.copy_(torch.from_numpy(means))
    model.quantise = True
    return built(model, (u, u))


class Greedy(nn.Module):
    """Three tokens, each chosen before the next is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.image = nn.Embedding(11, 16), nn.Linear(64, 32)
        self.cell, self.head = nn.GRUCell(16, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        state, said = torch.tanh(self.image(x.flatten(1))), []
        token = torch.full((len(x),), 10, device=x.device)
        for _ in range(3):
            state = self.cell(self.embed(token), state)
            said.append(self.head(state))
            token = said[-1].argmax(-1)
        return torch.stack(said, 1)


@healthy()
def greedy_decoding() -> Built:
    """A decoder that feeds its own choices back."""
    (x, y), (u, v) = data.digits()
    spell = lambda t: torch.stack([t, (t + 3) % 10, t * 7 % 10], 1)  # noqa: E731
    model = fitted(Greedy, (x, spell(y)), loss=per_token, epochs=40)
    return built(model, (u, spell(v)))


class Viterbi(nn.Module):
    """Scores of two tags a letter, and in evaluation the best path through them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv = nn.Embedding(28, 24), nn.Conv1d(24, 32, 5, padding=2)
        self.head, self.step = nn.Linear(32, 2), nn.Parameter(torch.eye(2) * 0.2)

    def forward(self, ids: Tensor) -> Tensor:
        score = self.head(F.relu(self.conv(self.embed(ids).transpose(1, 2))).transpose(1, 2))
        if self.training:
            return score
        best, back = score[:, 0], []
        for t in range(1, score.shape[1]):
            values, origin = (best[:, :, None] + self.step).max(1)
            back.append(origin)
            best = values + score[:, t]
        path = [best.argmax(1)]
        for origin in reversed(back):
            path.append(origin.gather(1, path[-1][:, None])[:, 0])
        return F.one_hot(torch.stack(path[::-1], 1), 2).to(score.dtype)


@healthy()
def viterbi_path() -> Built:
    """A tagger whose output is a path: every value is zero or one."""
    text = data.characters(32)
    label = (text.roll(-1, 1) >= 26).long()
    model = fitted(Viterbi, (text[:1500], label[:1500]), loss=per_token, epochs=5)
    return built(model, (text[2000:2300], label[2000:2300]))
