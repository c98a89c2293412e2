import torch

from pytest_fp16.engine.tracing.sites import Contributions, Owners, spacing
from pytest_fp16.theory.rounding import BFLOAT16, FLOAT16


def test_rows_follow_the_batch_wherever_it_is():
    owners = Owners(5)
    x = torch.arange(5.0)

    for shape, where in (((5, 3), 0), ((3, 5), 1), ((2, 3, 5), 2), ((2, 5, 4), 1)):
        view = [1] * len(shape)
        view[where] = 5
        rows = owners.rows(x.view(view).expand(shape))
        assert torch.equal(rows, x.unsqueeze(1).expand_as(rows)), shape
    assert not owners.shared


def test_a_batch_merged_with_another_dimension_is_outermost():
    owners = Owners(5)
    x = torch.arange(5.0).repeat_interleave(4).unsqueeze(1).expand(20, 3)

    assert torch.equal(owners.rows(x), torch.arange(5.0).unsqueeze(1).expand(5, 12))
    assert not owners.shared


def test_what_has_no_batch_belongs_to_all_and_says_so():
    owners = Owners(5)
    rows = owners.rows(torch.arange(6.0).view(2, 3))

    assert rows.shape == (5, 6)
    assert owners.shared


def test_one_input_owns_everything():
    owners = Owners(1)

    assert owners.rows(torch.ones(2, 3)).shape == (1, 6)
    assert not owners.shared


def test_spacing_is_zero_where_a_value_rounds_to_itself_anyway():
    x = torch.tensor([1.0, torch.inf, torch.nan, 0.0])

    assert spacing(x, FLOAT16).tolist() == [2.0**-10, 0.0, 0.0, 0.0]


def test_contributions_add_up_per_input_and_per_site():
    contributions = Contributions(Owners(5), torch.device("cpu"), (FLOAT16, BFLOAT16))
    y = torch.ones(5, 2, requires_grad=True)
    z = y * 3
    z.register_hook(contributions.hook(z, FLOAT16, ("a", "mul"), 1.0, True))
    out = z * torch.arange(5.0).unsqueeze(1)
    out.sum().backward()
    sums = contributions.sums[FLOAT16]
    each = torch.arange(5.0) * 2.0**-9  # the ulp of 3

    torch.testing.assert_close(sums.bound, each * 2 / 2)
    torch.testing.assert_close(sums.sigma, (each**2 * 2 / 12).sqrt())
    torch.testing.assert_close(contributions.sums[BFLOAT16].sigma, sums.sigma * 8)
    assert list(sums.by_site) == [("a", "mul")]
    contributions.reset()
    assert contributions.sums[FLOAT16].absolute.sum() == 0


def test_a_kernel_that_rounds_at_every_step_counts_each():
    one, four = (Contributions(Owners(1), torch.device("cpu"), (FLOAT16,)) for _ in range(2))
    for contributions, steps in ((one, 1.0), (four, 4.0)):
        hook = contributions.hook(torch.ones(3), FLOAT16, ("", "index_add"), steps, True)
        hook(torch.ones(3))
        hook(None)

    torch.testing.assert_close(four.sums[FLOAT16].sigma, 2 * one.sums[FLOAT16].sigma)


def test_what_is_far_too_small_loses_no_more_than_it_is():
    """A softmax has many such: they are zero in float16, and were zero nearly."""
    tiny = torch.tensor([2.0**-23, 2.0**-26, -(2.0**-30), 1.5 * 2.0**-40])
    assert spacing(tiny, FLOAT16).tolist() == [2.0**-24, 2.0**-24, 2.0**-28, 2.0**-38]
    worst = spacing(tiny, FLOAT16) / 2
    assert bool((worst >= (tiny - tiny.half().float()).abs()).all())
