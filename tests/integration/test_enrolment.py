"""From a link to a tunnel, by the commands alone; keys that change; what a scanner finds."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.world import World, plan
from tests.world.vpn import AT_ONCE, BIN, VpnClient, VpnGateway, no_defects, until

pytestmark = pytest.mark.netns

#: What the world must not be told by a gateway. The path of CONNECT-IP is in no answer either.
UNSPEAKABLE = ("qvpn", "vpn", "masque", "aioquic", "python", "connect-ip")


class Site:
    """A gateway with a site of its own, and a client that knows nothing of it."""

    def __init__(self, world: World, directory: Path) -> None:
        self.world = world
        self.directory = directory
        self.pages = directory / "pages"
        self.pages.mkdir()
        (self.pages / "index.html").write_text("<h1>Bakery</h1>")
        self.gateway = VpnGateway(world.gateway, directory / "gateway")
        self.gateway.init("--site", str(self.pages))
        self.gateway.start()

    def client(self, name: str, host: int = 1) -> VpnClient:
        """A machine that was never enrolled."""
        where = self.world.client if host == 1 else self.world.client2
        return VpnClient(where, self.directory / name)

    def link(self, name: str, *options: str) -> str:
        """What `qvpn-server invite` prints."""
        return self.gateway.command("invite", name, *options).stdout.strip()

    def session(self, device: str) -> dict[str, object] | None:
        """The live session of a device."""
        return self.gateway.session(device)


@pytest.fixture(scope="module")
def site(namespaces_work: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One gateway for the module; tests enrol devices of their own."""
    with World(second_client=True, relay=False) as world:
        site = Site(world, tmp_path_factory.mktemp("site"))
        yield site
        no_defects(site.gateway.log.read_text())


def enroll(
    client: VpnClient, text: str, *options: str, stdin: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run `qvpn enroll`."""
    argv = [str(BIN / "qvpn"), "enroll", "-" if stdin else text, *options]
    return client.host.run(
        argv, check=False, timeout=20, env=client.environment, input=text if stdin else None
    )


# Getting in


def test_a_link_and_two_commands_make_a_tunnel(site: Site) -> None:
    with site.client("simple") as client:
        done = enroll(client, site.link("simple"))
        assert done.returncode == 0, done.stderr
        name = plan.GATEWAY4
        assert done.stdout.splitlines()[0] == f"enrolled as simple at {name}"
        assert done.stdout.splitlines()[-1] == f"connect with: qvpn up {name}"
        stored = client.directory / "config" / "profiles"
        assert {path.name: oct(path.stat().st_mode & 0o777) for path in stored.iterdir()} == {
            f"{name}.toml": "0o600",
            f"{name}.key": "0o600",
        }
        client.up(name=name)
        assert client.status()["state"] == "connected"
        assert site.session("simple") is not None
        client.down()
        shown = client.command("profile", "show", name).stdout
        assert "simple" in shown
        assert "PRIVATE" not in shown
        client.command("profile", "remove", name)
        assert list(stored.iterdir()) == []


def test_a_mail_on_standard_input_will_do(site: Site) -> None:
    with site.client("mail") as client:
        link = site.link("mail", "--route", "192.0.2.0/24")
        mail = f"Dear colleague,\n\n> {link[:50]}=\n> {link[50:]}\n\nyours, the administrator\n"
        done = enroll(client, mail, "--profile", "work", stdin=True)
        assert done.returncode == 0, done.stderr
        assert "routes   192.0.2.0/24" in done.stdout
        assert 'mode = "only"' in (client.directory / "config/profiles/work.toml").read_text()


def test_refusals_are_one_line_and_leave_nothing(site: Site) -> None:
    with site.client("refused") as client:
        used = site.link("first")
        assert enroll(client, used, "--profile", "first").returncode == 0
        withdrawn = site.link("withdrawn")
        site.gateway.command("uninvite", "withdrawn")
        good = site.link("good")
        for text, words in (
            (used, "used before"),
            (withdrawn, "revoked"),
            (good[:50] + ("A" if good[50] != "A" else "B") + good[51:], "changed on its way"),
            (good[:-9], "cut off"),
            ("hello", "no invite"),
        ):
            done = enroll(client, text, "--profile", "x")
            assert done.returncode != 0
            assert done.stdout == ""
            assert len(done.stderr.splitlines()) == 1, done.stderr
            assert done.stderr.startswith("qvpn: ")
            assert words in done.stderr
        done = enroll(client, good, "--profile", "first")
        assert "exists" in done.stderr
        assert client.command("profile", "list").stdout.split() == ["first"]
        names = {path.name for path in (client.directory / "config/profiles").iterdir()}
        assert names == {"first.toml", "first.key"}
        assert enroll(client, good, "--profile", "second").returncode == 0


def test_the_secret_of_an_invite_stays_out_of_the_registry_and_the_log(site: Site) -> None:
    link = site.link("secret")
    state = site.gateway.state
    kept = b"".join(path.read_bytes() for path in state.glob("registry*"))
    assert link.encode() not in kept
    assert link[-30:].encode() not in kept
    with site.client("secret") as client:
        assert enroll(client, link).returncode == 0
        key = (client.directory / f"config/profiles/{plan.GATEWAY4}.key").read_text()
    assert link not in site.gateway.log.read_text()
    assert key.splitlines()[1].encode() not in kept


def test_a_revoked_device_is_cut_and_does_not_come_back(site: Site) -> None:
    with site.client("gone") as client:
        assert enroll(client, site.link("gone"), "--profile", "home").returncode == 0
        client.up()
        site.gateway.command("revoke", "gone")
        until(lambda: site.session("gone") is None, "the session is cut", AT_ONCE)
        client.wait_for("failed")
        assert client.status()["reason"] == "authentication"


# Keys that change


def ticket(client: VpnClient) -> Path:
    return client.directory / "state" / "tickets" / "home"


def test_reconnecting_resumes_with_a_ticket_that_only_its_owner_reads(site: Site) -> None:
    with site.client("resuming") as client:
        assert enroll(client, site.link("resuming"), "--profile", "home").returncode == 0
        for _ in range(2):
            client.up("--transport", "quic")
            assert ticket(client).stat().st_mode & 0o777 == 0o600
            client.down()
        client.command("profile", "remove", "home")
        assert not ticket(client).exists()


def test_the_next_key_is_announced_before_it_is_used(namespaces_work: None, tmp_path: Path) -> None:
    with World(second_client=True, relay=False) as world:
        site = Site(world, tmp_path)
        with site.client("told") as told, site.client("late", 2) as late:
            for client, name in ((told, "told"), (late, "late")):
                assert enroll(client, site.link(name), "--profile", "home").returncode == 0
            told.up()
            peer = told.peek()["since"]
            site.gateway.command("rotate")
            assert told.peek()["since"] == peer, "live sessions go on"
            told.down()
            told.up()
            profile = (told.directory / "config/profiles/home.toml").read_text()
            assert profile.count("sha256/") == 2
            switched = site.gateway.command("rotate", "--switch").stdout
            assert told.peek()["state"] == "connected", "live sessions go on"
            told.down()
            told.up()
            profile = (told.directory / "config/profiles/home.toml").read_text()
            assert next(word for word in switched.split() if word.startswith("sha256/")) in profile
            assert profile.count("sha256/") == 1
            # Who was away for all that time is not lied to.
            done = late.command("up", "home", check=False)
            assert "does not have the pinned key" in done.stderr
        assert site.gateway.command("rotate", "--switch", check=False).returncode == 2
        no_defects(site.gateway.log.read_text())


def test_sighup_reads_the_certificate_and_the_site_anew(
    namespaces_work: None, tmp_path: Path
) -> None:
    with World(relay=False) as world:
        site = Site(world, tmp_path)
        with site.client("steady") as client:
            assert enroll(client, site.link("steady"), "--profile", "home").returncode == 0
            client.up()
            since = client.peek()["since"]
            (site.pages / "index.html").write_text("<h1>Closed</h1>")
            assert site.gateway.process is not None
            site.gateway.process.send_signal(signal.SIGHUP)
            until(lambda: "reloaded" in site.gateway.log.read_text(), "it reloads")
            (site.gateway.state / "certificate.pem").write_text("nonsense")
            done = site.gateway.command("reload", check=False)
            assert done.returncode != 0
            assert "certificate" in done.stderr
            assert client.peek()["since"] == since
            assert site.gateway.running


# Scanners


def nmap(world: World, *options: str) -> str:
    """Scan the gateway's ports from the client."""
    if shutil.which("nmap") is None:
        pytest.skip("nmap is not installed (Debian package nmap)")
    argv = ["nmap", "-n", "-Pn", "-p", "443", "-T4", "--max-retries", "1", *options, plan.GATEWAY4]
    return world.client.run(argv, check=True, timeout=100).stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["-sU", "-sT"])
def test_a_port_scanner_finds_nothing_with_a_name(site: Site, kind: str) -> None:
    found = nmap(site.world, "-sV", "--version-light", kind)
    lines = [line for line in found.splitlines() if line.startswith("443/")]
    assert len(lines) == 1, found
    assert not [word for word in UNSPEAKABLE if word in found.lower()], found
    assert "open" in lines[0]
    if kind == "-sT":
        assert "http" in lines[0]


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_curl_is_served_the_site_on_tcp(site: Site, version: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed (Debian package curl)")
    url = f"https://{plan.GATEWAY4}/"
    argv = ["curl", "--insecure", "--silent", "--show-error", "--include", version, url]
    found = site.world.client.run(argv, check=True, timeout=30).stdout
    head, _, body = found.replace("\r", "").partition("\n\n")
    assert body == (site.pages / "index.html").read_text()
    assert head.startswith("HTTP/2 200" if version == "--http2" else "HTTP/1.1 200 OK")
    fields = {line.partition(":")[0].lower(): line.partition(": ")[2] for line in head.split("\n")}
    assert fields["alt-svc"] == 'h3=":443"; ma=86400'
    assert fields["content-length"] == str(len(body))
    assert not [word for word in UNSPEAKABLE if word in found.lower()], found


def test_the_audit_names_who_invited_and_who_came(site: Site) -> None:
    with site.client("audited") as client:
        assert enroll(client, site.link("audited")).returncode == 0
    entries = json.loads(site.gateway.command("audit", "--json").stdout)
    mine = [entry for entry in entries if entry["subject"] == "audited"]
    assert {entry["actor"] for entry in mine} >= {"uid 0", "invite audited"}
