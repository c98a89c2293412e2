"""The zeros of torch's fast path of `nn.TransformerEncoder`, held against torch's own."""

import copy

import pytest
import torch
from torch import nn

from pytest_fp16.engine.fast_path import fast_path_off, with_zero_padding, zero_padding
from pytest_fp16.mixing import keep_in_float32

pytestmark = pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype")


def encoder(norm=False, **options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, 2, nn.LayerNorm(16) if norm else None, **options).eval()


def padded(lengths, size=7, left=False):
    """True where a row is padded, as `src_key_padding_mask` has it."""
    place = torch.arange(size).flip(0) if left else torch.arange(size)
    return place[None] >= torch.tensor(lengths)[:, None]


X = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(1))
RIGHT = padded([3, 7, 1])
CAUSAL = torch.ones(7, 7, dtype=torch.bool).triu(1)
CALLS = {
    "padding": {"src_key_padding_mask": RIGHT},
    "no padding": {"src_key_padding_mask": padded([7, 7, 7])},
    "no mask": {},
    "padding on the left": {"src_key_padding_mask": padded([3, 7, 1], left=True)},
    "as numbers": {"src_key_padding_mask": torch.zeros(3, 7).masked_fill(RIGHT, -torch.inf)},
    "and a mask": {"src_key_padding_mask": padded([3, 7, 2]), "mask": CAUSAL},
}


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("call", CALLS)
@torch.no_grad()
def test_outputs_are_those_of_the_fast_path(call, norm):
    net = encoder(norm)
    wanted = net(X, **CALLS[call])  # by torch's own kernels
    own = copy.deepcopy(net)
    with fast_path_off():
        plain = own(X, **CALLS[call])
        with_zero_padding(own)
        found = own(X, **CALLS[call])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    differ = call in ("padding", "as numbers")
    assert torch.allclose(plain, wanted, rtol=1e-4, atol=1e-5) != differ


@pytest.mark.parametrize(
    "net",
    [
        encoder(enable_nested_tensor=False),
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 32, norm_first=True, batch_first=True),
            1,
            enable_nested_tensor=False,
        ).eval(),
        encoder().train(),
    ],
)
@torch.no_grad()
def test_where_torch_has_no_fast_path_nothing_changes(net):
    with fast_path_off(), zero_padding(net):
        torch.manual_seed(0)
        hooked = net(X, src_key_padding_mask=RIGHT)
    torch.manual_seed(0)
    torch.testing.assert_close(hooked, net(X, src_key_padding_mask=RIGHT), rtol=1e-4, atol=1e-5)
    assert bool(hooked[RIGHT].any())


class Plain(nn.TransformerEncoder):
    """Runs its layers itself, and packs nothing."""

    def forward(self, src, src_key_padding_mask=None):
        for layer in self.layers:
            src = layer(src, src_key_padding_mask=src_key_padding_mask)
        return src


def test_an_encoder_with_a_forward_of_its_own_has_none():
    net = Plain(encoder().layers[0], 2).eval()
    with zero_padding(net) as names:
        assert names == []


@torch.no_grad()
def test_a_copy_has_them_until_it_is_told_otherwise():
    net = encoder()
    with fast_path_off():
        plain = net(X, src_key_padding_mask=RIGHT)
        assert with_zero_padding(net) == [""]
        zeros = net(X, src_key_padding_mask=RIGHT)
        other = copy.deepcopy(net)
        assert torch.equal(other(X, src_key_padding_mask=RIGHT), zeros)
        with_zero_padding(other, False)
        assert torch.equal(other(X, src_key_padding_mask=RIGHT), plain)
        assert torch.equal(net(X, src_key_padding_mask=RIGHT), zeros)


def test_the_users_own_switch_is_kept_and_asked():
    mha = torch.backends.mha
    was = mha.get_fastpath_enabled()
    try:
        for wanted in (True, False):
            mha.set_fastpath_enabled(wanted)
            with fast_path_off(), fast_path_off():
                assert not mha.get_fastpath_enabled()
                with zero_padding(encoder()) as names:
                    assert names == [""] * wanted
            assert mha.get_fastpath_enabled() is wanted
    finally:
        mha.set_fastpath_enabled(was)


@torch.no_grad()
@pytest.mark.parametrize("name", ["layers.1", "layers.0.linear1", ""])
def test_kept_in_float32_it_has_the_same_zeros(name):
    wanted = encoder()(X, src_key_padding_mask=RIGHT)
    whole = nn.ModuleDict({"net": encoder()})
    kept = keep_in_float32(whole, [f"net.{name}".rstrip(".")])["net"]
    assert not kept.use_nested_tensor
    torch.testing.assert_close(kept(X, src_key_padding_mask=RIGHT), wanted, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):  # and where autocast would switch it off, none
        mixed = kept(X, src_key_padding_mask=RIGHT)
    assert ((mixed.float() - wanted).abs().max() > 0.1) == (name != "")


def test_for_gradients_there_are_none():
    kept = keep_in_float32(encoder(), ["layers.1"])
    with torch.no_grad():
        zeros = kept(X, src_key_padding_mask=RIGHT)
    assert (kept(X, src_key_padding_mask=RIGHT) - zeros).abs().max() > 0.1
