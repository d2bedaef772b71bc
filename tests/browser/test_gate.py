"""Who may look at a viewer: over the network everyone who has its token, on this machine no page of another site."""

import contextlib
import gc
import re
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import viser
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from nerfit.cli import main
from nerfit.viewer.gate import Gate
from nerfit.viewer.server import Viewer
from viewer_ball import ball_scene

VISER: Any = f"viser-v{viser.__version__}"


@pytest.fixture
def viewer() -> Iterator[Viewer]:
    """Of the network: its gate is on all addresses, the server behind it on 127.0.0.1."""
    with pytest.warns(UserWarning, match="whole address"):
        viewer = Viewer(ball_scene(), "0.0.0.0", 17_400)
    with contextlib.closing(viewer):
        yield viewer


def ask(port: int, path: str = "/", *headers: str, method: str = "GET", more: bytes = b"") -> tuple[int, str, bytes]:
    """Status, head and body of an answer, by a client that knows nothing of HTTP's manners."""
    with socket.create_connection(("127.0.0.1", port), 20) as client:
        request = "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: localhost:{port}", *headers, "", ""])
        client.sendall(request.encode() + more)
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode(), body


def enter(viewer: Viewer) -> str:
    """The cookie header of a browser that was shown the address."""
    path = viewer.url.partition(f":{viewer.port}")[2]
    status, head, body = ask(viewer.port, path)
    cookie = re.search(r"Set-Cookie: (nerfit-\d+=\S+); Path=/; HttpOnly; SameSite=Strict$", head)
    assert status == 200 and cookie and b"url=/" in body and b"token" not in body
    return f"Cookie: {cookie[1]}"


@pytest.mark.parametrize("path", ["/", "/?token=", "/?token=wrong", "/?token=%00%ff", "/?websocket=x", "/assets/index.js"])
def test_without_the_token_there_is_nothing(viewer: Viewer, path: str) -> None:
    for headers in ((), ("Cookie: nerfit-17400=wrong",), ("Cookie: token",), ("Upgrade: websocket", "Connection: Upgrade")):
        status, head, body = ask(viewer.port, path, *headers)
        assert status == 403 and "Set-Cookie" not in head and b"viser" not in body and len(body) < 200


def test_with_the_token_there_is_the_page(viewer: Viewer) -> None:
    direct = ask(viewer.server.get_port())
    assert direct[0] == 200 and len(direct[2]) > 10_000
    assert ask(viewer.port, "/", enter(viewer))[::2] == direct[::2]
    assert ask(viewer.port, "/", "Accept: */*", enter(viewer), "X: y")[0] == 200
    assert ask(viewer.port, "/no/where", enter(viewer))[0] == 404
    assert ask(viewer.port, "/", enter(viewer), method="POST")[0] == 405


def test_a_second_request_on_a_connection_is_not_passed_on(viewer: Viewer) -> None:
    once = ask(viewer.port, "/", enter(viewer))
    assert ask(viewer.port, "/", enter(viewer), more=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == once


def test_who_waits_for_an_answer_is_not_forgotten(viewer: Viewer, caplog: pytest.LogCaptureFixture) -> None:
    """The loop alone keeps no task alive, and one that is lost closes its connection without an answer."""
    request = "\r\n".join(["GET / HTTP/1.1", "Host: localhost", enter(viewer), "Connection: Upgrade", "", ""])
    with socket.create_connection(("127.0.0.1", viewer.port), 20) as client:
        client.sendall(request.encode())
        client.shutdown(socket.SHUT_WR)
        for _ in range(20):
            gc.collect()
        client.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            while client.recv(1 << 16):
                pass
    assert [record.getMessage() for record in caplog.records if "destroyed" in record.getMessage()] == []


def test_a_websocket_passes_with_the_cookie_alone(viewer: Viewer) -> None:
    url = f"ws://localhost:{viewer.port}"
    name, _, value = enter(viewer).partition(": ")
    with connect(url, subprotocols=[VISER], additional_headers={name: value}, origin=f"http://localhost:{viewer.port}") as browser:  # type: ignore[arg-type]
        assert browser.subprotocol == VISER and len(browser.recv(timeout=20)) > 16
    for headers, origin in (({}, None), ({name: value}, "http://evil.example"), ({name: value}, "http://localhost:1")):
        with pytest.raises(InvalidStatus, match="403"):
            connect(url, subprotocols=[VISER], additional_headers=headers, origin=origin).close()  # type: ignore[arg-type]
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"{url}/?token={viewer.gate and viewer.gate.token}", subprotocols=[VISER]).close()


@pytest.mark.parametrize(
    "words", [b"", b"\r\n\r\n", b"GET\r\n\r\n", b"x" * 100_000, b"\xff\x00 / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nX"]
)
def test_who_speaks_no_http_gets_no_answer(viewer: Viewer, words: bytes) -> None:
    with socket.create_connection(("127.0.0.1", viewer.port), 20) as client:
        client.sendall(words)
        client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(22) in (b"", b"HTTP/1.1 403 Forbidden")
    assert ask(viewer.port)[0] == 403


def test_only_the_gate_is_on_the_network(viewer: Viewer) -> None:
    others = [address[4][0] for address in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET) if address[4][0] != "127.0.0.1"]
    for host in others:
        with pytest.raises(OSError):
            socket.create_connection((str(host), viewer.server.get_port()), 5)
    assert viewer.gate is not None and viewer.url.startswith(f"http://{socket.gethostname()}:{viewer.port}/?token=")


def test_tokens_are_long_and_never_the_same() -> None:
    gates = [Gate("127.0.0.1", 0, 1) for _ in range(2)]
    for gate in gates:
        gate.close()
    assert gates[0].token != gates[1].token and min(len(gate.token) for gate in gates) >= 24


def test_on_this_machine_no_page_of_another_site_is_answered() -> None:
    with warnings.catch_warnings(action="error"), contextlib.closing(Viewer(ball_scene(), port=17_450)) as viewer:
        assert viewer.gate is None and "token" not in viewer.url
        for origin in (None, "http://localhost:8000", "http://127.0.0.1:17450"):
            with connect(f"ws://127.0.0.1:{viewer.port}", subprotocols=[VISER], origin=origin) as browser:  # type: ignore[arg-type]
                assert len(browser.recv(timeout=20)) > 16
        for origin in ("http://evil.example", "http://localhost.evil.example", "http://127.0.0.1.evil.example:80", "null"):
            with pytest.raises(InvalidStatus, match="403"):
                connect(f"ws://127.0.0.1:{viewer.port}", subprotocols=[VISER], origin=origin).close()  # type: ignore[arg-type]
        assert viewer.server.request_share_url() is None


def test_a_token_can_not_be_switched_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", "procedural", "--host", "0.0.0.0", "--no-token"]) == 1
    assert "no option --no-token" in capsys.readouterr().err
