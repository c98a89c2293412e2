"""Copies of a model that share nothing with it, but what they are told to."""

import warnings

import pytest
import torch
from torch import nn

from pytest_fp16.engine.copies import make_model, own_model, shares_tensors
from pytest_fp16.errors import ModelError


def test_an_exported_program_is_copied_in_silence():
    """torch warns of its own classes as they are copied, which a suite takes for an error."""
    x = torch.randn(4, 3)
    model = torch.export.export(nn.Sequential(nn.Linear(3, 2)), (x,)).module()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = make_model(model)
    assert torch.equal(ours(x), model(x))


def test_a_function_makes_the_model():
    assert isinstance(make_model(lambda: nn.Linear(2, 2)), nn.Linear)
    with pytest.raises(ModelError, match="returned int, not a"):
        make_model(lambda: 3)
    with pytest.raises(ModelError, match=r"must be a torch\.nn\.Module or a function"):
        make_model("resnet")


def test_what_a_module_computed_and_keeps_is_copied_without_its_history():
    class Remembers(nn.Linear):
        def forward(self, x):
            self.seen = {"last": super().forward(x)}
            return self.seen["last"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        normed = torch.nn.utils.weight_norm(nn.Linear(4, 3))  # its weight is no leaf
    model = nn.Sequential(normed, Remembers(3, 2))
    x = torch.randn(5, 4)
    want = model(x)
    copied = make_model(model)
    assert torch.equal(copied(x), want)
    assert copied[0].weight is not model[0].weight
    assert model[1].seen["last"].grad_fn is not None, "the user's own is not changed"


def test_a_module_that_cannot_be_copied_says_what_to_do():
    with pytest.raises(ModelError, match=r"attribute engine \(.*pass a function that makes it"):
        make_model(refusing())


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize(
    "lazy", [lambda: nn.LazyLinear(4), nn.LazyBatchNorm1d, nn.LazyInstanceNorm1d]
)
def test_a_lazy_module_without_weights_is_refused(lazy):
    """Statistics that are not there yet cannot even be copied."""
    model = nn.Sequential(lazy(), nn.ReLU())
    for source in (model, lambda: model):
        with pytest.raises(ModelError, match=r"^0 is a lazy module without weights yet"):
            make_model(source)
    model(torch.randn(2, 4, 4))
    assert make_model(model) is not model


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_scripted_function_in_a_model_is_shared_by_its_copies():
    @torch.jit.script
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    model = nn.Linear(2, 2)
    model.part = nn.Identity()
    model.part.function = double
    ours = make_model(model)

    assert ours.part.function is double
    assert ours.part is not model.part


@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support")
@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc, torch.sparse_coo])
def test_sparse_tensors_of_a_model_are_copied(layout):
    model = nn.Linear(4, 4)
    model.register_buffer("graph", torch.eye(4).to_sparse(layout=layout))
    model.mask = nn.Parameter(torch.eye(4).to_sparse(layout=layout), requires_grad=False)
    model.plain = torch.eye(4).to_sparse(layout=layout)
    copied = make_model(model)
    for name in ("graph", "mask", "plain"):
        mine, theirs = getattr(copied, name), getattr(model, name)
        assert mine is not theirs
        assert type(mine) is type(theirs)
        assert mine.layout is layout
        assert torch.equal(mine.to_dense(), theirs.to_dense())
    assert "graph" in dict(copied.named_buffers())
    assert "mask" in dict(copied.named_parameters())


def test_a_compiled_model_is_its_own_module():
    model = nn.Linear(2, 2)
    wrapper = nn.Module()
    wrapper._orig_mod = model

    assert type(make_model(wrapper)) is nn.Linear


def test_a_model_in_parallel_is_its_own_module():
    """The wrapper of processes cannot be copied; the other runs threads, which nobody follows."""
    model = nn.Linear(2, 2)
    assert type(make_model(nn.DataParallel(model))) is nn.Linear
    assert type(make_model(lambda: nn.DataParallel(model))) is nn.Linear
    dist = torch.distributed
    if not dist.is_available():
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        copied = make_model(wrapped)
    finally:
        dist.destroy_process_group()
    assert type(copied) is nn.Linear
    assert torch.equal(copied.weight, model.weight)


def test_the_weights_of_another_are_read_where_they_lie():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model.tied = model[0].weight
    first = make_model(model)
    second = make_model(model, first)
    for mine, theirs in zip(second.parameters(), first.parameters(), strict=True):
        assert mine.data_ptr() == theirs.data_ptr()
        assert mine is not theirs
    assert second.tied is second[0].weight
    assert second[1].running_mean is not first[1].running_mean
    assert first[0].weight is not model[0].weight


class Driver:
    def train(self):
        return self


def test_a_trainer_is_no_model():
    with pytest.raises(ModelError, match=r"got Driver.; a trainer is not driven: hand in the mod"):
        make_model(Driver())


class Refuses:
    """Holds weights, and is not copied."""

    def __init__(self):
        self.weights = torch.ones(2)

    def __reduce_ex__(self, protocol):
        raise TypeError("no copies")


def refusing():
    model = nn.Linear(2, 2)
    model.engine = Refuses()
    return model


def test_what_a_function_gives_out_may_be_its_users_own():
    model = nn.Linear(2, 2)
    assert own_model(lambda: model) is not model
    assert torch.equal(own_model(lambda: model).weight, model.weight)
    assert isinstance(own_model(refusing), nn.Linear)
    kept = refusing()
    said = r"^model= returns the same module each time, and the model cannot be copied .*engine \("
    with pytest.raises(ModelError, match=said):
        own_model(lambda: kept)
    with pytest.raises(ModelError, match=said):
        own_model(lambda: nn.Sequential(kept))


def test_modules_share_what_lies_in_the_same_memory():
    one = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    other = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert shares_tensors(one, one)
    assert not shares_tensors(one, other)
    other[1].running_mean = one[1].running_mean
    assert shares_tensors(one, other)
    empty = [nn.ParameterList([torch.empty(0)]) for _ in range(2)]
    assert not shares_tensors(*empty)
