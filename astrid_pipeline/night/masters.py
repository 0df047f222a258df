"""Which night's master frames serve a night."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

#: Bias and flat of small cameras drift on this scale; older masters do more harm than good.
MASTERS_MAX_AGE_DAYS = 30


def nearest_night(nights: Sequence[str], night: str, max_age_days: int = MASTERS_MAX_AGE_DAYS) -> str | None:
    """Return the night of `nights` whose masters serve `night`: the same, else the nearest within the age limit."""
    target = date.fromisoformat(night)
    ranked = sorted(nights, key=lambda n: (abs((date.fromisoformat(n) - target).days), n))
    if ranked and abs((date.fromisoformat(ranked[0]) - target).days) <= max_age_days:
        return ranked[0]
    return None
