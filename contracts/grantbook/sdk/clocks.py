"""The clock that freshness and memory are measured by: it never jumps, and goes on while the machine sleeps."""

import time

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)
"""Linux. `time.monotonic` stands still there while a laptop or a virtual machine is suspended, and what was proven
before would count as just proven after. Elsewhere it goes on."""


def now() -> float:
    """Seconds since some moment, the time asleep included."""
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)
