"""The native datapath's wheel in the packages' trees: by a small one that is made here."""

from __future__ import annotations

import _ssl
import base64
import hashlib
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tools.packages import build, datapath, sbom, tree
from tools.packages.description import SERVER, PackageError

PLATFORM = f"linux_{build.platform.machine()}"
MODULE = b"def which():\n    return 'native'\n"


def write_wheel(
    directory: Path, *, tags: str = f"cp311-abi3-{PLATFORM}", spoil: bool = False, number: str = "1"
) -> Path:
    """A wheel as maturin makes one: a module, a library, a licence and a bill of materials."""
    info = f"qvpn_datapath-0.{number}.dist-info"
    files = {
        "qvpn_datapath/__init__.py": MODULE,
        "qvpn_datapath/tests/test_it.py": b"",
        # Any library that Python can load; that of the tests' own has its symbols, or none.
        "qvpn_datapath/qvpn_datapath.abi3.so": Path(_ssl.__file__).read_bytes(),
        f"{info}/METADATA": (
            f"Metadata-Version: 2.4\nName: qvpn-datapath\nVersion: 0.{number}\n"
            "License-Expression: Apache-2.0\nLicense-File: LICENSE\n"
        ).encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tags}\n".encode(),
        f"{info}/licenses/LICENSE": b"A licence.\n",
        f"{info}/sboms/qvpn-datapath.cyclonedx.json": json.dumps(
            {
                "bomFormat": "CycloneDX",
                "components": [
                    {"type": "library", "name": "ring", "version": "1", "purl": "pkg:cargo/ring@1"}
                ],
            }
        ).encode(),
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()[:-1]},"
        f"{len(data)}\n"
        for name, data in files.items()
    )
    if spoil:
        files["qvpn_datapath/__init__.py"] += b"# changed\n"
    directory.mkdir(parents=True, exist_ok=True)
    wheel = directory / f"qvpn_datapath-0.{number}-{tags}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return wheel


def test_only_a_wheel_for_this_machine_is_taken(tmp_path: Path) -> None:
    assert datapath.find(tmp_path) is None
    write_wheel(tmp_path, tags="cp311-abi3-linux_s390x")
    write_wheel(tmp_path, tags=f"cp399-cp399-{PLATFORM}")
    assert datapath.find(tmp_path) is None
    ours = write_wheel(tmp_path)
    assert datapath.find(tmp_path) == ours


def test_nobody_guesses_which_of_two_is_meant(tmp_path: Path) -> None:
    write_wheel(tmp_path)
    write_wheel(tmp_path, number="2")
    with pytest.raises(PackageError, match="leave one of them"):
        datapath.find(tmp_path)


def test_what_is_no_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "some.whl").write_bytes(b"nothing")
    with pytest.raises(PackageError, match="is no wheel"):
        datapath.unpack(tmp_path / "some.whl", tmp_path / "there")


def test_a_wheel_that_was_changed_is_refused(tmp_path: Path) -> None:
    found = datapath.unpack(write_wheel(tmp_path, spoil=True), tmp_path / "there")
    with pytest.raises(PackageError, match="was changed"):
        tree.make(tmp_path / "tree", [found], [])


def test_it_is_imported_by_the_packages_interpreter_and_told_with_all_that_is_in_it(
    tmp_path: Path,
) -> None:
    found = datapath.unpack(write_wheel(tmp_path), tmp_path / "there")
    tree.make(tmp_path / "tree", [found], [])
    tree.compile_modules(tmp_path / "tree", Path("/usr/lib/qvpn"))
    done = subprocess.run(
        [
            str(tmp_path / "tree/bin" / tree.VERSION),
            *("-I", "-c", "import qvpn_datapath; print(qvpn_datapath.which())"),
        ],
        env={"LD_LIBRARY_PATH": str(tmp_path / "tree/lib")},  # what elf.bind makes needless
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("native\n", "")
    assert not list((tmp_path / "tree").rglob("test_it.py"))

    said = sbom.write_licences(tmp_path / "licences", [found])
    assert "qvpn-datapath 0.1: Apache-2.0\n" in said
    assert (tmp_path / "licences/qvpn-datapath/LICENSE").read_text() == "A licence.\n"
    bill = json.loads(sbom.document("qvpn", "1", 0, [found], set()))
    (component,) = (item for item in bill["components"] if item["name"] == "qvpn-datapath")
    assert [item["purl"] for item in component["components"]] == ["pkg:cargo/ring@1"]


@pytest.mark.skipif(shutil.which("strip") is None, reason="missing strip: install binutils")
def test_a_whole_package_holds_it(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path)
    build.stage(SERVER, tmp_path / "with/root", 1_700_000_000, wheel)
    library = tmp_path / "with/root/usr/lib/qvpn-server/lib" / tree.VERSION
    assert (library / "qvpn_datapath/__init__.py").read_bytes() == MODULE
    assert list((library / "qvpn_datapath/__pycache__").iterdir())
    built = library / "qvpn_datapath/qvpn_datapath.abi3.so"
    sections = subprocess.run(
        ["readelf", "-SW", str(built)], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert ".dynsym" in sections
    assert ".symtab" not in sections
    docs = tmp_path / "with/root/usr/share/doc/qvpn-server"
    assert (docs / "licenses/qvpn-datapath/LICENSE").is_file()
    assert '"qvpn-datapath"' in (docs / "sbom.cdx.json").read_text()
