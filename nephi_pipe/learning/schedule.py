"""When an optimisation does what: steps of each level, learning rate, and when a level ends."""

from __future__ import annotations

import math

from .settings import Level, OptimisationSettings

_STRETCH = 15
_STILL = 2e-4
"""A level ends when its mean dissimilarity falls by less than this from stretch to stretch."""


def plan(settings: OptimisationSettings) -> list[tuple[int, Level, range]]:
    """(number, level, its steps) of each level that gets a step."""
    total = sum(level.share for level in settings.levels)
    found, start, share = [], 0, 0.0
    for number, level in enumerate(settings.levels):
        share += level.share
        end = round(settings.steps * share / total)
        if end > start:
            found.append((number, level, range(start, end)))
        start = end
    return found


def settled(reached: list[float]) -> bool:
    """Whether a level's dissimilarity has stopped falling: never by the clock.

    The means of the last two stretches of steps are compared; what jitters between steps by
    chance is averaged out.
    """
    if len(reached) < 2 * _STRETCH:
        return False
    before = sum(reached[-2 * _STRETCH : -_STRETCH]) / _STRETCH
    after = sum(reached[-_STRETCH:]) / _STRETCH
    return before - after < _STILL


def rate_at(step: int, steps: int, warm_up: int) -> float:
    """Warm-up, then a cosine down to 2 %."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))
    return (0.02 + 0.98 * cosine) * min(1.0, (step + 1) / warm_up)
