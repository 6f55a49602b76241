"""What is compiled into the native datapath, told in its wheel: licence texts and a bill.

``python -m tools.packages.crates WHEEL`` rewrites a wheel that maturin has just made of
`datapath/`: texts go below `licenses/` (PEP 639), a CycloneDX document to `sboms/` (PEP 770) of its
`.dist-info`. Only what ends up in the module is told, and neither what builds or tests it, nor any
directory of the machine. The same crates give the same bytes; the one time is SOURCE_DATE_EPOCH, if
it is set.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tomllib
import uuid
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.parser import HeaderParser
from pathlib import Path
from typing import Any, Final

from tools.packages.description import PROJECT, PackageError

CRATE: Final = PROJECT / "datapath"
BILL: Final = "qvpn-datapath.cdx.json"
_NAMESPACE: Final = uuid.UUID("2f0c4c1e-3a55-4d0e-8a43-6b6a0b0f4d11")
_TEXT: Final = re.compile(r"(UN)?LICEN[CS]E|COPYING|COPYRIGHT|NOTICE|AUTHORS", re.IGNORECASE)
_CODE: Final = frozenset((".c", ".cc", ".go", ".h", ".pl", ".py", ".rs", ".sh"))


@dataclass(frozen=True, slots=True)
class Part:
    """A crate, or another library, that is compiled in. `texts` are its licence files by name."""

    name: str
    version: str
    purl: str
    licence: str
    texts: Mapping[str, bytes]
    checksum: str = ""

    def component(self) -> dict[str, Any]:
        """As CycloneDX has it."""
        found: dict[str, Any] = {
            "type": "library",
            "bom-ref": self.purl,
            "name": self.name,
            "version": self.version,
            "purl": self.purl,
            "licenses": [{"expression": self.licence}],
        }
        if self.checksum:
            found["hashes"] = [{"alg": "SHA-256", "content": self.checksum}]
        return found


def texts(directory: Path) -> dict[str, bytes]:
    """The licence files in `directory` and below it, where the code of others has its own."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if _TEXT.match(path.name) and path.suffix not in _CODE and path.is_file()
    }


def parts(metadata: Mapping[str, Any], tree: str, lock: str) -> list[Part]:
    """The crates of `tree` but for our own, by name, and AWS-LC, which one of them brings.

    `tree` are lines "NAME vVERSION" of cargo tree, which knows what is really compiled in: cargo
    metadata, where all else comes from, also takes what the dependencies of tests switch on. `lock`
    is Cargo.lock. Raises PackageError for a crate without a licence.
    """
    wanted = set(re.findall(r"^(\S+) v(\S+)", tree, re.MULTILINE))
    checksums = {
        (package["name"], package["version"]): package.get("checksum", "")
        for package in tomllib.loads(lock)["package"]
    }
    own = metadata["resolve"]["root"]
    found: list[Part] = []
    for package in metadata["packages"]:
        name, version = package["name"], package["version"]
        if (name, version) not in wanted or package["id"] == own:
            continue
        directory = Path(package["manifest_path"]).parent
        files = texts(directory)
        # As crates of before SPDX have it.
        licence = (package["license"] or "").replace("/", " OR ")
        if not files or not licence:
            raise PackageError(f"{name} {version} says no licence, or brings no text of it")
        purl = f"pkg:cargo/{name}@{version}"
        found.append(Part(name, version, purl, licence, files, checksums[name, version]))
        header = directory / "aws-lc/include/openssl/base.h"
        if header.is_file():
            (number,) = re.findall(r'AWSLC_VERSION_NUMBER_STRING "(.+)"', header.read_text())
            library = f"pkg:github/aws/aws-lc@v{number}"
            found.append(Part("aws-lc", number, library, licence, {}))  # the crate has its texts
    named = {(part.name, part.version) for part in found}
    if missing := wanted - named - {(p["name"], p["version"]) for p in metadata["packages"]}:
        raise PackageError(f"cargo metadata does not know {sorted(missing)}")
    return sorted(found, key=lambda part: (part.name, part.version))


def document(version: str, licence: str, inside: Iterable[Part], epoch: int | None) -> bytes:
    """The bill of materials of the module of `version`; without a time if `epoch` is None."""
    reference = f"pkg:pypi/qvpn-datapath@{version}"
    components = [part.component() for part in inside]
    subject = {
        "type": "library",
        "bom-ref": reference,
        "name": "qvpn-datapath",
        "version": version,
        "purl": reference,
        "licenses": [{"expression": licence}],
    }
    described: dict[str, Any] = {"component": subject}
    if epoch is not None:
        described["timestamp"] = datetime.fromtimestamp(epoch, UTC).isoformat()
    content = json.dumps([described, components], sort_keys=True)
    bill = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, content)}",
        "version": 1,
        "metadata": described,
        "components": components,
        "dependencies": [
            {"ref": reference, "dependsOn": sorted(item["bom-ref"] for item in components)}
        ],
    }
    return (json.dumps(bill, indent=1) + "\n").encode()


def complete(wheel: Path, inside: Iterable[Part], epoch: int | None) -> None:
    """Write the texts and the bill of `inside` into `wheel`, and its list of files anew.

    What it has of them already is replaced. Raises PackageError for what is no wheel.
    """
    inside = list(inside)
    try:
        with zipfile.ZipFile(wheel) as archive:
            old = {entry.filename: (entry, archive.read(entry)) for entry in archive.infolist()}
        (record,) = (name for name in old if re.fullmatch(r"[^/]+\.dist-info/RECORD", name))
        info = record.removesuffix("/RECORD")
        headers, _, description = old[f"{info}/METADATA"][1].decode().partition("\n\n")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise PackageError(f"{wheel} is no wheel ({error})") from None
    said = HeaderParser().parsestr(headers)
    licences = {
        f"{part.name}-{part.version}/{name}": text
        for part in inside
        for name, text in part.texts.items()
    }
    lines = [line for line in headers.splitlines() if line[14:] not in licences]
    lines += [f"License-File: {name}" for name in sorted(licences)]
    files = {name: data for name, (_, data) in old.items() if name != record}
    files[f"{info}/METADATA"] = ("\n".join(lines) + f"\n\n{description}").encode()
    files |= {f"{info}/licenses/{name}": licences[name] for name in sorted(licences)}
    bill = document(said["Version"], said["License-Expression"], inside, epoch)
    files[f"{info}/sboms/{BILL}"] = bill
    listed = io.StringIO()
    rows = csv.writer(listed, lineterminator="\n")
    rows.writerows((name, f"sha256={_digest(data)}", len(data)) for name, data in files.items())
    rows.writerow((record, "", ""))
    files[record] = listed.getvalue().encode()
    new = wheel.with_suffix(".new")
    with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            like = old[name if name in old else record][0]
            entry = zipfile.ZipInfo(name, like.date_time)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = like.create_system
            entry.external_attr = like.external_attr
            archive.writestr(entry, data)
    new.replace(wheel)


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def ask() -> list[Part]:
    """What cargo and rustc compile into the module on this machine, the standard library too."""
    rust = dict(re.findall(r"^(\w+): (.+)$", _run("rustc", "-vV"), re.MULTILINE))
    settings = tomllib.loads((CRATE / "pyproject.toml").read_text())
    features = ",".join(settings["tool"]["maturin"]["features"])
    chosen = ("--locked", "--features", features)
    tree = _run(
        *("cargo", "tree", *chosen, "--target", rust["host"], "--prefix", "none", "--no-dedupe"),
        *("--edges", "normal,no-proc-macro", "--format", "{p}"),
    )
    metadata = _run(
        *("cargo", "metadata", *chosen, "--filter-platform", rust["host"], "--format-version", "1")
    )
    crates = parts(json.loads(metadata), tree, (CRATE / "Cargo.lock").read_text())
    release = rust["release"]
    notices = Path(_run("rustc", "--print", "sysroot").strip(), "share/doc/rust")
    file = notices / "COPYRIGHT-library.html"  # some distributions have it elsewhere
    said = {file.name: file.read_bytes()} if file.is_file() else {}
    purl = f"pkg:generic/rust-std@{release}"
    return [*crates, Part("rust-std", release, purl, "MIT OR Apache-2.0", said)]


def _run(*words: str) -> str:
    done = subprocess.run(
        words, cwd=CRATE, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PackageError(f"{' '.join(words[:2])}: {done.stderr.strip()}")
    return done.stdout


def main() -> int:
    """``python -m tools.packages.crates WHEEL``. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Complete a wheel of the native datapath.")
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel
    time = os.environ.get("SOURCE_DATE_EPOCH", "")
    try:
        complete(wheel, ask(), int(time) if time else None)
    except PackageError as error:
        print(f"packages: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
