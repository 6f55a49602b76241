"""The gateway's image: built by buildah from a fresh Debian, run by runc, used by a client.

There is no registry within reach, so the base is what debootstrap makes. Neither buildah, which
works by chroot here, nor runc leaves a process; each runs in a session of its own that is killed as
a whole when it takes too long, and writes to files, not to pipes that somebody might keep open.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.packaging import system
from tests.packaging.conftest import Built
from tests.packaging.system import PROJECT, ROOTS
from tests.world import World, plan, probes, unavailable
from tests.world.vpn import VpnClient, leaves_nothing, until

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(900)]

STATE: Final = ("--state", "/var/lib/qvpn-server")
NET_BIND_SERVICE: Final = 1 << 10
NET_ADMIN: Final = 1 << 12
#: $1 base, $2 context, $3 directory for what buildah keeps. Prints the directory of the image.
_BUILD: Final = """
# A program that asks whether there is more room for daemons finds no place to say so.
unset XDG_RUNTIME_DIR
keep=$3
echo '{"default": [{"type": "insecureAcceptAnything"}]}' > "$keep/policy.json"
run() {
  word=$1
  shift
  buildah --root "$keep/root" --runroot "$keep/run" --storage-driver vfs "$word" "$@"
}
base=$(run from scratch)
tar -C "$1" -c --exclude='*.deb' --exclude=./usr/share/doc --exclude=./usr/share/locale . |
  tar -C "$(run mount "$base")" -x
run commit --signature-policy "$keep/policy.json" -q "$base" localhost/base >/dev/null
run rm "$base" >/dev/null
run bud --isolation chroot --pull-never --signature-policy "$keep/policy.json" \
  --build-arg BASE=localhost/base -f packaging/oci/Containerfile -t localhost/qvpn-server "$2" >&2
run inspect --type image localhost/qvpn-server > "$keep/image.json"
made=$(run from --pull-never --signature-policy "$keep/policy.json" localhost/qvpn-server)
run mount "$made" > "$keep/rootfs"
"""


def ended(argv: list[str], log: Path, *, timeout: float, cwd: Path = PROJECT) -> int:
    """Run to the end, or kill everything that it started; its output is in `log`."""
    with log.open("w") as output:
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            return process.wait(timeout)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@dataclass(frozen=True)
class Image:
    """An image, unpacked: its files, and how it wants to be run."""

    rootfs: Path
    config: dict[str, Any]

    def user(self) -> tuple[int, int]:
        """The numbers of the user that it names."""
        for line in (self.rootfs / "etc/passwd").read_text().splitlines():
            name, _, uid, gid = line.split(":")[:4]
            if name == self.config["User"]:
                return int(uid), int(gid)
        raise AssertionError(f"there is no user {self.config['User']}")


@pytest.fixture(scope="module")
def image(built: Built) -> Iterator[Image]:
    if reason := unavailable():
        pytest.skip(reason)
    if missing := [name for name in ("buildah", "runc", "debootstrap") if not shutil.which(name)]:
        pytest.skip(f"missing {', '.join(missing)}: install it")
    if reason := system.prepare("bookworm", slim=True):
        pytest.skip(reason)
    keep = Path(tempfile.mkdtemp(prefix="qvpn-oci-"))
    # Each layer is a copy of everything: in memory that takes seconds, and is gone at once.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3g", "qvpn", keep], check=True, timeout=30)
    try:
        # What a person has: a package in dist/, and the checkout's files.
        context = keep / "context"
        shutil.copytree(PROJECT / "packaging/oci", context / "packaging/oci")
        (context / "dist").mkdir()
        shutil.copyfile(built.server, context / "dist" / built.server.name)
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        words += ["sh", "-euc", _BUILD, "sh", str(ROOTS / "bookworm-slim"), str(context), str(keep)]
        status = ended(words, keep / "log", timeout=300, cwd=context)
        assert status == 0, (keep / "log").read_text()[-3000:]
        config = json.loads((keep / "image.json").read_text())["OCIv1"]["config"]
        yield Image(Path((keep / "rootfs").read_text().strip()), config)
    finally:
        subprocess.run(["umount", "--lazy", keep], check=True, timeout=30)
        keep.rmdir()


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield made


class Container:
    """The image, run as ``run --cap-drop all --cap-add … --device /dev/net/tun`` would run it.

    With `ambient` as podman does it, which gives the added capabilities to the image's user; else
    as Docker, which leaves them for root. All files but the volume are read-only.
    """

    def __init__(self, image: Image, network: Path, directory: Path, *, ambient: bool) -> None:
        self.image = image
        self.directory = directory
        self.name = f"qvpn-{os.getpid()}-{directory.name}"
        self.state = directory / "state"
        self.log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("bundle", "volume", "state"):
            (directory / name).mkdir(parents=True)
        uid, gid = image.user()
        os.chown(directory / "volume", uid, gid)
        (directory / "volume").chmod(0o700)
        self._spec = _spec(image, network, directory / "volume", ambient=ambient)

    def run(self, *words: str, timeout: float = 60) -> str:
        """A command of the image to its end; what it printed. Fails with it."""
        self._write(*words)
        log = self.directory / "command.log"
        argv = self._runc("run", "--bundle", str(self.directory / "bundle"), f"{self.name}-command")
        status = ended(argv, log, timeout=timeout)
        assert status == 0, log.read_text()
        return log.read_text()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The image's own command, until SIGTERM has ended it in order."""
        self._write(*self.image.config["Cmd"])
        argv = self._runc("run", "--bundle", str(self.directory / "bundle"), self.name)
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            until(lambda: process.poll() is not None or self._serves(), "the gateway serves", 60)
            assert process.poll() is None, self.log.read_text()
            yield
            number = self.image.config["StopSignal"]
            assert ended(self._runc("kill", self.name, number), self.log, timeout=30) == 0
            assert process.wait(30) == 0, self.log.read_text()
        finally:
            ended(self._runc("delete", "--force", self.name), self.log, timeout=30)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)

    def exec(self, *words: str) -> str:
        """A command in the running container, as ``podman exec`` does it; what it printed."""
        log = self.directory / "exec.log"
        status = ended(self._runc("exec", self.name, *words), log, timeout=60)
        assert status == 0, log.read_text()
        return log.read_text()

    def _serves(self) -> bool:
        return (self.directory / "volume/admin.sock").exists()

    def _write(self, *words: str) -> None:
        self._spec["process"]["args"] = [*self.image.config["Entrypoint"], *words]
        (self.directory / "bundle/config.json").write_text(json.dumps(self._spec))

    def _runc(self, *words: str) -> list[str]:
        return ["runc", "--root", str(self.state), *words]


def _spec(image: Image, network: Path, volume: Path, *, ambient: bool) -> dict[str, Any]:
    """A runtime's configuration (OCI Runtime Specification, config.md)."""
    uid, gid = image.user()
    two = ["CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE"]
    given = two if ambient else []
    quiet = ["nosuid", "noexec", "nodev"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": uid, "gid": gid},
            "args": [],
            "env": list(image.config["Env"]),
            "cwd": "/",
            "capabilities": {
                "bounding": two,
                "permitted": given,
                "effective": given,
                "inheritable": given,
                "ambient": given,
            },
            "noNewPrivileges": ambient,
        },
        "root": {"path": str(image.rootfs), "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": quiet},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": quiet},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*quiet, "ro"]},
            {
                "destination": next(iter(image.config["Volumes"])),
                "type": "none",
                "source": str(volume),
                "options": ["bind", "rw"],
            },
        ],
        "linux": {
            "namespaces": [
                *({"type": kind} for kind in ("pid", "ipc", "uts", "mount")),
                {"type": "network", "path": str(network)},
            ],
            "devices": [
                {
                    "path": "/dev/net/tun",
                    "type": "c",
                    "major": 10,
                    "minor": 200,
                    "fileMode": 0o666,
                }
            ],
            "resources": {
                "devices": [
                    {"allow": False, "access": "rwm"},
                    {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "rw"},
                ]
            },
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            # And not /proc/sys: `unmask=/proc/sys`.
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger"],
        },
    }


def test_the_image_serves_as_a_user_of_its_own_and_keeps_its_state_in_a_volume(
    image: Image,
) -> None:
    config = image.config
    assert config["User"] == "qvpn-server"
    assert image.user()[0] != 0
    assert list(config["Volumes"]) == ["/var/lib/qvpn-server"]
    assert set(config["ExposedPorts"]) == {"443/udp", "443/tcp"}
    assert config["Cmd"] == ["run", *STATE]


def test_the_image_holds_no_leftovers_and_no_program_that_raises_rights_but_ours(
    image: Image,
) -> None:
    assert not list((image.rootfs / "tmp").iterdir())
    assert not list((image.rootfs / "var/lib/apt/lists").iterdir())
    assert not (image.rootfs / "usr/sbin/setcap").exists()
    raising = [
        path.relative_to(image.rootfs)
        for path in image.rootfs.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and "security.capability" in os.listxattr(path, follow_symlinks=False)
    ]
    assert [str(path) for path in raising] == ["usr/lib/qvpn-server/with-capabilities"]
    for path in (image.rootfs / "usr/lib/qvpn-server").rglob("*"):
        if not path.is_symlink():
            status = path.stat()
            assert (status.st_uid, status.st_mode & 0o6022) == (0, 0), path


@pytest.mark.parametrize("ambient", [True, False], ids=["as-podman", "as-docker"])
def test_a_client_connects_to_a_gateway_in_a_container(
    image: Image, world: World, tmp_path: Path, ambient: bool
) -> None:
    container = Container(image, world.gateway.path, tmp_path / "c", ambient=ambient)
    said = container.run("init", *STATE, "--host", plan.GATEWAY4)
    assert "created the gateway" in said
    with leaves_nothing(world.gateway, 5), container.running():
        status = container.exec("cat", "/proc/1/status")
        facts = dict(line.split(":", 1) for line in status.splitlines())
        for which in ("CapEff", "CapPrm", "CapAmb", "CapBnd"):
            assert int(facts[which], 16) == NET_ADMIN | NET_BIND_SERVICE, which
        assert facts["Uid"].split() == [str(image.user()[0])] * 4
        said = container.exec("qvpn-server", "invite", *STATE, "laptop")
        link = next(word for word in said.split() if word.startswith("qvpn://"))
        with VpnClient(world.client, tmp_path / "client") as client, leaves_nothing(world.client):
            client.command("enroll", "--profile", "home", link)
            client.up()
            assert probes.download(world.client, plan.ALPHA.v4, 1 << 20).size == 1 << 20
            client.down()


def test_a_container_without_the_capabilities_says_so(
    image: Image, world: World, tmp_path: Path
) -> None:
    container = Container(image, world.gateway.path, tmp_path / "c", ambient=False)
    container._spec["process"]["capabilities"]["bounding"] = []
    container.run("init", *STATE, "--host", plan.GATEWAY4)
    with pytest.raises(
        AssertionError,
        match=r"\Aqvpn-server: .* run it with --cap-add NET_ADMIN --cap-add NET_BIND_SERVICE",
    ):
        container.run(*image.config["Cmd"])
