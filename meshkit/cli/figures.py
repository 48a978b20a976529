"""How rates, shares and durations are shown, and the time that they are of."""

import math
from typing import Any

import click


class NumberRange(click.FloatRange):
    """Numbers of a range; `nan`, which is in none, is neither below nor above it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number that a text is."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is no number", param, ctx)
        return number


interval_option = click.option(
    "--interval",
    metavar="SECONDS",
    type=NumberRange(0.5, 3600),
    default=2.0,
    show_default=True,
    help="How long to look; the rates are those of that time.",
)


def short(value: float) -> str:
    """A number with three digits or so."""
    digits = 0 if value >= 100 or not value else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def lasting(seconds: float) -> str:
    """A duration in its two largest units, such as `3m 20s`; whole seconds are the least."""
    rest, found = round(seconds), list[str]()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if rest >= size or (unit == "s" and not found):
            found.append(f"{rest // size:,}{unit}")
        elif found:
            break
        rest %= size
    return " ".join(found[:2])


def percent(share: float) -> str:
    """A share in percent; 100 only if it is."""
    return f"{share:.0%}" if share in {0, 1} else f"{min(99.99, share * 100):.4g}%"
