"""What a report shows of the gradient check: builtins only, and no figure twice."""

import json

import pytest
import torch

from pytest_fp16.engine.gradients.evidence import Evidence
from pytest_fp16.engine.gradients.points import Point
from pytest_fp16.engine.gradients.probes.optimizer_probe import Probe
from pytest_fp16.engine.gradients.probes.second_look import SecondLook
from pytest_fp16.engine.gradients.rules.figures import figures, loss_scale, notes, worst_tensor
from pytest_fp16.precision import precision
from pytest_fp16.theory.gradient import Movement, Noise
from pytest_fp16.theory.rounding import BFLOAT16, FLOAT16

MOVED = Movement(0.9, 1.0, 1.0)


def noise(rho, allowed=1.0):
    return Noise(rho, allowed, 0.0, 1.0, 0.01, 0.0, 0.0)


def point(rho=1e-4, **more):
    return Point(4, [(1.0, 1.01)], noise(rho), **more)


def test_the_worst_tensor_is_so_for_what_it_may():
    seen = point(tensors={"a.weight": noise(2.0, 4.0), "b.weight": noise(1.0, 1.0)})
    assert worst_tensor(seen)[0] == "b.weight"
    assert worst_tensor(point()) == ("", None)


@pytest.mark.parametrize("size", [1e-9, 1e-7])
def test_a_scale_lifts_gradients_out_of_underflow(size):
    gradients = [torch.full((64,), size)]
    scale = loss_scale(Evidence(FLOAT16, points=[point(reference=gradients)]), precision("16-true"))
    assert size * scale >= FLOAT16.smallest_normal
    assert size * scale < FLOAT16.largest


def test_no_scale_where_none_is_needed_or_known():
    healthy = Evidence(FLOAT16, points=[point(reference=[torch.full((64,), 0.1)])])
    assert loss_scale(healthy, precision("16-true")) is None
    tiny = [point(reference=[torch.full((64,), 1e-7)])]
    assert loss_scale(Evidence(BFLOAT16, points=tiny), precision("bf16-true")) is None
    assert loss_scale(Evidence(FLOAT16), precision("16-true")) is None
    assert loss_scale(Evidence(FLOAT16, points=[point()]), precision("16-true")) is None


def test_a_loss_that_is_far_off_beside_sound_gradients_is_a_note():
    far = Point(4, [(0.002, 0.25)], noise(1e-4), tensors={"a.weight": noise(1e-4)})
    (said,) = notes(Evidence(FLOAT16, points=[far]))
    assert said.startswith("the loss is far off (0.25 where float32 gives 0.002, after 4 steps)")


def test_a_scaler_has_found_its_own():
    found = Evidence(FLOAT16, points=[point(scale=2.0**14), point(scale=2.0**12)])
    assert loss_scale(found, precision("16-mixed")) == 2.0**12


def test_notes_are_no_verdicts():
    many = [f"layers.{i}.bias" for i in range(5)]
    look = SecondLook(8, [2.0, 2.1], [1.0, 1.1], [0.5, 0.6], [0.5, 0.6])
    said = notes(
        Evidence(
            FLOAT16,
            points=[point(meaningless=many)],
            optimizer=Probe(MOVED, True, -1, {}, {}, 0.42),
            second=look,
            epsilon=("eps", 1e-8),
        )
    )
    assert len(said) == 4
    assert "layers.2.bias and 2 more" in said[0]
    assert "42% of updates" in said[1]
    assert "still learn" in said[2]
    assert "1e-08" in said[3]
    assert notes(Evidence(FLOAT16)) == []


def test_the_figures_survive_json():
    evidence = Evidence(
        FLOAT16,
        points=[point(1e-4), point(3e-4, tensors={"a.weight": noise(0.5)})],
        weights=MOVED,
        optimizer=Probe(MOVED, True, -1, {}, {}, 0.42),
        statistics={"n.running_mean": (MOVED, 0.1), "n.running_var": (MOVED, 0.3)},
        batch_size=16,
    )
    shown = figures(evidence)
    assert json.loads(json.dumps(shown)) == shown
    assert shown["rho"] == 3e-4
    assert [p["worst_tensor"] for p in shown["points"]] == ["", "a.weight"]
    assert shown["points"][0]["losses"] == [[1.0, 1.01]]
    assert (shown["updates_lost"], shown["weights_gain"]) == (0.42, 0.9)
    assert shown["slowest_statistic"]["name"] == "n.running_var"
