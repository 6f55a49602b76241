"""Whatever a user or a machine gets wrong: one clear line, a status other than 0, nothing left.

The words are checked as far as they matter: what is wrong, and what to do about it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.integration.fake_gateway import FakeGateway, meanwhile, play
from tests.unit.transport.helpers import Identity, make_identity
from tests.world import Namespace, plan, snapshot
from tests.world.vpn import (
    AT_ONCE,
    BIN,
    PATIENCE,
    Credentials,
    Vpn,
    VpnClient,
    VpnGateway,
    leaves_nothing,
    until,
)

pytestmark = pytest.mark.netns

FAILED, USAGE = 1, 2
NOBODY = "65534"
#: A mount namespace of its own, so that what is mounted there hides nothing from anybody else.
OWN_MOUNTS = ("unshare", "--mount", "sh", "-ec")
WITHOUT_TUN = (*OWN_MOUNTS, 'mount -t tmpfs none /dev/net; exec "$@"', "sh")
WITHOUT_NET_ADMIN = ("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin")
AS_NOBODY = ("setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups")
DAY = timedelta(days=1)


@pytest.fixture
def client(vpn: Vpn) -> Iterator[VpnClient]:
    """The first client, disconnected; afterwards its namespace must be as it was."""
    yield vpn.clients[0]
    vpn.settle()
    assert snapshot(vpn.world.client) == vpn.before[vpn.world.client]
    vpn.check_logs()


def complaint(done: subprocess.CompletedProcess[str], program: str, status: int) -> str:
    """The one line of a command that failed with `status`."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith(f"{program}: ")
    return line


def refused(
    client: VpnClient, *words: str, status: int = FAILED, wrapper: tuple[str, ...] = ()
) -> str:
    """The line with which `qvpn` refuses; it leaves nothing behind."""
    with leaves_nothing(client.host):
        done = client.host.run(
            [*wrapper, str(BIN / "qvpn"), *words],
            check=False,
            timeout=2 * PATIENCE,
            env=client.environment,
        )
    assert client.agent() is None
    return complaint(done, "qvpn", status)


def refused_up(
    client: VpnClient,
    credentials: Credentials,
    *,
    status: int = FAILED,
    pin: bool = True,
    ca: Path | None = None,
) -> str:
    """The line with which `qvpn up` refuses a profile."""
    file = client.write_profile(credentials, "wrong", pin=pin, ca=ca)
    try:
        return refused(client, "up", "wrong", status=status)
    finally:
        file.unlink()


@pytest.fixture(scope="module")
def device(vpn: Vpn) -> Credentials:
    """A device of the gateway, for profiles that are wrong in one point."""
    return vpn.gateway.token("device")


# -- who is not let in


def test_a_wrong_token(client: VpnClient, device: Credentials) -> None:
    line = refused_up(client, replace(device, token="0" * 64))
    assert "does not know this device" in line
    assert "credential is wrong or revoked" in line
    assert client.status()["reason"] == "authentication"


def test_a_revoked_device(vpn: Vpn, client: VpnClient) -> None:
    gone = vpn.gateway.token("gone")
    vpn.gateway.command("revoke", "gone")
    assert "credential is wrong or revoked" in refused_up(client, gone)


def test_a_device_revoked_in_mid_session_is_cut_off_and_gives_up(
    vpn: Vpn, client: VpnClient
) -> None:
    with leaves_nothing(client.host, within=AT_ONCE):
        client.write_profile(vpn.gateway.token("guest"), "guest")
        client.up(name="guest")
        vpn.gateway.command("revoke", "guest")
        until(lambda: not vpn.gateway.peek()["sessions"], "the session is cut", AT_ONCE)
        until(lambda: client.agent() is None, "the client gives up", AT_ONCE)
    status = client.status()
    assert (status["state"], status["reason"]) == ("failed", "authentication")
    assert "credential is wrong or revoked" in status["error"]
    client.down()
    assert client.status()["state"] == "disconnected"


def test_in_the_foreground_too(vpn: Vpn, client: VpnClient) -> None:
    client.write_profile(vpn.gateway.token("visitor"), "visitor")
    process = client.begin("--foreground", name="visitor")
    client.wait_for("connected")
    vpn.gateway.command("revoke", "visitor")
    _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == FAILED
    assert "credential is wrong or revoked" in log.splitlines()[-1]


# -- gateways that are not there


def test_a_closed_port(client: VpnClient, device: Credentials) -> None:
    line = refused_up(client, replace(device, gateway=f"{plan.GATEWAY4}:4444"))
    assert f"nothing answers at {plan.GATEWAY4}:4444" in line
    assert "check the address and that the gateway runs" in line
    assert client.status()["reason"] == "unreachable"


def test_a_path_that_carries_nothing(vpn: Vpn, client: VpnClient, device: Credentials) -> None:
    vpn.world.relay.set(loss=1.0)
    line = refused_up(client, device)
    assert f"no answer from {plan.GATEWAY4}:443 within 10 seconds" in line
    assert "UDP is not blocked" in line


def test_a_network_that_is_down(vpn: Vpn, client: VpnClient, device: Credentials) -> None:
    client.host.set_link("eth0", up=False)
    line = refused_up(client, device)
    assert f"cannot send to {plan.GATEWAY4}:443" in line
    assert "check this machine's network connection" in line
    vpn.world.move_client(2)


def test_a_name_without_an_address(client: VpnClient, device: Credentials) -> None:
    line = refused_up(client, replace(device, gateway="nowhere.test"))
    assert "cannot find the address of nowhere.test" in line
    assert client.status()["reason"] == "name-not-resolved"


# -- gateways that are not trusted


def test_a_wrong_pin(vpn: Vpn, client: VpnClient, device: Credentials) -> None:
    line = refused_up(client, replace(device, pin="sha256/" + "A" * 43 + "="))
    assert "does not have the pinned key" in line
    assert client.status()["reason"] == "certificate"
    assert vpn.gateway.peek()["sessions"] == []


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """A certification authority."""
    directory = tmp_path_factory.mktemp("authority")
    return make_identity(directory, "authority", hosts=(), authority=True)


@pytest.fixture(scope="module")
def small_gateway(
    vpn: Vpn, authority: Identity, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VpnGateway]:
    """A second gateway, ``www.beta.test``, with a certificate of `authority` and one address."""
    directory = tmp_path_factory.mktemp("small")
    identity = make_identity(directory, hosts=("www.beta.test",), issuer=authority)
    files = ("--cert", str(identity.certificate_file), "--key", str(identity.key_file))
    gateway = VpnGateway(vpn.world.internet, directory / "state", address="www.beta.test")
    # It serves the machine that the resolvers run on: no DNS servers, and no IPv6 inside.
    gateway.command(
        "init", "--host", gateway.address, "--pool4", "10.99.0.0/30", "--pool6", "none", *files
    )
    gateway.start()
    yield gateway
    gateway.stop()


def test_an_authority_that_is_not_the_gateways(
    client: VpnClient, small_gateway: VpnGateway, tmp_path: Path
) -> None:
    device = small_gateway.token("stranger")
    other = make_identity(tmp_path, "other", hosts=(), authority=True)
    for ca in (other.certificate_file, None):
        line = refused_up(client, device, pin=False, ca=ca)
        assert "the certificate of" in line
        assert "is not trusted" in line
        assert client.status()["reason"] == "certificate"


def test_a_name_that_the_certificate_is_not_for(
    client: VpnClient, small_gateway: VpnGateway, authority: Identity
) -> None:
    device = small_gateway.token("misnomer")
    elsewhere = replace(device, gateway="files.beta.test")
    line = refused_up(client, elsewhere, pin=False, ca=authority.certificate_file)
    assert "files.beta.test" in line
    assert "check the host name" in line


@pytest.mark.parametrize(("begins", "ends"), [(-2 * DAY, -DAY), (DAY, 2 * DAY)])
def test_a_certificate_that_is_not_valid_now(
    vpn: Vpn,
    client: VpnClient,
    authority: Identity,
    tmp_path: Path,
    begins: timedelta,
    ends: timedelta,
) -> None:
    identity = make_identity(
        tmp_path, hosts=(plan.GATEWAY4,), issuer=authority, not_before=begins, not_after=ends
    )

    async def scenario() -> str:
        async with FakeGateway(identity) as fake:
            ca = authority.certificate_file
            return await meanwhile(refused_up, client, fake.credentials, pin=False, ca=ca)

    line = play(vpn.world.gateway, scenario())
    assert "is not valid now" in line
    assert "check this machine's clock" in line


def test_a_certificate_file_that_is_none(
    client: VpnClient, device: Credentials, tmp_path: Path
) -> None:
    file = tmp_path / "empty.pem"
    file.write_text("no certificate")
    line = refused_up(client, device, status=USAGE, pin=False, ca=file)
    assert str(file) in line
    assert "PEM" in line


# -- gateways without room


def test_a_full_address_pool(
    vpn: Vpn, client: VpnClient, small_gateway: VpnGateway, authority: Identity
) -> None:
    one, two = small_gateway.token("one"), small_gateway.token("two")
    second = vpn.clients[1]
    second.write_profile(one, "one", pin=False, ca=authority.certificate_file)
    second.up(name="one")
    assert second.peek()["addresses"] == ["10.99.0.2/32"]
    line = refused_up(client, two, pin=False, ca=authority.certificate_file)
    assert "the gateway has no room for another device" in line
    assert client.status()["reason"] == "refused"
    assert "all 1 addresses of 10.99.0.0/30 are taken" in small_gateway.log.read_text()
    second.down()


# -- clients that cannot


def test_a_client_without_the_right_to_change_the_network(client: VpnClient) -> None:
    line = refused(client, "up", "home", wrapper=WITHOUT_NET_ADMIN)
    assert "CAP_NET_ADMIN" in line
    assert client.status()["reason"] == "permission"


def test_a_client_without_a_tun_device(client: VpnClient) -> None:
    line = refused(client, "up", "home", wrapper=WITHOUT_TUN)
    assert "/dev/net/tun is missing" in line
    assert "modprobe tun" in line


def test_a_second_up(client: VpnClient) -> None:
    client.up()
    with leaves_nothing(client.host):
        line = complaint(client.command("up", "home", check=False), "qvpn", USAGE)
    assert "profile 'home' is connected already" in line
    assert "qvpn down" in line
    assert client.status()["state"] == "connected"


def test_down_with_nothing_up_is_no_failure(client: VpnClient) -> None:
    done = client.command("down")
    assert done.stderr == "qvpn: nothing is up\n"


def test_an_unknown_profile(client: VpnClient) -> None:
    line = refused(client, "up", "elsewhere", status=USAGE)
    assert "no profile 'elsewhere'" in line
    assert "home" in line.partition("there is")[2]


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[gateway", b'[gateway]\nhost = "a"\n[credential]\ntoken = 3\n']
)
def test_a_damaged_profile(client: VpnClient, content: bytes) -> None:
    file = client.directory / "config" / "profiles" / "damaged.toml"
    file.write_bytes(content)
    line = refused(client, "up", "damaged", status=USAGE)
    assert "profile 'damaged' is damaged" in line
    assert str(file) in line
    file.unlink()


def test_a_disk_without_room_for_a_profile(client: VpnClient) -> None:
    config = client.directory / "config"
    script = f'mount -t tmpfs -o size=4k none {config}; echo > {config}/full; exec "$@"'
    full = (*OWN_MOUNTS, script, "sh")
    words = ("profile", "add", "new", "--gateway", "a.test", "--token", "t")
    assert "No space left" in refused(client, *words, wrapper=full)
    assert not (config / "profiles" / "new.toml").exists()


ADD = ("profile", "add", "new")
TO = ("--gateway", "gateway.test")
TOKEN = ("--token", "t")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ((), "required"),
        (("frobnicate",), "invalid choice"),
        (("up",), "PROFILE"),
        (("up", "../home"), "cannot name a profile"),
        (("up", "home", "--only", "10.0.0.1/8"), "did you mean 10.0.0.0/8"),
        (("up", "home", "--except", "office"), "'office' is not a network"),
        (("up", "home", "--all", "--only", "10.0.0.0/8"), "not allowed with"),
        (("up", "home", "--transport", "smoke"), "invalid choice"),
        ((*ADD, *TOKEN, "--gateway", "gateway.test:99999"), "is not a gateway"),
        ((*ADD, *TOKEN, "--gateway", "gateway.test:0"), "ports are 1 to 65535"),
        ((*ADD, *TOKEN, "--gateway", "-x/y"), "gateway"),
        ((*ADD, *TO, "--token", "two words"), "characters that no token has"),
        ((*ADD, *TO, "--token-file", "/nowhere"), "cannot be read"),
        ((*ADD, *TO, *TOKEN, "--pin", "sha256/abc"), "the pin is not one"),
        ((*ADD, *TO, *TOKEN, "--ca", "/nowhere"), "there is no file '/nowhere'"),
        ((*ADD, *TO, *TOKEN, "--template", "/{nothing"), "template"),
        (("profile", "add", "home", *TO, *TOKEN), "profile 'home' exists"),
        (("profile", "remove", "nothing"), "no profile 'nothing'"),
    ],
)
def test_a_command_line_that_cannot_be_meant(
    client: VpnClient, line: tuple[str, ...], words: str
) -> None:
    profiles = client.directory / "config" / "profiles"
    before = sorted(profiles.iterdir())
    assert words in refused(client, *line, status=USAGE)
    assert sorted(profiles.iterdir()) == before


# -- the gateway


@pytest.fixture(scope="module")
def spare(namespaces_work: None) -> Iterator[Namespace]:
    """A machine for gateways that do not start."""
    with Namespace("spare") as spare:
        spare.ip("addr add 192.0.2.1/24 dev lo")
        yield spare


@pytest.fixture
def idle_gateway(spare: Namespace, tmp_path: Path) -> Iterator[VpnGateway]:
    """A gateway that was initialised; whatever happens must not change its machine."""
    gateway = VpnGateway(spare, tmp_path / "state", address="192.0.2.1")
    gateway.command("init", "--host", gateway.address)
    yield gateway
    assert not (gateway.state / "admin.sock").exists()
    assert not (gateway.state / "sysctls.json").exists()


def refused_server(
    host: Namespace, *words: str, status: int = FAILED, wrapper: tuple[str, ...] = ()
) -> str:
    """The line with which `qvpn-server` refuses; it leaves nothing behind."""
    with leaves_nothing(host):
        done = host.run([*wrapper, str(BIN / "qvpn-server"), *words], check=False, timeout=PATIENCE)
    return complaint(done, "qvpn-server", status)


def refused_run(gateway: VpnGateway, *, status: int = FAILED, wrapper: tuple[str, ...] = ()) -> str:
    """The line with which `qvpn-server run` refuses."""
    words = ("run", "--state", str(gateway.state))
    return refused_server(gateway.host, *words, status=status, wrapper=wrapper)


def test_a_port_in_use(idle_gateway: VpnGateway) -> None:
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::1")):
        with idle_gateway.host.socket(family, socket.SOCK_DGRAM) as taken:
            taken.bind((address, 443))
            line = refused_run(idle_gateway)
        assert "UDP" in line
        assert ":443 is in use by another program" in line
        assert "--listen" in line


def test_an_address_of_another_machine(spare: Namespace, tmp_path: Path) -> None:
    gateway = VpnGateway(spare, tmp_path / "state")
    gateway.command("init", "--host", "a.test", "--listen", "203.0.113.77:443")
    line = refused_run(gateway)
    assert "cannot listen on UDP 203.0.113.77:443" in line


def test_a_pool_in_the_machines_own_network(spare: Namespace, tmp_path: Path) -> None:
    gateway = VpnGateway(spare, tmp_path / "state")
    gateway.command("init", "--host", "a.test", "--pool4", "192.0.2.0/25")
    line = refused_run(gateway)
    assert "192.0.2.0/25 overlaps this host's network 192.0.2.0/24" in line


def test_a_gateway_without_a_tun_device(idle_gateway: VpnGateway) -> None:
    assert "/dev/net/tun is missing" in refused_run(idle_gateway, wrapper=WITHOUT_TUN)


def test_a_gateway_without_the_right_to_change_the_network(idle_gateway: VpnGateway) -> None:
    assert "CAP_NET_ADMIN" in refused_run(idle_gateway, wrapper=WITHOUT_NET_ADMIN)


def test_a_gateway_whose_state_belongs_to_somebody_else(idle_gateway: VpnGateway) -> None:
    line = refused_run(idle_gateway, status=USAGE, wrapper=AS_NOBODY)
    assert "Permission denied" in line
    assert "owner of that directory" in line


def test_a_gateway_that_is_not_root(idle_gateway: VpnGateway) -> None:
    for path in (idle_gateway.state, *idle_gateway.state.iterdir()):
        os.chown(path, int(NOBODY), int(NOBODY))
    # The way there belongs to root alone: mounted where everybody may look.
    mounts = f"mount -t tmpfs none /mnt; mkdir /mnt/s; mount --bind {idle_gateway.state} /mnt/s"
    there = f'{mounts}; exec "$@"'
    wrapper = (*OWN_MOUNTS, there, "sh", *AS_NOBODY)
    line = refused_server(
        idle_gateway.host, "run", "--state", "/mnt/s", status=FAILED, wrapper=wrapper
    )
    assert "a gateway needs root" in line


def test_a_second_gateway_on_the_same_state(vpn: Vpn) -> None:
    line = refused_run(vpn.gateway, status=USAGE)
    assert "a gateway already runs on" in line
    assert vpn.gateway.running


def test_a_second_gateway_on_the_same_machine(vpn: Vpn, tmp_path: Path) -> None:
    other = VpnGateway(vpn.world.gateway, tmp_path / "other")
    other.command("init", "--host", "a.test", "--listen", "0.0.0.0:8443", "--pool4", "10.1.0.0/24")
    assert "the device qvpns0 is in use" in refused_run(other)


@pytest.mark.parametrize(
    ("file", "content", "words", "status"),
    [
        ("gateway.toml", "host = [", "gateway.toml is not valid", USAGE),
        ("gateway.toml", 'host = "a.test"\nport = 443', "gateway.toml is not valid", USAGE),
        ("registry.sqlite3", "no database" * 100, "cannot use the registry", FAILED),
        ("certificate.pem", "no certificate", "is not a certificate", USAGE),
        ("private-key.pem", "", "cannot use the certificate", USAGE),
        ("sysctls.json", "{", "sysctls.json", FAILED),
    ],
)
def test_a_damaged_file_of_a_gateway(
    idle_gateway: VpnGateway, file: str, content: str, words: str, status: int
) -> None:
    (idle_gateway.state / file).write_text(content)
    line = refused_run(idle_gateway, status=status)
    assert words in line
    assert str(idle_gateway.state) in line
    with contextlib.suppress(FileNotFoundError):
        (idle_gateway.state / "sysctls.json").unlink()


def test_a_state_directory_that_cannot_be_written(idle_gateway: VpnGateway) -> None:
    state = idle_gateway.state
    script = f'mount --bind {state} {state}; mount -o remount,bind,ro {state}; exec "$@"'
    line = refused_run(idle_gateway, status=USAGE, wrapper=(*OWN_MOUNTS, script, "sh"))
    assert f"cannot write to {state}: Read-only file system" in line


def test_a_full_disk_under_a_gateway(idle_gateway: VpnGateway) -> None:
    state = idle_gateway.state
    script = (
        f"cp -a {state} {state}.copy; mount -t tmpfs -o size=256k none {state};"
        f" cp -a {state}.copy/. {state}; head -c 1M /dev/zero > {state}/rest 2> /dev/null || true;"
        ' exec "$@"'
    )
    line = refused_run(idle_gateway, wrapper=(*OWN_MOUNTS, script, "sh"))
    assert "free space" in line


def test_a_full_disk_under_a_new_gateway(spare: Namespace, tmp_path: Path) -> None:
    wrapper = (*OWN_MOUNTS, f'mount -t tmpfs -o size=4k none {tmp_path}; exec "$@"', "sh")
    words = ("init", "--state", str(tmp_path / "new"), "--host", "a.test")
    line = refused_server(spare, *words, status=USAGE, wrapper=wrapper)
    assert "No space left on device" in line


def test_init_where_a_gateway_is(idle_gateway: VpnGateway) -> None:
    before = (idle_gateway.state / "certificate.pem").read_bytes()
    words = ("init", "--state", str(idle_gateway.state), "--host", "a.test")
    line = refused_server(idle_gateway.host, *words, status=USAGE)
    assert "holds a gateway already" in line
    assert (idle_gateway.state / "certificate.pem").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--host", "two words"), "neither a host name nor an address"),
        (("--host", "a.test", "--pool4", "banana"), "pool4"),
        (("--host", "a.test", "--pool4", "10.0.0.1/8"), "host bits"),
        (("--host", "a.test", "--pool4", "10.0.0.0/31"), "too small for a gateway and a device"),
        (("--host", "a.test", "--pool6", "10.0.0.0/8"), "is not an IPv6 prefix"),
        (("--host", "a.test", "--pool4", "none", "--pool6", "none"), "both pools are 'none'"),
        (("--host", "a.test", "--listen", "0.0.0.0:70000"), "cannot listen on '0.0.0.0:70000'"),
        (("--host", "a.test", "--listen", "a.test:443"), "cannot listen on 'a.test:443'"),
        (("--host", "a.test", "--dns", "resolver"), "is not a DNS server's address"),
        (("--host", "a.test", "--cert", "/nowhere"), "--cert and --key belong together"),
        (("--host", "a.test", "--cert", "/nowhere", "--key", "/nowhere"), "cannot read /nowhere"),
        (
            ("--host", "a.test", "--cert", "/etc/passwd", "--key", "/etc/passwd"),
            "not a certificate",
        ),
        ((), "--host"),
    ],
)
def test_an_init_that_cannot_be_meant(
    spare: Namespace, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    state = tmp_path / "new"
    assert words in refused_server(spare, "init", "--state", str(state), *options, status=USAGE)
    assert not state.exists()


@pytest.mark.parametrize(
    "verb", [("run",), ("status",), ("list",), ("token", "a"), ("revoke", "a")]
)
def test_a_directory_without_a_gateway(
    spare: Namespace, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    line = refused_server(spare, *verb, "--state", str(tmp_path), status=USAGE)
    assert f"{tmp_path} holds no gateway" in line
    assert "qvpn-server init" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "words", "status"),
    [
        (("token", "../name"), "cannot name a device", USAGE),
        (("token", "first"), "a device named first exists", USAGE),
        (("revoke", "nobody"), "no device is named nobody", USAGE),  # says the running gateway
    ],
)
def test_devices_that_cannot_be_meant(
    vpn: Vpn, line: tuple[str, ...], words: str, status: int
) -> None:
    state = ("--state", str(vpn.gateway.state))
    assert words in refused_server(vpn.world.gateway, *line, *state, status=status)


def test_status_without_a_running_gateway_says_so(idle_gateway: VpnGateway) -> None:
    done = idle_gateway.command("status", check=False)
    assert (done.returncode, done.stderr) == (3, "")
    assert "no gateway runs on" in done.stdout
