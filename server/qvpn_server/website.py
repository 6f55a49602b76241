"""What a caller without a valid credential sees: a small static web site, and nothing else.

The administrator's directory, or one page built in, is read into memory as a whole when the gateway
starts or reloads. So a request is one look-up in a table: no path can leave the directory, and what
is not there takes as long as what is. Answers are those of an ordinary server, whatever was asked
and whyever the caller was not admitted. It refuses to serve hidden files, links that lead out of
the directory, and content by any method but GET and HEAD.
"""

from __future__ import annotations

import hashlib
import mimetypes
import os
from dataclasses import dataclass, field
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote

from qvpn_core.errors import UsageError
from qvpn_core.masque.uri_template import DEFAULT_TEMPLATE, Scope, match
from qvpn_core.transport.interface import Headers, Request

MAX_FILES = 4096
MAX_FILE = 1 << 20  # bytes; answers wait in memory until the caller takes them
MAX_SITE = 16 << 20  # bytes

Answer = tuple[int, Headers, bytes]

_HTML = "text/html; charset=utf-8"
_STYLE = (
    "body{margin:0;min-height:100vh;display:grid;place-content:center;text-align:center;"
    "font:1.1rem/1.6 Georgia,serif;color:#333;background:#f7f5f1}"
    "h1{font-weight:400;letter-spacing:.03em;margin:0 0 .3em}p{margin:0;color:#777}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#1d1c1a}p{color:#999}}"
)


def _page(title: str, words: str) -> bytes:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main><h1>{title}</h1><p>{words}</p></main>\n</body>\n</html>\n"
    ).encode()


_INDEX = _page("Nothing here yet", "This page is waiting for something worth writing down.")
_NOT_FOUND = _page("Not Found", "The page that you asked for does not exist.")
_NOT_ALLOWED = _page("Method Not Allowed", "This page can only be read.")
_MOVED = _page("Moved Permanently", "The page has another address.")

#: The standard library's own table; the system's files differ from machine to machine.
_TYPES = mimetypes.MimeTypes(filenames=())


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it is served."""

    content_type: str
    body: bytes
    modified: int
    etag: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.body).hexdigest()[:16]
        object.__setattr__(self, "etag", f'"{self.modified:x}-{digest}"')


class Site:
    """A static site in memory. Make one with :meth:`load` or :meth:`built_in`."""

    def __init__(self, files: dict[str, _File]) -> None:
        self._not_found = files.pop("/404.html", _File(_HTML, _NOT_FOUND, 0)).body
        self._files = dict(files)
        #: Directories without their slash, which a browser is sent to with it.
        self._directories: set[str] = set()
        for path, file in files.items():
            if path.endswith("/index.html"):
                self._files[path.removesuffix("index.html")] = file
            self._directories.update(str(parent) for parent in Path(path).parents)

    @classmethod
    def built_in(cls, now: float) -> Self:
        """One page, as of `now` (UNIX seconds)."""
        return cls({"/index.html": _File(_HTML, _INDEX, int(now))})

    @classmethod
    def load(cls, directory: Path) -> Self:
        """What is in `directory` now. Raises UsageError when it cannot be read or is too large."""
        root = directory.resolve()
        if not root.is_dir():
            raise UsageError(f"the web site {directory} is no directory", "give another --site")
        files: dict[str, _File] = {}
        total = 0
        try:
            for base, directories, names in os.walk(root, onerror=_raise):
                directories[:] = [name for name in directories if not _hidden(name)]
                for name in names:
                    path = Path(base, name)
                    # A link out of the directory, a socket, a pipe: as if it were not there.
                    if _hidden(name) or not path.is_file():
                        continue
                    if not path.resolve().is_relative_to(root):
                        continue
                    file = _read(path)
                    total += len(file.body)
                    files["/" + str(path.relative_to(root))] = file
                    if total > MAX_SITE or len(files) > MAX_FILES:
                        raise UsageError(
                            f"the web site {directory} is too large for a gateway",
                            f"keep it below {MAX_FILES} files and {MAX_SITE >> 20} MiB",
                        )
        except OSError as error:
            raise UsageError(
                f"cannot read the web site: {error.filename}: {error.strerror}",
                "check its permissions",
            ) from None
        return cls(files)

    def answer(self, request: Request, now: float) -> Answer:
        """Status, header fields and content for a caller at `now` (UNIX seconds)."""
        path = unquote(request.path.partition("?")[0])
        file = self._files.get(path)
        if file is None:
            if path in self._directories and path + "/" in self._files:
                location = (("location", quote(path) + "/"),)
                return _answer(request, 301, _HTML, _MOVED, now, location)
            return _answer(request, 404, _HTML, self._not_found, now)
        if request.method not in ("GET", "HEAD"):
            return _answer(request, 405, _HTML, _NOT_ALLOWED, now, (("allow", "GET, HEAD"),))
        validators = (
            ("last-modified", formatdate(file.modified, usegmt=True)),
            ("etag", file.etag),
        )
        if _unchanged(request, file):
            return 304, (("date", formatdate(now, usegmt=True)), *validators), b""
        return _answer(request, 200, file.content_type, file.body, now, validators)


def refusal(request: Request, status: int, words: str, now: float) -> Answer:
    """An answer to an authenticated device that gets no tunnel, with words for its user."""
    return _answer(request, status, "text/plain; charset=utf-8", words.encode() + b"\n", now)


def connect_ip_scope(request: Request) -> Scope | None:
    """What a CONNECT-IP request (RFC 9484 section 4.4) asks for, or None for any other request."""
    if request.method != "CONNECT" or request.protocol != "connect-ip":
        return None
    return match(DEFAULT_TEMPLATE, request.path)


def _answer(
    request: Request,
    status: int,
    content_type: str,
    body: bytes,
    now: float,
    more: Headers = (),
) -> Answer:
    headers = (
        ("date", formatdate(now, usegmt=True)),
        ("content-type", content_type),
        ("content-length", str(len(body))),
        *more,
    )
    # RFC 9110 section 9.3.2: HEAD is answered with the header fields of GET and no content.
    return status, headers, b"" if request.method == "HEAD" else body


def _unchanged(request: Request, file: _File) -> bool:
    """Whether the caller has this file already (RFC 9110 section 13.2.2)."""
    tags = request.header("if-none-match")
    if tags is not None:
        known = {tag.strip().removeprefix("W/") for tag in tags.split(",")}
        return file.etag in known or "*" in known
    since = request.header("if-modified-since")
    if since is None:
        return False
    try:
        return parsedate_to_datetime(since).timestamp() >= file.modified
    except (ValueError, OverflowError):
        return False


def _read(path: Path) -> _File:
    with path.open("rb") as file:
        body = file.read(MAX_FILE + 1)
        modified = int(os.fstat(file.fileno()).st_mtime)
    if len(body) > MAX_FILE:
        raise UsageError(f"{path} is too large for a gateway's web site", "1 MiB is the limit")
    kind = _TYPES.guess_type(path.name)[0] or "application/octet-stream"
    if kind.startswith("text/"):
        kind += "; charset=utf-8"
    return _File(kind, body, modified)


def _hidden(name: str) -> bool:
    return name.startswith(".") and name != ".well-known"


def _raise(error: OSError) -> None:
    raise error
