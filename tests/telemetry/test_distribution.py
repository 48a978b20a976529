import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.telemetry.distribution import BOUNDS, Distribution, total

seconds = st.floats(0, 100)


def distribution(durations):
    made = Distribution()
    for duration in durations:
        made.add(duration)
    return made


def test_bins_go_from_100_microseconds_to_a_minute_with_those_that_opentelemetry_recommends():
    assert (BOUNDS[0], BOUNDS[-1]) == (0.0001, 60)
    assert list(BOUNDS) == sorted(BOUNDS)
    recommended = {0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10}
    assert recommended <= set(BOUNDS)


@given(st.lists(seconds))
def test_each_duration_is_in_the_bin_whose_bound_is_the_first_that_it_does_not_exceed(durations):
    counted = distribution(durations)
    for index, bound in enumerate(BOUNDS):
        assert sum(counted.counts[: index + 1]) == sum(duration <= bound for duration in durations)
    assert counted.count == len(durations)
    assert counted.sum == pytest.approx(math.fsum(durations))


@given(st.lists(st.lists(seconds)))
def test_any_number_of_them_add_up_exactly(parts):
    whole = total(distribution(part) for part in parts)
    assert whole.counts == distribution([duration for part in parts for duration in part]).counts


@given(st.lists(seconds), st.lists(seconds))
def test_what_came_after_an_earlier_state(earlier, later):
    assert distribution(earlier + later).since(distribution(earlier)).counts == distribution(later).counts


def test_a_count_that_began_anew_is_taken_whole():
    again = distribution([0.2])
    assert again.since(distribution([0.2, 0.3])).counts == again.counts


@given(st.lists(st.floats(0, 60), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_in_the_bin_of_the_true_one(durations, share):
    rank = math.ceil(share * len(durations) - 1e-9)
    true = sorted(durations)[max(0, rank - 1)]
    [low, high] = next((low, high) for low, high in zip((0, *BOUNDS), BOUNDS, strict=False) if true <= high)
    assert low <= distribution(durations).quantile(share) <= high


def test_a_quantile_is_evenly_spread_within_its_bin():
    halves = distribution([0.06] * 10)
    assert halves.quantile(0.5) == pytest.approx(0.0625)
    assert halves.quantile(1.0) == pytest.approx(0.075)


def test_a_quantile_of_what_has_no_bound_is_the_last_bound_and_of_nothing_is_none():
    assert distribution([100]).quantile(0.5) == 60
    assert Distribution().quantile(0.5) is None
