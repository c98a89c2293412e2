import copy
import dataclasses
import inspect
import io
import pickle
import warnings
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_fp16.errors import ModelError
from pytest_fp16.mixing import Float32Island, cast_except, keep_in_float32

LOW = [torch.float16, torch.bfloat16]


class Attention(nn.Module):
    """One head, its softmax a module of its own."""

    def __init__(self, dim):
        super().__init__()
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.softmax = nn.Softmax(-1)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(self.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5) @ v)


class Transformer(nn.Module):
    def __init__(self, dim=16, words=20, tied=False):
        super().__init__()
        self.embed = nn.Embedding(words, dim)
        self.blocks = nn.ModuleList()
        for _ in range(2):
            block = nn.ModuleDict({"norm": nn.LayerNorm(dim), "mix": Attention(dim)})
            self.blocks.append(block)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, words, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, words):
        x = self.embed(words)
        for block in self.blocks:
            x = x + block["mix"](block["norm"](x))
        return self.head(self.norm(x))


class ByHand(nn.Module):
    """What a person writes around a module that must stay in float32."""

    def __init__(self, module, back):
        super().__init__()
        self.module, self.back = module, back

    def forward(self, x):
        x = x.float() if x.is_floating_point() else x
        return self.module(x).to(self.back)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Transformer().eval()
    for parameter in model.parameters():  # norms as trained, not ones and zeros
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.5, 0.2)
    return model


@pytest.fixture
def words():
    return torch.randint(0, 20, (3, 7), generator=torch.Generator().manual_seed(1))


def dtypes(model):
    return {name: p.dtype for name, p in model.named_parameters(remove_duplicate=False)}


def by_hand(model, dtype, names):
    model = copy.deepcopy(model).to(dtype)
    sources = {name: copy.deepcopy(model.get_submodule(name)) for name in names}
    for name in sources:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, ByHand(sources[name], dtype))
    return model


SETS = [["norm"], ["embed"], ["head"], ["blocks.0.mix.softmax"], ["blocks.1.mix", "norm", "embed"]]


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("names", SETS)
def test_bit_identical_to_casts_by_hand(model, words, dtype, names):
    hand = by_hand(model, dtype, names)
    for name in names:
        parent, _, child = name.rpartition(".")
        kept = getattr(hand.get_submodule(parent), child).module.float()
        kept.load_state_dict(model.get_submodule(name).state_dict())
    ours = cast_except(copy.deepcopy(model), dtype, names)
    out = ours(words)
    assert out.dtype == dtype
    assert torch.equal(out, hand(words))
    if names not in (["embed"], ["blocks.0.mix.softmax"]):  # a gather, and one too small to show
        assert not torch.equal(out, copy.deepcopy(model).to(dtype)(words))


def test_only_what_is_named_is_kept(model):
    cast_except(model, torch.float16, ["blocks.1.mix"])
    kept = {name for name, dtype in dtypes(model).items() if dtype == torch.float32}
    assert kept == {f"blocks.1.mix.{m}.{p}" for m in ("qkv", "out") for p in ("weight", "bias")}
    assert not any(isinstance(m, Float32Island) for m in model.blocks[0].modules())


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.half(),
        lambda m: m.to(torch.float16),
        lambda m: m.to("cpu", torch.float16),
        lambda m: m.to(torch.zeros(1, dtype=torch.float16)),
        lambda m: m.bfloat16().half(),
        lambda m: m.half().to("cpu"),
        lambda m: m.half().train().eval().requires_grad_(False),
    ],
)
def test_a_later_cast_leaves_the_kept_alone(model, words, cast):
    want = copy.deepcopy(model.norm.state_dict())
    cast(keep_in_float32(model, ["norm", "embed"]))
    assert all(torch.equal(v, want[k]) for k, v in model.norm.state_dict().items())
    assert model.head.weight.dtype == torch.float16
    assert model(words).dtype == torch.float16


def test_a_parameter_stays_the_one_the_optimizer_holds(model):
    before = dict(model.named_parameters())
    cast_except(model, torch.bfloat16, ["norm"])
    assert all(p is before[name] for name, p in model.named_parameters())


def test_after_the_cast_it_works_though_digits_are_lost(model, words):
    half = copy.deepcopy(model).bfloat16()
    with pytest.warns(UserWarning, match="in 16 bits already"):
        keep_in_float32(half, ["norm", "embed"])
    assert half.norm.weight.dtype == half.embed.weight.dtype == torch.float32
    assert torch.equal(half.embed.weight, model.embed.weight.bfloat16().float())
    assert half(words).dtype == torch.bfloat16
    assert half.embed(words).dtype == torch.bfloat16


def test_back_to_float32_it_is_the_float32_model_again(model, words):
    want = model(words)
    again = keep_in_float32(copy.deepcopy(model), ["norm", "embed"]).half().float()
    assert again.embed(words).dtype == torch.float32
    assert again(words).dtype == torch.float32
    assert torch.allclose(again(words), want, atol=0.05)


def test_in_a_float32_model_nothing_changes(model, words):
    want = model(words)
    assert torch.equal(keep_in_float32(model, ["norm", "blocks.0.mix"])(words), want)


def test_a_double_model_stays_double(model, words):
    keep_in_float32(model, ["norm"]).double()
    assert model.norm.weight.dtype == torch.float64
    assert model(words).dtype == torch.float64


def test_the_whole_model(model, words):
    want = model(words)
    cast_except(model, torch.float16, [""])
    assert set(dtypes(model).values()) == {torch.float32}
    assert torch.equal(model(words), want.half())


def test_a_single_name_may_stand_without_a_list(model):
    assert isinstance(keep_in_float32(model, "norm").norm, Float32Island)


def test_twice_is_once(model, words):
    once = cast_except(copy.deepcopy(model), torch.bfloat16, ["norm"])
    twice = keep_in_float32(keep_in_float32(model, ["norm"]).bfloat16(), ["norm", "norm"])
    assert type(twice.norm) is type(once.norm)
    assert torch.equal(once(words), twice(words))


@pytest.mark.parametrize("names", [["blocks"], ["blocks.0", "blocks.1"]])
def test_a_container_stands_for_its_members(model, words, names):
    cast_except(model, torch.bfloat16, names)
    assert {d for n, d in dtypes(model).items() if n.startswith("blocks")} == {torch.float32}
    assert type(model.blocks) is nn.ModuleList
    assert model(words).dtype == torch.bfloat16


def test_tied_weights_stay_tied_and_their_other_owner_is_kept_too(words):
    torch.manual_seed(0)
    model = cast_except(Transformer(tied=True), torch.bfloat16, ["head"])
    assert model.head.weight is model.embed.weight
    assert model.embed.weight.dtype == torch.float32
    assert model.embed(words).dtype == torch.bfloat16
    assert model(words).dtype == torch.bfloat16


class Shared(nn.Module):
    """`inner` runs inside `kept` and by itself."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.kept = nn.Sequential(self.inner, nn.Tanh())

    def forward(self, x):
        return self.kept(x) + self.inner(x)


def test_a_part_that_is_used_elsewhere_is_kept_there_as_well():
    model = cast_except(Shared(), torch.float16, ["kept"])
    x = torch.randn(2, 4).half()
    wide = F.linear(x.float(), model.inner.weight, model.inner.bias)
    assert model.inner.weight.dtype == torch.float32
    assert torch.equal(model(x), torch.tanh(wide).half() + wide.half())


def test_a_shared_module_under_its_second_name():
    model = cast_except(Shared(), torch.float16, ["kept.0"])
    assert isinstance(model.inner, Float32Island)
    assert model(torch.randn(2, 4).half()).dtype == torch.float16


@dataclasses.dataclass
class Answer:
    states: torch.Tensor
    count: int
    more: object = None


Pair = namedtuple("Pair", ["a", "b"])


class Nested(nn.Module):
    """Returns what it was given, and what dtype each tensor had inside."""

    def forward(self, *args, **kwargs):
        x = args[0]
        self.seen = [x.dtype, kwargs["deep"]["list"][0].dtype, kwargs["ids"].dtype]
        return {
            "tuple": (x, None, 3),
            "pair": Pair(x, [x]),
            "answer": Answer(x, 2, {"y": x}),
            "ids": kwargs["ids"],
            "text": "t",
        }


def test_nested_inputs_and_outputs_keep_their_types():
    model = nn.ModuleDict({"part": Nested(), "rest": nn.Linear(1, 1)})
    cast_except(model, torch.float16, ["part"])
    x = torch.ones(2).half()
    out = model["part"](x, deep={"list": [x]}, ids=torch.arange(2))
    assert model["part"].seen == [torch.float32, torch.float32, torch.int64]
    assert type(out["pair"]) is Pair
    assert type(out["answer"]) is Answer
    assert [out["tuple"][1:], out["answer"].count, out["text"]] == [(None, 3), 2, "t"]
    found = [out["tuple"][0], out["pair"].a, out["pair"].b[0]]
    found += [out["answer"].states, out["answer"].more["y"]]
    assert {t.dtype for t in found} == {torch.float16}
    assert out["ids"].dtype == torch.int64


def test_a_recurrent_module_with_a_packed_sequence():
    torch.manual_seed(0)
    model = nn.ModuleDict({"rnn": nn.LSTM(3, 4, batch_first=True), "rest": nn.Linear(4, 2)})
    want, _ = model["rnn"](torch.ones(2, 5, 3))
    cast_except(model, torch.bfloat16, ["rnn"])
    packed = nn.utils.rnn.pack_padded_sequence(
        torch.ones(2, 5, 3).bfloat16(), torch.tensor([5, 3]), batch_first=True
    )
    out, (h, c) = model["rnn"](packed)
    assert type(out) is nn.utils.rnn.PackedSequence
    assert {out.data.dtype, h.dtype, c.dtype} == {torch.bfloat16}
    padded, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
    assert torch.equal(padded[0], want[0].bfloat16())


def test_batch_statistics_are_kept_and_learn_in_float32():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    reference = copy.deepcopy(model[1])
    cast_except(model, torch.bfloat16, ["1"]).train()
    x = torch.randn(4, 1, 8, 8).bfloat16()
    model(x)
    reference(model[0](x).float())
    assert model[1].running_var.dtype == torch.float32
    assert torch.equal(model[1].running_var, reference.running_var)
    assert model[1].num_batches_tracked.dtype == torch.int64


def test_gradients_are_float32_inside_and_16_bit_outside(model, words):
    cast_except(model, torch.bfloat16, ["norm"]).train()
    F.cross_entropy(model(words).flatten(0, 1).float(), words.flatten()).backward()
    assert model.norm.weight.grad.dtype == torch.float32
    assert model.head.weight.grad.dtype == torch.bfloat16
    assert model.norm.weight.grad.abs().sum() > 0
    model.half()
    assert model.norm.weight.grad.dtype == torch.float32
    assert model.head.weight.grad.dtype == torch.float16


@pytest.mark.parametrize("dtype", LOW)
def test_under_autocast_it_runs_in_float32_and_outputs_stay_so(model, words, dtype):
    want = {}

    def watch(name):
        return lambda m, args, out: want.update({name: (args[0].dtype, out.dtype)})

    model.blocks[0]["mix"].qkv.register_forward_hook(watch("outside"))
    model.blocks[1]["mix"].qkv.register_forward_hook(watch("inside"))
    keep_in_float32(model, ["blocks.1.mix"])
    with torch.autocast("cpu", dtype=dtype):
        out = model(words)
        assert torch.is_autocast_enabled("cpu")
    assert want["outside"][1] == dtype
    assert want["inside"] == (torch.float32, torch.float32)
    assert out.dtype == dtype


def test_under_autocast_bit_identical_to_casts_by_hand(model, words):
    class Off(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                return self.module(x.float())

    hand = copy.deepcopy(model)
    hand.blocks[1]["mix"] = Off(hand.blocks[1]["mix"])
    keep_in_float32(model, ["blocks.1.mix"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(words), hand(words))


def test_autocast_is_on_again_after_an_error(model):
    keep_in_float32(model, ["head"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(RuntimeError):
            model.head(torch.ones(1, 3))
        assert torch.is_autocast_enabled("cpu")


def test_the_state_dict_has_the_same_keys_and_loads_both_ways(model, words):
    plain = copy.deepcopy(model).state_dict()
    cast_except(model, torch.bfloat16, ["norm", "embed"])
    assert list(model.state_dict()) == list(plain)
    other = keep_in_float32(Transformer(), ["norm", "embed"]).bfloat16()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(words), model(words))
    other.load_state_dict(plain)
    assert torch.equal(other.norm.weight, plain["norm.weight"])
    Transformer().load_state_dict(model.state_dict())


def test_a_16_bit_checkpoint_that_is_assigned_is_widened(model, words):
    low = copy.deepcopy(model).bfloat16()
    cast_except(model, torch.bfloat16, ["norm", "embed"])
    model.load_state_dict(low.state_dict(), assign=True)
    assert model.norm.weight.dtype == model.embed.weight.dtype == torch.float32
    assert model.head.weight.dtype == torch.bfloat16
    assert model.embed(words).dtype == torch.bfloat16
    assert model(words).dtype == torch.bfloat16


def _saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), _saved])
def test_copies_are_independent_and_equal(model, words, copied):
    cast_except(model, torch.bfloat16, ["norm", "embed"])
    want = model(words)
    twin = copied(model)
    assert type(twin.norm) is type(model.norm)
    assert torch.equal(twin(words), want)
    assert twin.half().norm.weight.dtype == torch.float32
    with torch.no_grad():
        twin.norm.weight.zero_()
    assert torch.equal(model(words), want)
    assert not torch.equal(twin(words), want)


@pytest.mark.parametrize("mixed", [False, True])
def test_it_compiles_without_a_break(model, words, mixed):
    names = ["norm", "embed", "blocks.1.mix"]
    keep_in_float32(model, names)
    if not mixed:
        model.bfloat16()
    torch._dynamo.reset()
    fast = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        assert torch.equal(fast(words), model(words))
    torch._dynamo.reset()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_device_without_autocast_has_none_on(model, words, compiled):
    keep_in_float32(model, ["norm"])
    model.bfloat16().to("meta")
    torch._dynamo.reset()
    run = torch.compile(model, backend="eager", fullgraph=True) if compiled else model
    with torch.no_grad():
        assert run(words.to("meta")).dtype == torch.bfloat16
    assert model.norm.weight.dtype == torch.float32
    torch._dynamo.reset()


def test_a_parallel_model_may_be_handed_in():
    """By the names that a report gives, which are those of the model in it."""
    inner = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    model = nn.DataParallel(inner)
    assert keep_in_float32(model, ["1"]) is model
    model.half()
    assert [p.dtype for p in inner.parameters()] == [torch.float16] * 2 + [torch.float32] * 2


def test_a_compiled_model_may_be_handed_in(model, words):
    torch._dynamo.reset()
    fast = torch.compile(model, backend="eager")
    with torch.no_grad():
        fast(words)
        assert keep_in_float32(fast, ["norm"]) is fast
        fast.bfloat16()
        assert model.norm.weight.dtype == torch.float32
        assert torch.equal(fast(words), model(words))
    torch._dynamo.reset()


def test_it_is_still_what_it_was(model):
    keep_in_float32(model, ["norm"])
    assert isinstance(model.norm, nn.LayerNorm)
    assert type(model.norm).__name__ == "Float32LayerNorm"
    assert inspect.signature(model.norm.forward) == inspect.signature(nn.LayerNorm(1).forward)


def test_parametrized_modules(words):
    torch.manual_seed(0)
    model = Transformer()
    nn.utils.parametrizations.weight_norm(model.head)
    cast_except(model, torch.bfloat16, ["head"])
    assert {d for n, d in dtypes(model).items() if n.startswith("head")} == {torch.float32}
    assert torch.equal(copy.deepcopy(model)(words), model(words))
    assert model(words).dtype == torch.bfloat16


@pytest.mark.parametrize("names", [["layers.0.norm1"], ["layers.1.self_attn"], ["layers.0"]])
@pytest.mark.parametrize("padded", [False, True])
def test_the_fused_paths_of_torch_do_not_run_past_a_kept_module(names, padded):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(2, 5, 16)
    mask = torch.tensor([[False] * 5, [False] * 4 + [True]]) if padded else None
    want = model(x, src_key_padding_mask=mask)
    cast_except(model, torch.bfloat16, names)
    with torch.no_grad():
        out = model(x.bfloat16(), src_key_padding_mask=mask)
    assert out.dtype == torch.bfloat16
    counted = slice(None, 4) if padded else slice(None)
    assert torch.allclose(out[:, counted].float(), want[:, counted], atol=0.1)


def test_query_key_and_value_stay_one_tensor():
    seen = []

    class Attends(nn.Module):
        def forward(self, query, key, value):
            seen.append(query is key is value)
            return query

    keep_in_float32(nn.ModuleDict({"a": (part := Attends())}), ["a"])
    x = torch.ones(1).half()
    part(x, key=x, value=x)
    assert seen == [True]


def test_a_move_to_another_device_follows(model):
    cast_except(model, torch.bfloat16, ["norm", "embed"]).to("meta")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model.norm.weight.dtype == torch.float32
    assert model.embed(torch.zeros(2, dtype=torch.int64, device="meta")).dtype == torch.bfloat16


@pytest.mark.parametrize("swap", [False, True])
def test_both_ways_torch_converts_parameters(model, words, swap):
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        cast_except(model, torch.bfloat16, ["norm", "embed"])
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    assert model.norm.weight.dtype == torch.float32
    assert model.head.weight.dtype == torch.bfloat16
    assert model(words).dtype == torch.bfloat16


def test_every_cast_of_torch_goes_through_apply():
    """The one private method that is overridden: were it gone, islands would be cast."""
    for cast in (nn.Module.half, nn.Module.bfloat16, nn.Module.to, nn.Module.float):
        assert "_apply" in cast.__code__.co_names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hed", "Transformer has no module 'hed'; did you mean 'head'?"),
        (
            "blocks.2.mix.qkv",
            "Transformer has no module 'blocks.2.mix.qkv'; did you mean 'blocks.1.mix.qkv' or "
            "'blocks.0.mix.qkv' or 'blocks.1.mix'?",
        ),
        (
            "encoder.softmax",
            "Transformer has no module 'encoder.softmax'; did you mean 'blocks.0.mix.softmax' or "
            "'blocks.1.mix.softmax'?",
        ),
        ("?", "Transformer has no module '?'; see model.named_modules()"),
    ],
)
def test_an_unknown_name_is_refused_with_near_ones(model, name, text):
    with pytest.raises(ModelError) as raised:
        keep_in_float32(model, ["norm", name])
    assert str(raised.value) == text
    assert not any(isinstance(m, Float32Island) for m in model.modules())


def test_what_is_no_list_of_names_is_refused(model):
    with pytest.raises(ModelError, match=r"names of submodules, such as .* \(got NoneType\)"):
        keep_in_float32(model, None)
    with pytest.raises(ModelError, match=r"has no module LayerNorm"):
        keep_in_float32(model, [model.norm])


def test_a_part_of_multi_head_attention_that_is_never_called_is_refused():
    model = nn.TransformerEncoderLayer(8, 2, 8)
    with pytest.raises(ModelError) as raised:
        keep_in_float32(model, ["self_attn.out_proj"])
    assert str(raised.value) == (
        "'self_attn.out_proj' is never called: nn.MultiheadAttention reads its weights directly; "
        "keep 'self_attn' instead"
    )


def test_a_forward_that_was_replaced_is_refused(model):
    model.norm.forward = lambda x: x
    with pytest.raises(ModelError) as raised:
        keep_in_float32(model, ["norm"])
    assert str(raised.value) == (
        "the forward of 'norm' was replaced on the module itself; keep it in float32 before that, "
        "or keep its parent"
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_scripted_module_is_refused(model):
    model.head = torch.jit.script(model.head)
    with pytest.raises(ModelError) as raised:
        keep_in_float32(model, ["head"])
    assert str(raised.value) == (
        "'head' is scripted; keep the module it was made from, and trace that"
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_kept_model_can_be_traced(model, words):
    kept = cast_except(model, torch.float16, ["norm", "embed"]).eval()
    with torch.no_grad():
        traced = torch.jit.trace(kept, words)
        assert torch.equal(traced(words), kept(words))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(model, words):
    cast_except(model, torch.float16, ["norm", "embed"]).cuda()
    assert model.norm.weight.dtype == torch.float32
    assert model(words.cuda()).dtype == torch.float16
    with torch.autocast("cuda", dtype=torch.float16):
        assert model.float().norm(torch.ones(1, 16).half().cuda()).dtype == torch.float32


def test_complex_buffers_stay_complex_beside_kept_modules():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.register_buffer("turn", torch.polar(torch.ones(2), torch.ones(2)))
    cast_except(model, torch.float16, ["0"])
    assert (model.turn.dtype, model[1].weight.dtype) == (torch.complex64, torch.float16)
    assert model[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("names", "said"), [(["1"], "'1' in 16 bits already"), (["0", "1"], "'0', '1' in 16 bits")]
)
def test_digits_that_are_lost_already_are_told(names, said):
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)).half()
    with pytest.warns(UserWarning, match=said):
        keep_in_float32(model, names)
    assert model[1].weight.dtype == torch.float32


def test_nothing_is_told_where_no_digit_is_lost():
    model = keep_in_float32(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), ["1"]).half()
    keep_in_float32(model, ["1"])  # it is in float32
    keep_in_float32(nn.Sequential(nn.Linear(2, 2), nn.Softmax(-1)).half(), ["1"])
    with torch.device("meta"):
        empty = nn.Linear(2, 2, dtype=torch.float16)
    keep_in_float32(empty, [""])
    keep_in_float32(nn.Linear(2, 2).half(), [""], quiet=True)


class Coder(nn.Module):
    """Is entered by `decode`, as an autoencoder is."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def decode(self, x, scale=1.0):
        assert x.dtype is torch.float32
        assert not torch.is_autocast_enabled("cpu")
        return self.square(self.lin(x)) * scale

    def square(self, h):
        return h * h

    def size(self):
        return self.lin.weight.sum()

    def forward(self, x):
        return self.decode(x)


class Decoded(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.coder = nn.Linear(4, 4), Coder()

    def forward(self, x):
        return self.coder.decode(self.lin(x), scale=2.0)


def test_a_kept_module_may_be_entered_by_another_method():
    torch.manual_seed(0)
    model = keep_in_float32(Decoded(), ["coder"])
    x = torch.randn(3, 4)
    wanted = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(x)
    assert mixed.dtype is torch.float32
    half = copy.deepcopy(model).half()
    low = half(x.half())
    assert low.dtype is torch.float16
    assert torch.allclose(low.float(), wanted, atol=1e-2)
    assert half.coder.size().dtype is torch.float32  # what is given no tensor is as it was
    assert half.coder.square(torch.full((1,), 300.0)).item() == 90000.0
    assert half.coder.decode.__name__ == "decode"
    assert pickle.loads(pickle.dumps(half))(x.half()).dtype is torch.float16
