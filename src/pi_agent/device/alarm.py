"""Word from the kernel that somebody has set the system clock: timerfd_create(2) with TFD_TIMER_CANCEL_ON_SET (RA-15).

``pi-agent run`` makes it before it becomes the resident, for the way to these calls is dear: ``ctypes``, or ``os`` from
Python 3.13 on. What the resident gets is a descriptor. It is armed once and for all: whenever the clock is set it turns
readable, and a read that tells so (ECANCELED) leaves it armed, even when the time it waits for has come and gone.
"""

from __future__ import annotations

import os
import time

ABSTIME, CANCEL_ON_SET = 1, 2
FAR = 2**31 - 1  # what the smallest time_t can say


def make() -> int | None:
    """A descriptor that turns readable when the clock is set and is inherited, or None where there is no such thing."""
    try:
        import ctypes

        libc = ctypes.CDLL(None)
    except (ImportError, OSError, MemoryError):  # a Python that was built without libffi, or that a sandbox hinders
        return None
    handle = int(libc.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK))
    itimerspec = (ctypes.c_long * 4)(0, 0, FAR, 0)  # that of a C library whose time_t is a long, as these symbols are
    if handle < 0:
        return None
    if libc.timerfd_settime(handle, ABSTIME | CANCEL_ON_SET, itimerspec, None):
        os.close(handle)
        return None
    return handle
