"""A run says how long it will take as soon as it can know, and corrects itself once."""

import io
import itertools

import pytest
from rich.console import Console

from tests import tiny
from tljax.train import single_run
from tljax.train.throughput import Forecast, in_words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0.4 s"), (12.3, "12 s"), (89, "89 s"), (275, "4.6 minutes"), (9000, "2.5 hours")]
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words


def said_by(calls):
    """What a forecast says, by a clock that each look at moves on by two seconds."""
    said = io.StringIO()
    forecast = Forecast(Console(file=said, width=300), lambda source=itertools.count(0, 2): next(source))
    calls(forecast)
    return said.getvalue().splitlines(), forecast


def test_how_long_features_take_is_said_when_a_few_batches_show_it():
    def calls(forecast):
        for done in range(32, 1000, 32):
            forecast.features(done, 1000, tested=64)

    lines, _ = said_by(calls)
    assert len(lines) == 1
    assert lines[0].startswith("about 58 s, the test of 64 images among it: features of 1,000 views at 16.0 a second")


def test_how_long_training_takes_is_said_once_and_corrected_once():
    def calls(forecast):
        forecast.updates(300, 0.1, 2.0, 20.0, tested=0)
        forecast.updates(200, 0.11, 2.0, 30.0, tested=0)  # much as was said
        forecast.updates(150, 0.5, 2.0, 60.0, tested=0)
        forecast.updates(100, 0.9, 2.0, 90.0, tested=0)

    lines, forecast = said_by(calls)
    assert [line[: line.index(":")] for line in lines] == ["about 32 s more", "about 77 s more"]
    assert "2.3 minutes in all, where 52 s was said" in lines[1]
    assert forecast.total == 52


def test_what_takes_no_time_is_not_announced():
    lines, forecast = said_by(lambda forecast: forecast.updates(10, 0.01, 0.1, 5.0, tested=0))
    assert (lines, forecast.total) == ([], pytest.approx(5.2))


def test_a_run_records_how_long_it_expected_to_take(photos, tmp_path):
    result = single_run.run(tiny.make_config(photos), tmp_path / "run", console=Console(quiet=True))
    assert result["train"]["expected_seconds"] > 0
