"""What is minimised: values by hand, for classes and for tags."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from stabviz.methods.objective import cross_entropy_objective, model_inputs


def says(logits, measured=None):
    """A model that says these logits whatever it is asked."""
    return lambda **inputs: SimpleNamespace(logits=logits, measured=measured)


def test_classes_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])) + torch.tensor([[2.0], [-1.0]])
    loss, measured = cross_entropy_objective()(says(logits), {"labels": torch.tensor([0, 1])})
    assert loss.item() == pytest.approx((math.log(2) + math.log(10)) / 2, rel=1e-6)
    assert measured["log_z"].item() == pytest.approx(0.5, abs=1e-6)  # log Z is 2 and -1
    assert measured["accuracy"].item() == 0.5


def test_tags_count_where_the_label_is_not_minus_100():
    logits_BLC = torch.log(
        torch.tensor([[[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]], [[0.25, 0.75], [0.6, 0.4], [0.3, 0.7]]])
    )
    labels_BL = torch.tensor([[-100, 1, 0], [0, -100, -100]])
    loss, measured = cross_entropy_objective()(says(logits_BLC), {"labels": labels_BL})
    assert loss.item() == pytest.approx((math.log(2) - math.log(0.9) + math.log(4)) / 3, rel=1e-6)
    assert measured["accuracy"].item() == pytest.approx(1 / 3)  # ties go to the first: 0.5, 0.5 says 0
    assert measured["log_z"].item() == pytest.approx(0.0, abs=1e-6)


def test_smoothing_spreads_the_target_over_all_classes():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    loss, _ = cross_entropy_objective(0.3)(says(logits), {"labels": torch.tensor([1])})
    by_hand = -(0.1 * math.log(0.5) + 0.8 * math.log(0.3) + 0.1 * math.log(0.2))
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 5, 11), torch.randint(11, (7, 5))
    labels[2] = -100
    loss, _ = cross_entropy_objective(0.1)(says(logits), {"labels": labels})
    torch.testing.assert_close(
        loss, F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    )


def test_gradient_is_softmax_minus_target_over_the_count():
    logits = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, -100], [-100, -100], [3, 0]])
    loss, _ = cross_entropy_objective()(says(logits.float()), {"labels": labels})
    loss.backward()
    counts = (labels != -100)[..., None]
    target = F.one_hot(labels.clamp(min=0), 4)
    expected = torch.where(counts, (logits.softmax(-1) - target) / 3, 0.0)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-5, atol=1e-7)


def test_half_precision_logits_are_taken_up_to_float32():
    logits = (torch.randn(4, 9) * 5).half()
    loss, _ = cross_entropy_objective()(says(logits), {"labels": torch.tensor([0, 3, 5, 8])})
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), torch.tensor([0, 3, 5, 8])))


def test_no_target_at_all_is_nan_with_gradient_zero():
    logits = torch.randn(2, 3, requires_grad=True)
    loss, _ = cross_entropy_objective()(says(logits), {"labels": torch.tensor([-100, -100])})
    assert math.isnan(loss.item())
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros(2, 3))


def test_measures_of_the_model_come_along_and_carry_no_graph():
    logits = torch.randn(2, 3, requires_grad=True)
    model = says(logits, {"max_attention_logit": torch.tensor(4.0)})
    _, measured = cross_entropy_objective()(model, {"labels": torch.tensor([0, 2])})
    assert measured["max_attention_logit"] == 4
    assert set(measured) == {"log_z", "accuracy", "max_attention_logit"}
    assert not any(value.requires_grad for value in measured.values())


def test_a_model_is_called_with_its_inputs_alone():
    batch = {
        name: torch.ones(1) for name in ("input_ids", "attention_mask", "position_ids", "labels", "rows")
    }
    assert list(model_inputs(batch)) == ["input_ids", "attention_mask", "position_ids"]


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_smoothing_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\); got"):
        cross_entropy_objective(share)
