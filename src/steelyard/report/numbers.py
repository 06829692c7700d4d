"""How numbers are written, in one place, so that page, terminal and sentences agree.

Scores that are shares are written in per cent and their differences in points; other scores as they are.
Undefined is an en dash, never a zero.
"""

from __future__ import annotations

MINUS, NONE = "\u2212", "\u2013"


def signless(value: float, digits: int = 1) -> str:
    """``-0.04`` becomes ``0.0``, not ``-0.0``; the minus is a real one."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def score(value: float | None, proportion: bool = True) -> str:
    """``66.4`` (per cent) or ``0.664``."""
    if value is None:
        return NONE
    return signless(100 * value, 1) if proportion else signless(value, 3)


def difference(value: float | None, proportion: bool = True) -> str:
    """``+27.0`` points, with its sign."""
    if value is None:
        return NONE
    text = score(value, proportion)
    return text if text.startswith(MINUS) or float(text) == 0 else f"+{text}"


def span(low: float | None, high: float | None, proportion: bool = True, *, signed: bool = False) -> str:
    """``54.4 to 78.3``"""
    if low is None or high is None:
        return NONE
    write = difference if signed else score
    return f"{write(low, proportion)} to {write(high, proportion)}"


CUT = "†"
"""Marks an interval that is shown only as far as the score can reach."""


def is_cut(low: float, high: float, proportion: bool) -> bool:
    """Whether an interval of a share leaves 0 to 100 % (Student's knows of no bounds)."""
    return proportion and (low < 0 or high > 1)


def clip(value: float, proportion: bool) -> float:
    """A share within 0 to 1; other scores as they are."""
    return min(max(value, 0.0), 1.0) if proportion else value


def reach(low: float | None, high: float | None, proportion: bool = True) -> str:
    """The interval of a score as it is shown: ``35.0 to 100.0†`` where it was cut."""
    if low is None or high is None:
        return NONE
    mark = CUT if is_cut(low, high, proportion) else ""
    return span(clip(low, proportion), clip(high, proportion), proportion) + mark


def p_value(value: float | None) -> str:
    """``0.013``, ``<0.001``, two digits from 0.1 on."""
    if value is None:
        return NONE
    if value < 0.001:
        return "<0.001"
    return f"{value:.3f}" if value < 0.0995 else f"{value:.2f}"


def effect(value: float | None) -> str:
    """``+1.49``: a standardised difference."""
    if value is None:
        return NONE
    text = signless(value, 2 if abs(value) < 99.95 else 0)
    return text if text.startswith(MINUS) or float(text) == 0 else f"+{text}"


def detectable(value: float | None, proportion: bool = True) -> str:
    """``12.9 points``; a difference between shares cannot exceed 100 points, and then nothing is detectable."""
    if value is None:
        return NONE
    if proportion and value > 1:
        return "more than 100 points (that is, none)"
    return f"{score(value, proportion)}{' points' if proportion else ''}"


def share(value: float | None) -> str:
    """``12 %``, ``0.3 %`` below one."""
    if value is None:
        return NONE
    percent = 100 * value
    return f"{percent:.1f} %" if 0 < percent < 0.95 else f"{percent:.0f} %"


def power(value: float | None) -> str:
    """``20 %``, ``2.0 %``"""
    if value is None:
        return NONE
    return f"{100 * value:.1f} %" if value < 0.0995 else f"{100 * value:.0f} %"


def rate(value: float | None) -> str:
    """A learning rate: ``3e-4``."""
    if value is None or value != value:
        return NONE
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


def setting(value: object) -> str:
    """A hyperparameter of any type; numbers as :func:`rate` writes them when they are small."""
    return rate(value) if isinstance(value, float) and 0 < abs(value) < 0.01 else f"{value}"


def amount(value: float | None) -> str:
    """A count: ``180 000``, with thin spaces."""
    return NONE if value is None else f"{value:,.0f}".replace(",", "\u2009")


def seconds(value: float | None) -> str:
    """``9.2 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if value is None:
        return NONE
    if value < 100:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def memory(mib: float | None) -> str:
    """``410 MiB``, ``3.2 GiB``."""
    if mib is None:
        return NONE
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


def listing(names: list[str] | tuple[str, ...]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def count(number: int, noun: str, plural: str = "") -> str:
    """``1 run``, ``3 runs``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
