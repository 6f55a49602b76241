"""Keep translations complete: `make translations` after a text changed; `--check` changes nothing.

Reads every text of the app into one .ts file a language (lupdate), which keeps what is translated
and marks what is new, and makes the .qm files that the app loads (lrelease). English needs only its
plurals. Exit status 1 when something is not translated, or when `--check` finds files out of date.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIRECTORY = ROOT / "qvpn_gui" / "resources" / "translations"
LANGUAGES = ("en", "de", "zh_CN")


def main() -> int:
    """Write, or check; say what is missing."""
    if sys.argv[1:] == ["--check"]:
        with tempfile.TemporaryDirectory(prefix="qvpn-translations-") as copy:
            shutil.copytree(DIRECTORY, copy, dirs_exist_ok=True)
            problems = make(Path(copy))
            for file in sorted(Path(copy).iterdir()):
                kept = DIRECTORY / file.name
                if not kept.exists() or kept.read_bytes() != file.read_bytes():
                    problems.append(f"{kept.relative_to(ROOT)} is out of date")
    else:
        problems = make(DIRECTORY)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def make(directory: Path) -> list[str]:
    """Bring the files in `directory` up to date; returns what is not translated."""
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "qvpn_gui").rglob("*.py"))
    problems = []
    for language in LANGUAGES:
        file = directory / f"qvpn_{language}.ts"
        plural = ["-pluralonly"] if language == "en" else []
        _run(
            "lupdate", "-silent", "-no-obsolete", "-locations", "none", *plural,
            "-source-language", "en", "-target-language", language, *sources, "-ts", str(file),
        )  # fmt: skip
        _run("lrelease", "-silent", "-nounfinished", str(file), "-qm", str(file.with_suffix(".qm")))
        missing = file.read_text().count('type="unfinished"')
        if missing:
            problems.append(f"{file.name}: {missing} texts are not translated")
    return problems


def _run(tool: str, *arguments: str) -> None:
    program = Path(sys.executable).with_name(f"pyside6-{tool}")
    subprocess.run([str(program), *arguments], cwd=ROOT, check=True, timeout=120)


if __name__ == "__main__":
    sys.exit(main())
