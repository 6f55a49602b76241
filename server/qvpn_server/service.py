"""The gateway as a process: one per state directory, signals, readiness, an orderly end."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
from contextlib import suppress

from qvpn_core.errors import QvpnError
from qvpn_server.config import GatewayConfig, load_config
from qvpn_server.gateway import running_gateway
from qvpn_server.notify import keep_alive, notify
from qvpn_server.statedir import StateDir

log = logging.getLogger(__name__)


def run(state: StateDir) -> None:
    """Serve until SIGTERM or SIGINT. Raises QvpnError when the gateway cannot start."""
    logging.basicConfig(level=logging.INFO, format="qvpn-server: %(message)s")
    # Each of these says the same again, in more words and for every packet.
    logging.getLogger("quic").setLevel(logging.ERROR)
    config = load_config(state.config)
    _raise_descriptor_limit()
    with state.locked():
        asyncio.run(_serve(state, config))


async def _serve(state: StateDir, config: GatewayConfig) -> None:
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[None] = loop.create_future()

    def stop() -> None:
        if not stopped.done():
            stopped.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    async with running_gateway(state, config, stopped) as gateway:
        gc.freeze()  # what exists now stays: no collection walks it again while packets wait

        def reload() -> None:
            try:
                gateway.reload()
            except QvpnError as error:
                log.error("nothing was reloaded: %s", error)
            else:
                log.info("reloaded the certificate and the web site")

        loop.add_signal_handler(signal.SIGHUP, reload)
        print(f"qvpn-server: listening on {', '.join(gateway.listening)}", flush=True)
        notify("READY=1")
        alive = asyncio.create_task(keep_alive())
        try:
            await stopped
        finally:
            alive.cancel()
            notify("STOPPING=1")


def _raise_descriptor_limit() -> None:
    """Every stream to a service is a socket; the soft limit is low for the sake of select(2)."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
