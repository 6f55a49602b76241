"""The wheel of the native datapath says what is compiled into it: by canned words of cargo."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.test_datapath import write_wheel
from tools.packages import crates, datapath, sbom
from tools.packages.description import PackageError

INFO = "qvpn_datapath-0.1.dist-info"
TREE = """\
qvpn-datapath v0.1 (/somewhere/datapath)
aws-lc-rs v1.19.0
aws-lc-sys v0.47.0
libc v0.2.191
libc v0.2.191
"""
LOCK = """\
version = 4

[[package]]
name = "aws-lc-rs"
version = "1.19.0"
checksum = "aa"

[[package]]
name = "aws-lc-sys"
version = "0.47.0"
checksum = "bb"

[[package]]
name = "libc"
version = "0.2.191"
checksum = "cc"

[[package]]
name = "proptest"
version = "1.12.0"
checksum = "dd"

[[package]]
name = "qvpn-datapath"
version = "0.1"
"""


def metadata(home: Path) -> dict[str, Any]:
    """What `cargo metadata` says, with the sources of the crates below `home`."""
    sources = {
        "qvpn-datapath-0.1/LICENSE": "Ours.\n",
        "aws-lc-rs-1.19.0/LICENSE": "ISC.\n",
        "aws-lc-sys-0.47.0/LICENSE": "AWS.\n",
        "aws-lc-sys-0.47.0/aws-lc/third_party/fiat/LICENSE": "Fiat.\n",
        "aws-lc-sys-0.47.0/aws-lc/include/openssl/base.h": (
            '#define AWSLC_VERSION_NAME "AWS-LC"\n#define AWSLC_VERSION_NUMBER_STRING "5.12.0"\n'
        ),
        "libc-0.2.191/LICENSE-APACHE": "Apache.\n",
        "libc-0.2.191/LICENSE-MIT": "MIT.\n",
        "libc-0.2.191/src/license.rs": "// no text of a licence\n",
        "proptest-1.12.0/LICENSE-MIT": "MIT.\n",
    }
    for name, text in sources.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    licences = {
        ("proptest", "1.12.0"): "MIT OR Apache-2.0",
        ("libc", "0.2.191"): "MIT/Apache-2.0",
        ("aws-lc-sys", "0.47.0"): "ISC AND MIT",
        ("aws-lc-rs", "1.19.0"): "ISC",
        ("qvpn-datapath", "0.1"): "Apache-2.0",
    }
    return {
        "packages": [
            {
                "id": f"{name}@{version}",
                "name": name,
                "version": version,
                "license": licence,
                "manifest_path": str(home / f"{name}-{version}/Cargo.toml"),
            }
            for (name, version), licence in licences.items()
        ],
        "resolve": {"root": "qvpn-datapath@0.1", "nodes": []},
    }


def test_what_is_compiled_in_is_found_and_nothing_else(tmp_path: Path) -> None:
    found = crates.parts(metadata(tmp_path), TREE, LOCK)
    assert [(part.name, part.version, part.licence, part.checksum) for part in found] == [
        ("aws-lc", "5.12.0", "ISC AND MIT", ""),
        ("aws-lc-rs", "1.19.0", "ISC", "aa"),
        ("aws-lc-sys", "0.47.0", "ISC AND MIT", "bb"),
        ("libc", "0.2.191", "MIT OR Apache-2.0", "cc"),
    ]
    assert found[2].texts == {"LICENSE": b"AWS.\n", "aws-lc/third_party/fiat/LICENSE": b"Fiat.\n"}
    assert found[3].texts == {"LICENSE-APACHE": b"Apache.\n", "LICENSE-MIT": b"MIT.\n"}


def test_a_crate_without_a_licence_is_refused(tmp_path: Path) -> None:
    said = metadata(tmp_path)
    (tmp_path / "aws-lc-rs-1.19.0/LICENSE").unlink()
    with pytest.raises(PackageError, match=r"aws-lc-rs 1\.19\.0 .* no text"):
        crates.parts(said, TREE, LOCK)


def test_a_crate_that_only_the_tree_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="other"):
        crates.parts(metadata(tmp_path), f"{TREE}other v1.0.0\n", LOCK)


def test_what_is_no_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "some.whl").write_bytes(b"nothing")
    with pytest.raises(PackageError, match="is no wheel"):
        crates.complete(tmp_path / "some.whl", [], None)


def test_a_wheel_lists_all_that_it_holds_and_each_time_the_same(tmp_path: Path) -> None:
    inside = crates.parts(metadata(tmp_path / "home"), TREE, LOCK)
    wheel = write_wheel(tmp_path)
    crates.complete(wheel, inside, 1_700_000_000)
    first = wheel.read_bytes()
    crates.complete(wheel, inside, 1_700_000_000)
    assert wheel.read_bytes() == first
    assert not wheel.with_suffix(".new").exists()

    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
        assert {entry.date_time for entry in archive.infolist()} == {
            entry.date_time for entry in archive.infolist() if entry.filename == f"{INFO}/RECORD"
        }
    rows = list(csv.reader(io.StringIO(files[f"{INFO}/RECORD"].decode())))
    assert [name for name, _, _ in rows] == list(files)
    assert rows[-1] == [f"{INFO}/RECORD", "", ""]
    for name, digest, size in rows[:-1]:
        value = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).decode()
        assert (digest, int(size)) == (f"sha256={value.rstrip('=')}", len(files[name]))
    headers = files[f"{INFO}/METADATA"].decode().splitlines()
    named = [line.partition(": ")[2] for line in headers if line.startswith("License-File: ")]
    prefix = f"{INFO}/licenses/"
    assert sorted(named) == sorted(
        name.removeprefix(prefix) for name in files if name.startswith(prefix)
    )
    assert str(tmp_path).encode() not in b"".join(files.values())


def test_the_bill_says_where_each_crate_comes_from(tmp_path: Path) -> None:
    inside = crates.parts(metadata(tmp_path), TREE, LOCK)
    bill = json.loads(crates.document("0.1", "Apache-2.0", inside, 1_700_000_000))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"
    assert bill["components"][-1] == {
        "type": "library",
        "bom-ref": "pkg:cargo/libc@0.2.191",
        "name": "libc",
        "version": "0.2.191",
        "purl": "pkg:cargo/libc@0.2.191",
        "licenses": [{"expression": "MIT OR Apache-2.0"}],
        "hashes": [{"alg": "SHA-256", "content": "cc"}],
    }
    (whole,) = bill["dependencies"]
    assert whole["ref"] == bill["metadata"]["component"]["bom-ref"]
    assert set(whole["dependsOn"]) == {item["bom-ref"] for item in bill["components"]}
    assert "timestamp" not in json.loads(crates.document("0.1", "MIT", inside, None))["metadata"]


def test_packages_tell_it_with_every_text(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path)
    crates.complete(wheel, crates.parts(metadata(tmp_path / "home"), TREE, LOCK), None)
    found = datapath.unpack(wheel, tmp_path / "there")
    sbom.write_licences(tmp_path / "licences", [found])
    texts = tmp_path / "licences/qvpn-datapath"
    assert (texts / "LICENSE").read_text() == "A licence.\n"
    assert (texts / "aws-lc-sys-0.47.0/aws-lc/third_party/fiat/LICENSE").read_text() == "Fiat.\n"
    assert (texts / "libc-0.2.191/LICENSE-MIT").read_text() == "MIT.\n"
    bill = json.loads(sbom.document("qvpn", "1", 0, [found], set()))
    (component,) = (item for item in bill["components"] if item["name"] == "qvpn-datapath")
    assert {item["name"] for item in component["components"]} == {
        *("aws-lc", "aws-lc-rs", "aws-lc-sys", "libc"),
        "ring",  # what the wheel had before
    }
