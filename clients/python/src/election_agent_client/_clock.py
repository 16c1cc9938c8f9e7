"""The clock that terms are measured with.

It counts the time that a suspended machine misses: CLOCK_BOOTTIME on Linux, mach_continuous_time on macOS. Elsewhere
the monotonic clock is compared with the wall clock: when that is ahead by more than 1 % and 50 ms, the machine may
have slept, and the leadership is lost.
"""

from __future__ import annotations

import sys
import time
from typing import Callable, Optional

NANOS = 1_000_000_000


def _continuous() -> Optional[Callable[[], int]]:
    """macOS's clock, which Python has no name for."""
    import ctypes

    class Timebase(ctypes.Structure):
        _fields_ = (("numer", ctypes.c_uint32), ("denom", ctypes.c_uint32))

    try:
        library = ctypes.CDLL(None)
        read = library.mach_continuous_time
        read.restype = ctypes.c_uint64
        base = Timebase()
        if library.mach_timebase_info(ctypes.byref(base)) != 0 or base.denom == 0:
            return None
    except (OSError, AttributeError):
        return None
    numer: int = base.numer
    denom: int = base.denom

    def now_ns() -> int:
        ticks: int = read()
        return ticks * numer // denom

    return now_ns


def _choose() -> tuple[Callable[[], int], bool]:
    """The clock, and whether it counts suspension."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    if boottime is not None:

        def now_ns() -> int:
            return time.clock_gettime_ns(boottime)

        return now_ns, True
    continuous = _continuous() if sys.platform == "darwin" else None
    if continuous is not None:
        return continuous, True
    raw = getattr(time, "CLOCK_MONOTONIC_RAW", None)
    if raw is not None:

        def raw_ns() -> int:
            return time.clock_gettime_ns(raw)

        return raw_ns, False
    return time.monotonic_ns, False


now_ns, COUNTS_SUSPENSION = _choose()


class Anchor:
    """Where clocks stood, to find out later whether one of them has jumped."""

    __slots__ = ("counted", "wall")

    def __init__(self) -> None:
        self.counted = now_ns()
        self.wall = time.time_ns()

    def has_jumped(self) -> bool:
        """Whether more time may have passed than the clock has counted."""
        if COUNTS_SUSPENSION:
            return False
        return ahead(now_ns() - self.counted, time.time_ns() - self.wall)


def ahead(counted: int, wall: int) -> bool:
    """Whether the wall clock is ahead by more than 1 % and 50 ms."""
    return wall > counted + counted // 100 + 50_000_000


def nanos(seconds: float) -> int:
    return int(seconds * NANOS)


def seconds_until(at: int) -> float:
    """How long it is until then; 0 when it has passed."""
    return max(0, at - now_ns()) / NANOS
