"""Word from the kernel that somebody has set the system clock: timerfd_create(2) with TFD_TIMER_CANCEL_ON_SET (RA-15).

Python has it from 3.13 on. Before that the resident looks for itself, once a second while the clock is the trouble and
else every ten: the way to the call through ``_ctypes`` would cost it 0.4 MB for the rest of its days.
"""

from __future__ import annotations

import os
import sys
import time

FAR = float(2**33 if sys.maxsize > 2**32 else 2**31 - 1)  # what a time_t can say; nobody waits for it

if sys.version_info >= (3, 13):

    def listen() -> int | None:
        """A descriptor that turns readable when the clock is set, or None where there is no such thing."""
        try:
            handle = os.timerfd_create(time.CLOCK_REALTIME, flags=os.TFD_NONBLOCK | os.TFD_CLOEXEC)
        except OSError:
            return None
        _arm(handle)
        return handle

    def rang(handle: int) -> bool:
        """True when the clock was set, which is told once; the alarm is armed again."""
        try:
            os.read(handle, 8)
        except BlockingIOError:
            return False
        except OSError:  # ECANCELED
            _arm(handle)
            return True
        return False  # it is later than FAR: from here on the resident looks for itself

    def _arm(handle: int) -> None:
        os.timerfd_settime(handle, flags=os.TFD_TIMER_ABSTIME | os.TFD_TIMER_CANCEL_ON_SET, initial=FAR)

else:

    def listen() -> int | None:
        """None: this Python cannot ask for it."""
        return None

    def rang(handle: int) -> bool:
        """Never called."""
        raise NotImplementedError
