"""How figures read in a sentence. Pure: number in, words out."""

from math import ceil, floor, isfinite, log10


def figure(value: float, digits: int = 4) -> str:
    """So many digits that mean something, thousands apart, no exponent: 0.00042, 31.4, 12,300."""
    if not isfinite(value):
        return "without end"
    if value == 0:
        return "0"
    places = digits - 1 - floor(log10(abs(value)))
    if places <= 0:
        return f"{round(value, places):,.0f}"
    text = f"{value:,.{min(places, 12)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def rounded(value: float, digits: int, *, up: bool) -> float:
    """To so many digits, never past `value` on the wrong side."""
    if value == 0:
        return 0.0
    places = digits - 1 - floor(log10(abs(value)))
    unit = 10.0**-places
    steps = value / unit
    near = round(steps)
    whole = near if abs(steps - near) < 1e-9 else (ceil(steps) if up else floor(steps))
    return float(f"{whole * unit:.{digits}g}")
