from itertools import islice

from meshkit.launcher.supervisor import delays


def test_delays_double_up_to_ten_seconds_and_jitter_by_half():
    most = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10]
    for delay, longest in zip(islice(delays(), 10), most, strict=True):
        assert longest / 2 <= delay <= longest
    assert len({next(delays()) for _ in range(10)}) > 1
