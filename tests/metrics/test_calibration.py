"""How sure a network is for how often it is right, and the temperature that mends it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests import tiny
from tljax.metrics.accuracy import by_class, wilson_interval
from tljax.metrics.calibration import (
    BINS,
    FITTED,
    Temperature,
    calibration,
    fit_temperature,
    log_probabilities,
    reliability,
)
from tljax.report import plots
from tljax.report.console import make_console, scaled_in_words
from tljax.train import single_run

QUIET = make_console(quiet=True)


def logits_of(confidence):
    """Of two classes, the first with these probabilities."""
    confidence = np.asarray(confidence)
    return np.log(np.stack([confidence, 1 - confidence], axis=1))


def drawn(count, scale, seed=0):
    """Logits that are `scale` times as sure as the chances that their labels are drawn with."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, 4)) * 2
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return scale * logits, (chances.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(size=(200, 5)) * 3


def test_probabilities(logits):
    scaled = logits / 2.0
    wanted = np.exp(scaled) / np.exp(scaled).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(log_probabilities(logits, 2.0)), wanted, rtol=1e-12)
    one = np.exp(log_probabilities(logits[:, :1].astype(np.float32)))
    np.testing.assert_allclose(one[:, 1], 1 / (1 + np.exp(-logits[:, 0])), rtol=1e-6)
    np.testing.assert_allclose(one.sum(axis=1), 1)


def test_the_temperature_is_the_one_that_labels_were_drawn_with():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(20_000, 5)) * 2
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(5, p=row) for row in chances])
    assert fit_temperature(logits, labels).temperature == pytest.approx(1.0, abs=0.03)
    found = fit_temperature(3 * logits, labels)  # three times too sure
    assert found.temperature == pytest.approx(3.0, abs=0.1)
    assert found.fit_mistakes == (logits.argmax(1) != labels).sum() and found.fit_images == 20_000 and not found.raw
    assert fit_temperature(logits / 2, labels).temperature == pytest.approx(0.5, abs=0.02)  # too unsure


@pytest.mark.parametrize("count", [1, 2, 24, 300])
@pytest.mark.parametrize("sure", [0.01, 1.0, 30.0])
def test_images_that_are_all_right_sharpen_nothing(count, sure):
    """24 of them gave 0.05, the bound, and wrong answers to others more than 99%."""
    labels = np.random.default_rng(count).integers(0, 3, count)
    for logits in (sure * np.eye(3)[labels], sure * (2 * (labels % 2) - 1.0)[:, None]):
        known = labels if logits.shape[1] > 1 else labels % 2
        found = fit_temperature(logits, known)
        assert found == Temperature(1.0, count, 0, found.raw)
        assert f"all {count} validation images are right" in found.raw


def test_few_images_leave_the_logits_nearer_to_what_they_are():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(4000, 3)) * 2
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    moved = [np.mean([abs(np.log(fit_temperature(4 * logits[i : i + n], labels[i : i + n]).temperature))
                      for i in range(0, 40 * n, n)]) for n in (5, 20, 100)]  # fmt: skip
    assert moved[0] < moved[1] < moved[2] < np.log(4) * 1.05
    lone = fit_temperature(logits[:1], (labels[:1] + 1) % 3)
    assert (lone.temperature, lone.fit_mistakes) == (1.0, 1) and lone.raw


@given(st.integers(1, 30), st.integers(1, 4), st.floats(1e-3, 1e4), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_a_temperature_is_one_or_helps_what_it_was_fitted_on(images, outputs, scale, seed, right):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(images, outputs)) * scale
    answers = log_probabilities(logits).argmax(1)
    labels = np.where(rng.random(images) < right, answers, rng.integers(0, max(outputs, 2), images))
    found, rows = fit_temperature(logits, labels), np.arange(images)
    assert (found.fit_images, found.fit_mistakes) == (images, (answers != labels).sum())
    assert bool(found.raw) == (found.temperature == 1.0)
    assert 1 / 20 <= found.temperature <= 20

    def loss(temperature):
        return -log_probabilities(logits, temperature)[rows, labels].sum()

    assert loss(found.temperature) <= loss(1.0)
    order = rng.permutation(images)
    again = fit_temperature(logits[order], labels[order])
    assert again.temperature == pytest.approx(found.temperature, rel=1e-4)


def test_the_error_is_that_of_a_sum_by_hand():
    """Guo et al. 2017, eq. 3: two bins, the second one right by half; the edge of a bin belongs to the one below."""
    found = reliability(logits_of([0.62, 0.64, 0.81, 0.85, 0.83, 0.84]), np.array([0, 1, 0, 1, 0, 1]))
    assert found["ece"] == pytest.approx(2 / 6 * abs(0.5 - 0.63) + 4 / 6 * abs(0.5 - 0.8325))
    seen = {round(b["from"], 3): (b["seen"], b["correct"]) for b in found["bins"] if b["seen"]}
    assert seen == {0.6: (2, 1), 0.8: (4, 2)}
    assert found["bins"][12]["confidence"] == pytest.approx(0.8325)
    assert found["bins"][12]["interval95"] == list(wilson_interval(2, 4))
    assert len(found["bins"]) == BINS and found["bins"][0]["accuracy"] is None
    edge = reliability(np.zeros((3, 5)), np.zeros(3, int))  # sure by 1/5 = 3/15
    assert edge["bins"][2]["seen"] == 3 and edge["ece"] == pytest.approx(0.8)


def test_one_logit_is_two_logits_of_which_one_is_zero():
    logits = np.random.default_rng(0).normal(size=(300, 1)) * 3
    labels = np.random.default_rng(1).integers(0, 2, 300)
    both = np.concatenate([np.zeros_like(logits), logits], axis=1)
    one, two = (
        calibration({"val": x, "test": x}, {"val": labels, "test": labels}, chosen=True) for x in (logits, both)
    )
    assert one == two
    assert by_class(logits, labels, ("a", "b")) == by_class(both, labels, ("a", "b"))


def test_who_is_calibrated_is_within_chance_and_who_is_too_sure_is_not():
    ends = [reliability(*drawn(400, 1.0, seed)) for seed in range(40)]
    assert sum(one["ece"] <= one["ece_if_calibrated"]["upper"] for one in ends) >= 36
    assert np.mean([one["ece"] for one in ends]) == pytest.approx(
        np.mean([one["ece_if_calibrated"]["mean"] for one in ends]), rel=0.15
    )
    sure = reliability(*drawn(400, 3.0))
    assert sure["ece"] > 2 * sure["ece_if_calibrated"]["upper"]


def test_the_temperature_is_validations_and_mends_the_test():
    (val, known), (test, labels) = drawn(3000, 3.0, 1), drawn(3000, 3.0, 2)
    found = calibration({"val": val, "test": test}, {"val": known, "test": labels}, chosen=True)
    scaled = found["test"]["scaled"]
    assert scaled["temperature"] == found["val"]["scaled"]["temperature"] == pytest.approx(3.0, abs=0.25)
    assert scaled["fit_on"] == "validation, which also chose the epoch"
    assert scaled["ece"] < 0.03 < 0.1 < found["test"]["ece"]
    other = np.random.default_rng(0).permutation(labels)
    again = calibration({"val": val, "test": test}, {"val": known, "test": other}, chosen=False)
    assert again["val"]["scaled"] | {"fit_on": ""} == found["val"]["scaled"] | {"fit_on": ""}
    assert again["test"]["scaled"]["temperature"] == scaled["temperature"]
    assert calibration({"test": test}, {"test": labels}, chosen=True)["test"]["scaled"] is None


def test_on_how_many_images_a_temperature_was_fitted_is_said_or_why_there_is_none():
    (val, known), (test, labels) = drawn(300, 3.0, 1), drawn(300, 3.0, 2)
    found = calibration({"val": val, "test": test}, {"val": known, "test": labels}, chosen=False)["test"]["scaled"]
    wrong = int((val.argmax(1) != known).sum())
    assert {name: found[name] for name in FITTED} == {
        "temperature": found["temperature"], "fit_on": "validation", "fit_images": 300, "fit_mistakes": wrong,
        "raw": "",
    }  # fmt: skip
    assert scaled_in_words(found, "test").endswith(
        f" at validation's temperature {found['temperature']:.2f} (fitted on 300 images, {wrong} of them wrong)"
    )
    right = val.argmax(1) == known
    raw = calibration({"val": val[right], "test": test}, {"val": known[right], "test": labels}, chosen=False)["test"]
    assert raw["scaled"]["ece"] == raw["ece"]
    assert scaled_in_words(raw["scaled"], "test").startswith("logits are not scaled: all ")
    older = {"temperature": 0.8, "fit_on": "validation", "ece": 0.1}  # as a run of an older version has it
    assert scaled_in_words(older, "test") == "10.0% at validation's temperature 0.80"


def test_logits_that_are_not_finite_have_no_calibration():
    logits, labels = drawn(50, 1.0)
    wild = logits.copy()
    wild[3, 1] = np.inf
    found = calibration({"val": wild, "test": logits}, {"val": labels, "test": labels}, chosen=True)
    assert found["val"] is None and found["test"]["scaled"] is None
    found = calibration({"val": logits, "test": wild * np.nan}, {"val": labels, "test": labels}, chosen=True)
    assert found["test"] is None and found["val"]["scaled"]
    huge = calibration({"val": logits * 1e37}, {"val": labels}, chosen=True)
    assert np.isfinite(huge["val"]["ece"])


@pytest.mark.parametrize("right", [0, 1])
def test_the_diagram_of_a_network_that_is_always_right_or_wrong_is_drawn(tmp_path, right):
    labels = np.full(7, 1 - right)
    plots.save_reliability(tmp_path / "a.png", "test", reliability(logits_of([0.9] * 7), labels) | {"scaled": None})
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 400


def test_a_run_tells_of_both_splits_and_draws_the_test(photos, tmp_path, capsys):
    result = single_run.run(tiny.make_config(photos, epochs=1, pictures=True), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["calibration"] == result["calibration"]
    for split in ("validation", "test"):
        assert sum(b["correct"] for b in result["calibration"][split]["bins"]) == result[split]["correct"]
        assert sum(one["correct"] for one in result["by_class"][split].values()) == result[split]["correct"]
        assert [one["seen"] for one in result["by_class"][split].values()] == [6, 6, 6]
    assert (tmp_path / "run" / "calibration.png").exists()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("test calibration error") for line in lines) == 1
    assert sum(line.startswith("lowest by class, test: ") for line in lines) == 1


def test_a_run_whose_training_diverged_ends(photos, tmp_path):
    config = tiny.make_config(
        photos, epochs=2, optimizer__lr=1e30, optimizer__name="sgd", stop_at_nan=False, pictures=True
    )
    result = single_run.run(config, tmp_path / "run", console=QUIET)
    assert not np.isfinite(np.load(tmp_path / "run" / "predictions.npz")["test_logits"]).all()
    assert result["calibration"] == {"validation": None, "test": None}
    assert (tmp_path / "run" / "result.json").exists() and not (tmp_path / "run" / "calibration.png").exists()
    assert sum(one["seen"] for one in result["by_class"]["test"].values()) == result["test"]["seen"]


def test_members_have_their_own_and_the_table_stays_short(photos, tmp_path, capsys):
    result = single_run.run(
        tiny.make_config(photos, epochs=1, population__lr=(1e-3, 1e-2), pictures=True), tmp_path / "run"
    )
    assert "calibration error" not in capsys.readouterr().out
    assert "calibration" not in result and "bins" not in json.dumps(result["members"])
    assert "without" not in result["duplicates"] and result["duplicates"]["test"]["train"]["images"] == 18
    for m in range(2):
        own = json.loads((tmp_path / "run" / "members" / f"{m:03}" / "result.json").read_text())
        assert sum(b["correct"] for b in own["calibration"]["test"]["bins"]) == result["members"][m]["test"]["correct"]
        assert own["duplicates"] == result["duplicates"] | {"without": {"validation": None, "test": None}}
        assert (tmp_path / "run" / "members" / f"{m:03}" / "calibration.png").exists()
