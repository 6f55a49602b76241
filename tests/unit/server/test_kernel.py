"""The process that sets up the gateway's network; what it does is tested in test_service."""

import asyncio
import subprocess
import sys
from ipaddress import ip_network

import pytest

from qvpn_core.errors import NetworkSetupFailed
from qvpn_server.kernel import set_up
from qvpn_server.pool import Pool

POOL = Pool(ip_network("10.86.0.0/16"))


@pytest.mark.parametrize("program", ["/bin/false", "/bin/echo", "/nonexistent"])
def test_a_process_that_fails_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(NetworkSetupFailed, match="process that sets up the network failed"):
        asyncio.run(set_up(1, [POOL]))


def test_the_gateway_itself_does_without_netlink() -> None:
    program = "import qvpn_server.service, sys; print('pyroute2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
