"""How this package meets the event loop: blocking calls in a worker thread, a whole change each.

pyroute2's sync `IPRoute`, nft and sysctl files all block, and the helper uses the same code
without a loop; so the code is synchronous, and what is async about it goes through `in_thread`. It
refuses to leave a change half observed: a cancelled caller waits for the thread to finish.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `function` in a thread and return its result.

    A cancellation is delivered after the function has ended, for a thread cannot be stopped and
    what undoes a change must not run beside it.
    """
    task = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue
        if not task.cancelled():
            task.exception()  # seen; the cancellation outranks it
        raise
