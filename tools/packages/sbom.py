"""What is inside a package, for people and for scanners: CycloneDX 1.6 and the licences.

The document names each distribution with its version, purl, licence and the hash of what was
copied; it holds no random number and no time but the given one.
"""

from __future__ import annotations

import hashlib
import json
import platform
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any, Final

from packaging.utils import canonicalize_name

from tools.packages import qt, tree

_NAMESPACE: Final = uuid.UUID("6f6a1a52-51e1-4f1c-9d7e-9484d7b4c0de")


def document(
    name: str, version: str, epoch: int, distributions: Iterable[Distribution], libraries: set[str]
) -> str:
    """The bill of materials as JSON. `libraries` are those of the system that are needed."""
    components = [_interpreter(), *map(_component, distributions)]
    components = [item for item in components if item["name"] != "qvpn"]
    subject = {
        "type": "application",
        "bom-ref": f"{name}@{version}",
        "name": name,
        "version": version,
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    content = json.dumps(components, sort_keys=True)
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, name + version + content)}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, UTC).isoformat(),
            "component": subject,
            "properties": [
                {"name": "qvpn:system-library", "value": library} for library in sorted(libraries)
            ],
        },
        "components": components,
        "dependencies": [
            {
                "ref": subject["bom-ref"],
                "dependsOn": sorted({item["bom-ref"] for item in components}),
            }
        ],
    }
    return json.dumps(bom, indent=1) + "\n"


def _interpreter() -> dict[str, Any]:
    version = platform.python_version()
    return {
        "type": "platform",
        "bom-ref": f"pkg:generic/cpython@{version}",
        "name": "cpython",
        "version": version,
        "purl": f"pkg:generic/cpython@{version}",
        "licenses": [{"license": {"id": "PSF-2.0"}}],
    }


def _component(distribution: Distribution) -> dict[str, Any]:
    name = canonicalize_name(distribution.metadata["Name"])
    purl = f"pkg:pypi/{name}@{distribution.version}"
    record = distribution.read_text("RECORD") or ""
    # Of the list of the wheel's files, as it is in the wheel: without what pip added.
    files = "\n".join(sorted(line for line in record.splitlines() if ",sha256=" in line))
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": distribution.version,
        "purl": purl,
        "properties": [
            {"name": "qvpn:files-sha256", "value": hashlib.sha256(files.encode()).hexdigest()}
        ],
    }
    if licence := licence_of(distribution):
        component["licenses"] = [{"license": {"name": licence}}]
    if inside := list(_linked(distribution, purl)):
        component["components"] = inside
    return component


def _linked(distribution: Distribution, parent: str) -> Iterator[dict[str, Any]]:
    """What is compiled into the distribution's libraries, as its own bills say it (PEP 770)."""
    found: dict[str, dict[str, Any]] = {}
    for file in distribution.files or ():
        if file.suffix != ".json" or file.parent.name != "sboms":
            continue
        bill = json.loads(Path(str(distribution.locate_file(file))).read_bytes())
        if bill.get("bomFormat") != "CycloneDX":
            continue
        for item in bill.get("components", ()):
            purl = str(item.get("purl", "")).partition("?")[0]
            if not purl or purl.startswith("pkg:pypi/"):
                continue  # the distribution itself
            kept = ("type", "name", "version", "hashes", "licenses")
            found[purl] = {key: item[key] for key in kept if key in item}
            found[purl] |= {"bom-ref": f"{parent}#{purl}", "purl": purl}
    yield from (found[purl] for purl in sorted(found))


def licence_of(distribution: Distribution) -> str:
    """The licence in a few words, empty when the distribution does not say."""
    metadata = distribution.metadata
    if "License-Expression" in metadata:
        return metadata["License-Expression"]
    classifiers = [
        str(line).rsplit(" :: ", 1)[-1]
        for line in metadata.get_all("Classifier") or ()
        if str(line).startswith("License ::")
    ]
    named = str(metadata.json.get("license", ""))
    return ", ".join(classifiers) or (named if "\n" not in named else named.splitlines()[0])


def write_licences(target: Path, distributions: Iterable[Distribution]) -> str:
    """Copy every licence below `target`, one directory for each; a list of them as text."""
    lines = ["This package contains, under these licences:", ""]
    for distribution in distributions:
        name = canonicalize_name(distribution.metadata["Name"])
        if name == "qvpn":
            continue
        lines.append(f"{name} {distribution.version}: {licence_of(distribution) or 'see below'}")
        texts = [*tree.licences(distribution), *(qt.licences() if name in qt.DISTRIBUTIONS else ())]
        for file, text in texts:
            path = target / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text)
    if any(canonicalize_name(each.metadata["Name"]) in qt.DISTRIBUTIONS for each in distributions):
        lines.append(
            "Qt, inside pyside6-essentials, is used under LGPL-3.0: shared libraries as published, "
            "which may be replaced. Source: https://download.qt.io/official_releases/"
        )
    lines.append(f"CPython {platform.python_version()}: PSF-2.0, see python/LICENSE.txt")
    return "\n".join(lines) + "\n"
