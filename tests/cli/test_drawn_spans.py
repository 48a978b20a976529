from rich.text import Text

from meshkit.cli.spans import drawn, plain
from meshkit.telemetry.traces.tree import Span


def spans(count):
    root = Span(trace="t", id="root", name="root", start=0, end=9)
    parts = [
        Span(trace="t", id=f"{n}", parent="root", name="x", start=n, end=n + 1) for n in range(count - 1)
    ]
    return [root, *parts]


def first(count, left_out):
    [line, *_] = plain(spans(count), left_out)
    [text, *_] = drawn(spans(count), left_out, 80)
    assert isinstance(text, Text)
    assert text.plain.endswith(line.split("\t")[2])
    return line.split("\t")[2]


def test_how_much_of_a_trace_is_shown_is_said():
    assert first(1, 0) == "1 span"
    assert first(200, 0) == "200 spans"
    assert first(201, 0) == "201 spans, 200 shown"
    assert first(400, 51) == "451 spans, 200 shown"
