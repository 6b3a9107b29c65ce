"""What explains an answer is what its definition says."""

import numpy as np
import pytest

from tests import tiny
from tljax.inference import grad_cam
from tljax.inference.classifier import load
from tljax.models import ForwardContext
from tljax.report.plots import heat_over

CLASSES = np.array([0, 1, 2, 1])


@pytest.fixture(scope="module")
def classifier(finished):
    return load(finished)


@pytest.fixture(scope="module")
def squares(classifier, photos):
    return np.stack([classifier.see((photos / f"{name}/000.png").read_bytes()) for name in (*tiny.CLASSES, "red")])


def test_grad_cam_under_mean_and_classifier_is_the_class_activation_map(classifier, squares):
    """There the gradient of a class by a map is its weight over the map's area (Zhou et al. 2016)."""
    logits, heat = grad_cam.make_grad_cam(classifier)(squares, CLASSES)
    maps = np.asarray(
        classifier.model.apply(classifier.variables, classifier.normalize(squares), ForwardContext(), stop_stage="pool")
    )
    weights = classifier.variables["params"]["fc"]["kernel"][:, CLASSES].T / (maps.shape[1] * maps.shape[2])
    expected = np.maximum(np.einsum("bhwc,bc->bhw", maps, weights), 0)
    assert heat.shape == expected.shape and expected.max() > 0
    np.testing.assert_allclose(heat, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(logits, classifier.forward(squares), rtol=1e-4, atol=1e-5)


def test_saliency_is_how_fast_the_logit_changes_with_a_pixel(classifier, squares):
    _, found = grad_cam.make_saliency(classifier)(squares, CLASSES)
    x, step = np.asarray(classifier.normalize(squares)), 2e-2
    assert found.shape == x.shape[:3]
    for row, column in ((3, 5), (16, 16), (30, 2)):
        slopes = []
        for color in range(3):
            moved = np.zeros_like(x)
            moved[:, row, column, color] = step
            up, down = (
                np.asarray(classifier.model.apply(classifier.variables, x + s * moved, ForwardContext()))
                for s in (1, -1)
            )
            slopes.append((up - down)[np.arange(4), CLASSES] / (2 * step))
        np.testing.assert_allclose(found[:, row, column], np.abs(slopes).max(0), rtol=0.15, atol=2e-3)


def test_without_a_class_the_most_probable_one_is_explained(classifier, squares):
    for make in (grad_cam.make_grad_cam, grad_cam.make_saliency):
        run = make(classifier)
        logits, heat = run(squares, np.full(4, grad_cam.BEST))
        np.testing.assert_array_equal(run(squares, np.asarray(logits).argmax(1))[1], heat)


def test_an_earlier_stage_has_finer_maps(classifier, squares):
    _, heat = grad_cam.make_grad_cam(classifier, "layer1")(squares, CLASSES)
    assert heat.shape == (4, 8, 8)


def test_of_one_logit_each_side_is_explained(one_logit, squares):
    run = grad_cam.make_grad_cam(load(one_logit))
    against, towards = (np.asarray(run(squares, np.full(4, side))[1]) for side in (0, 1))
    assert against.max() > 0 and towards.max() > 0
    assert (np.minimum(against, towards) == 0).all()


def test_the_overlay_covers_what_is_hot_and_leaves_the_rest():
    square, heat = np.full((32, 32, 3), 90, np.uint8), np.zeros((4, 4), np.float32)
    assert (heat_over(square, heat) == square).all()
    heat[0, 0] = 3
    shown = heat_over(square, heat)
    assert (shown[24:, 24:] == 90).all() and not (shown[:4, :4] == 90).all()
