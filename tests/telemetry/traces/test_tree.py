import pytest

from meshkit.telemetry.traces.tree import MOST, Span, duration, rows

MS = 1_000_000


def span(name, start, end, parent="", **more):
    return Span(trace="t", id=more.pop("id", name), parent=parent, name=name, start=start, end=end, **more)


def lines(spans):
    return [row.guide + row.label for row in rows(spans)]


def test_spans_stand_below_what_they_are_part_of_in_the_order_in_which_they_began():
    spans = [
        span("pack", 30, 40, "order"),
        span("pay", 10, 20, "order"),
        span("order", 0, 50),
        span("charge", 12, 18, "pay"),
    ]
    assert lines(spans) == ["order", "├ pay", "│ └ charge", "└ pack"]


def test_the_only_attempt_stands_for_its_call():
    spans = [
        span("rooms.find", 0, 50, kind="CLIENT", id="call"),
        span("rooms.find attempt", 1, 49, "call", kind="CLIENT", id="one", attempt=1),
        span("rooms.find", 5, 45, "one", kind="SERVER", id="served"),
    ]
    assert lines(spans) == ["call rooms.find", "└ rooms.find"]


def test_several_attempts_are_seen_and_one_that_overlaps_is_a_hedge():
    spans = [
        span("rooms.find", 0, 90, kind="CLIENT", id="call"),
        span("rooms.find attempt", 0, 10, "call", id="one", attempt=1),
        span("rooms.find attempt", 20, 60, "call", id="two", attempt=2),
        span("rooms.find attempt", 50, 90, "call", id="three", attempt=3),
    ]
    assert lines(spans) == ["call rooms.find", "├ attempt 1", "├ attempt 2", "└ attempt 3 (hedge)"]


def test_an_only_attempt_with_events_is_a_line_of_its_own():
    spans = [
        span("rooms.find", 0, 90, kind="CLIENT", id="call"),
        span("rooms.find attempt", 0, 10, "call", id="one", attempt=1, events=[(5, "sent")]),
    ]
    assert lines(spans) == ["call rooms.find", "└ attempt 1"]


def test_an_attempt_whose_call_is_not_known_says_whose_it_is():
    assert lines([span("rooms.find attempt", 0, 1, "gone", attempt=2)]) == ["attempt 2 of rooms.find"]


def test_an_error_that_passed_through_is_said_where_it_arose():
    failed = {"has_failed": True, "error": "Unavailable", "text": "locked"}
    spans = [
        span("a", 0, 9, **failed),
        span("b", 1, 8, "a", kind="CLIENT", **failed),
        span("c", 2, 7, "b", has_failed=True, error="503", text="locked"),
        span("d", 8, 9, "a", has_failed=True, error="500", text="other"),
    ]
    assert [row.note for row in rows(spans)] == ["", "", "503: locked", "500: other"]


def test_who_answers_that_the_call_is_wrong_does_not_say_it_twice():
    spans = [
        span("call", 1, 8, kind="CLIENT", has_failed=True, error="NotFound", text="no such room"),
        span("served", 2, 7, "call", kind="SERVER", error="NotFound"),
    ]
    assert [row.note for row in rows(spans)] == ["NotFound: no such room", ""]


def test_parts_of_what_is_not_known_are_roots():
    assert lines([span("b", 5, 6, "gone"), span("a", 1, 9, "lost")]) == ["a", "b"]


def test_spans_that_are_parts_of_each_other_are_left_out():
    assert lines([span("a", 1, 2, "b"), span("b", 1, 2, "a"), span("c", 1, 2, "c")]) == []


def test_a_trace_has_so_many_lines_at_most():
    spans = [span("root", 0, 1), *(span(f"{n}", n, n + 1, "root") for n in range(1000))]
    assert len(rows(spans)) == MOST


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [(0, "0.00 ms"), (9_990_000, "9.99 ms"), (12_400_000, "12 ms"), (61 * 1000 * MS, "61.00 s")],
)
def test_durations(nanoseconds, text):
    assert duration(nanoseconds) == text
