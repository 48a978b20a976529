from hypothesis import given, settings
from hypothesis import strategies as st

from meshkit.window import SLICES, Window

# Seconds whose tenths are exact, so that the edges of slices are where a test expects them.
SECONDS = st.sampled_from([5, 10, 20])
PAUSES = st.integers(0, 64 * 30).map(lambda n: n / 64)
EVENTS = st.lists(st.tuples(PAUSES, st.sampled_from(["first", "second"])), max_size=60)


def count(window, kind, now):
    if now >= window.ends:
        window.turn(now)
    setattr(window, kind, getattr(window, kind) + 1)


@settings(deadline=None)
@given(SECONDS, st.integers(0, 10_000), EVENTS, st.integers(1, SLICES + 1))
def test_it_counts_what_happened_in_the_latest_slices(seconds, begin, events, slices):
    window, now, happened = Window(seconds), begin, []
    for pause, kind in events:
        now += pause
        count(window, kind, now)
        happened.append((now // (seconds / SLICES), kind))
        latest = [kind for number, kind in happened if number > now // (seconds / SLICES) - slices]
        assert window.totals(now, slices) == (latest.count("first"), latest.count("second"))


@settings(deadline=None)
@given(SECONDS, st.floats(0, 1e6), EVENTS)
def test_it_is_never_longer_than_said_and_with_a_slice_more_never_shorter(seconds, begin, events):
    window, now, happened = Window(seconds), begin, []
    for pause, kind in events:
        now += pause
        count(window, kind, now)
        happened.append(now)
        within = sum(at > now - seconds for at in happened)
        assert sum(window.totals(now)) <= within <= sum(window.totals(now, SLICES + 1))


def test_asking_counts_nothing_and_time_alone_empties_it():
    window = Window(10)
    for _ in range(3):
        count(window, "first", 100.0)
    assert [window.totals(now) for now in (100.0, 109.9, 109.9, 110.0, 1e9)] == [(3, 0)] * 3 + [(0, 0)] * 2


def test_what_comes_with_a_time_gone_by_counts_as_of_now():
    window = Window(10)
    count(window, "first", 100.0)
    count(window, "first", 99.0)
    assert window.totals(109.5) == (2, 0)
