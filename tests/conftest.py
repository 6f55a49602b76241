"""What holds for every test of the project."""

from __future__ import annotations

import signal

# A shell starts what runs in the background with SIGINT ignored, and so it would be in everything
# that a test starts in order to interrupt it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
