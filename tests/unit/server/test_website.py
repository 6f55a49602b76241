"""What strangers see: an ordinary small web site, and nothing that it was not given."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.errors import UsageError
from qvpn_core.transport.interface import Request
from qvpn_server.website import MAX_FILE, Site, connect_ip_scope, refusal

NOW = 1_800_000_000.0
PATH = "/.well-known/masque/ip/*/*/"
MODIFIED = 1_700_000_000


def request(
    method: str = "CONNECT",
    path: str = PATH,
    protocol: str | None = "connect-ip",
    **headers: str,
) -> Request:
    fields = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Request(method, "https", "gw.example", path, protocol, fields)


def get(path: str, **headers: str) -> Request:
    return request("GET", path, None, **headers)


def put(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (MODIFIED, MODIFIED))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A site with what sites have, beside something that is none of it."""
    put(tmp_path, "secret.txt", "secret")
    root = tmp_path / "site"
    put(root, "index.html", "<h1>Bakery</h1>")
    put(root, "menu/index.html", "<h1>Menu</h1>")
    put(root, "style.css", "h1{}")
    put(root, "logo.svg", "<svg/>")
    put(root, "a file", "spaces")
    put(root, ".git/config", "hidden")
    put(root, ".htaccess", "hidden")
    put(root, ".well-known/security.txt", "Contact: mailto:a@example.org")
    return root


# The page that is built in


@pytest.mark.parametrize(
    "asked",
    [
        request(),
        get("/elsewhere"),
        request("POST", "/login", None),
        request("PROPFIND", "/elsewhere", None),
        request(protocol="connect-udp"),
        request(path="", protocol=None),
        get("/.well-known/qvpn/enrolment"),
    ],
)
def test_what_is_not_there_is_the_same_404_for_every_question(asked: Request) -> None:
    site = Site.built_in(NOW)
    assert site.answer(asked, NOW) == site.answer(get("/x"), NOW)
    assert site.answer(asked, NOW)[0] == 404


def test_the_pages_that_are_built_in_name_nothing() -> None:
    site = Site.built_in(NOW)
    for asked in (get("/"), get("/x"), request("POST", "/", None)):
        status, headers, body = site.answer(asked, NOW)
        text = (repr(headers) + body.decode()).lower()
        assert not any(word in text for word in ("vpn", "quic", "masque", "aioquic", "python"))
        assert "server" not in dict(headers)
        assert status in (200, 404, 405)


def test_a_page_has_the_fields_of_an_ordinary_server() -> None:
    status, headers, body = Site.built_in(NOW - 60).answer(get("/"), NOW)
    fields = dict(headers)
    assert status == 200
    assert fields["content-type"] == "text/html; charset=utf-8"
    assert fields["content-length"] == str(len(body))
    assert fields["date"] == "Fri, 15 Jan 2027 08:00:00 GMT"
    assert fields["last-modified"] == "Fri, 15 Jan 2027 07:59:00 GMT"
    assert fields["etag"].startswith('"')


def test_head_gets_the_header_of_get_and_no_content() -> None:
    site = Site.built_in(NOW)
    for path in ("/", "/x"):
        status, headers, body = site.answer(request("HEAD", path, None), NOW)
        assert (status, headers) == site.answer(get(path), NOW)[:2]
        assert body == b""


# A directory


@pytest.mark.parametrize(
    ("path", "content_type", "content"),
    [
        ("/", "text/html; charset=utf-8", "<h1>Bakery</h1>"),
        ("/index.html", "text/html; charset=utf-8", "<h1>Bakery</h1>"),
        ("/?page=1", "text/html; charset=utf-8", "<h1>Bakery</h1>"),
        ("/menu/", "text/html; charset=utf-8", "<h1>Menu</h1>"),
        ("/style.css", "text/css; charset=utf-8", "h1{}"),
        ("/logo.svg", "image/svg+xml", "<svg/>"),
        ("/a%20file", "application/octet-stream", "spaces"),
        ("/.well-known/security.txt", "text/plain; charset=utf-8", "Contact: mailto:a@example.org"),
    ],
)
def test_files_are_served(root: Path, path: str, content_type: str, content: str) -> None:
    status, headers, body = Site.load(root).answer(get(path), NOW)
    assert (status, body.decode()) == (200, content)
    assert dict(headers)["content-type"] == content_type
    assert dict(headers)["last-modified"] == "Tue, 14 Nov 2023 22:13:20 GMT"


@pytest.mark.parametrize(
    "path",
    [
        "/secret.txt",
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/menu/../../secret.txt",
        "/menu/%2e%2e%2f%2e%2e%2fsecret.txt",
        "/..%5csecret.txt",
        "//etc/passwd",
        "/index.html%00.png",
        "/.git/config",
        "/.htaccess",
        "/link.txt",
        "/linked/secret.txt",
        "/loop/index.html",
        "/pipe",
        "/socket",
    ],
)
def test_nothing_else_is(root: Path, path: str) -> None:
    (root / "link.txt").symlink_to(root.parent / "secret.txt")
    (root / "linked").symlink_to(root.parent)
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(root / "socket"))
        site = Site.load(root)
    assert site.answer(get(path), NOW) == site.answer(get("/x"), NOW)


@given(st.text(alphabet="/.%2eEfFsecrt\\\0mnu", max_size=40))
def test_no_path_leaves_the_directory(path: str) -> None:
    site = Site.built_in(NOW)
    status, _headers, body = site.answer(get("/" + path), NOW)
    assert b"secret" not in body
    assert status == (200 if path in ("",) else 404)


def test_a_link_inside_the_directory_is_a_file(root: Path) -> None:
    (root / "home.html").symlink_to("index.html")
    assert Site.load(root).answer(get("/home.html"), NOW)[2] == b"<h1>Bakery</h1>"


def test_a_directory_without_its_slash_moved(root: Path) -> None:
    site = Site.load(root)
    status, headers, _body = site.answer(get("/menu"), NOW)
    assert (status, dict(headers)["location"]) == (301, "/menu/")
    assert site.answer(get("/.well-known"), NOW)[0] == 404  # nothing to list


def test_the_sites_own_page_for_what_is_missing(root: Path) -> None:
    put(root, "404.html", "gone fishing")
    site = Site.load(root)
    assert site.answer(request(), NOW)[::2] == (404, b"gone fishing")


def test_other_methods_are_not_allowed_on_what_is_there(root: Path) -> None:
    site = Site.load(root)
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        status, headers, _body = site.answer(request(method, "/", None), NOW)
        assert (status, dict(headers)["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("if_none_match", "{etag}", 304),
        ("if_none_match", 'W/"other", W/{etag}', 304),
        ("if_none_match", "*", 304),
        ("if_none_match", '"other"', 200),
        ("if_modified_since", "Tue, 14 Nov 2023 22:13:20 GMT", 304),
        ("if_modified_since", "Tue, 14 Nov 2023 22:13:19 GMT", 200),
        ("if_modified_since", "yesterday", 200),
    ],
)
def test_who_has_it_already_is_told_so(root: Path, field: str, value: str, status: int) -> None:
    site = Site.load(root)
    etag = dict(site.answer(get("/"), NOW)[1])["etag"]
    answer = site.answer(get("/", **{field: value.format(etag=etag)}), NOW)
    assert answer[0] == status
    assert dict(answer[1])["etag"] == etag
    assert (answer[2] == b"") == (status == 304)


def test_a_site_that_cannot_be_held_in_memory_is_refused(root: Path) -> None:
    (root / "film").write_bytes(bytes(MAX_FILE + 1))
    with pytest.raises(UsageError, match="too large"):
        Site.load(root)
    with pytest.raises(UsageError, match="no directory"):
        Site.load(root / "film")
    with pytest.raises(UsageError, match="no directory"):
        Site.load(root / "missing")


# Tunnels


def test_a_device_is_told_why() -> None:
    status, headers, body = refusal(request(), 503, "no address is free", NOW)
    assert status == 503
    assert dict(headers)["content-length"] == str(len(body))
    assert body == b"no address is free\n"


def test_what_is_a_request_for_a_tunnel() -> None:
    scope = connect_ip_scope(request())
    assert scope is not None
    assert scope.unlimited
    limited = connect_ip_scope(request(path="/.well-known/masque/ip/192.0.2.0%2F24/17/"))
    assert limited is not None
    assert not limited.unlimited


@pytest.mark.parametrize(
    "other",
    [
        request("GET", protocol=None),
        request(protocol=None),
        request(protocol="connect-udp"),
        request(path="/"),
        request(path="/.well-known/masque/ip/"),
        request(path="/.well-known/masque/ip/*/*"),
        request(path="/.well-known/masque/ip/*/999/"),
        request(path="/.well-known/masque/udp/*/*/"),
    ],
)
def test_what_is_not(other: Request) -> None:
    assert connect_ip_scope(other) is None
