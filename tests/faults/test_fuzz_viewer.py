"""What a browser says to the viewer, damaged: nothing of nerfit breaks, and the next browser gets its picture.

As a script, ``test_fuzz_viewer.py FIRST COUNT FOLDER SUBJECT...``, it is the half that may die. The sibling of test_fuzz_readers.
"""

import contextlib
import io
import json
import random
import re
import socket
import threading
import time
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import viser
from test_fuzz_readers import Subject, damaged_bytes, damaged_json, damaged_text, fuzz, linux, survive_as_asked
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from nerfit.viewer.server import Viewer
from viewer_ball import Ball, ball_scene

QUICK, THOROUGH, PATIENCE = 25, 1000, 20
VISER: Any = f"viser-v{viser.__version__}"
CAMERA = {
    "type": "ViewerCameraMessage",
    "wxyz": [1.0, 0.0, 0.0, 0.0],
    "position": [0.0, 0.0, -4.0],
    "fov": 0.8,
    "near": 0.01,
    "far": 1000.0,
    "image_height": 48,
    "image_width": 64,
    "look_at": [0.0, 0.0, 0.0],
    "up_direction": [0.0, -1.0, 0.0],
}
CLICK = {"event_type": "click", "ray_origin": [0.0, 0.0, -4.0], "ray_direction": [0.0, 0.0, 1.0], "screen_pos": [[0.5, 0.5]]}


class Shown:
    """A viewer of the network that shows a ball, which one thread draws as a training would."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # who knows the address can look
            self.viewer = Viewer(ball_scene(), "0.0.0.0", 17_400)
        self.viewer.watch(Ball(), 4096)
        self.broken: BaseException | None = None
        self.name, self.value = f"nerfit-{self.viewer.port}", self.viewer.url.partition("token=")[2]
        self.thread = threading.Thread(target=self._draw, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.viewer.close()
        self.thread.join()

    def _draw(self) -> None:
        try:
            self.viewer.serve()
        except BaseException as error:
            self.broken = error

    @contextlib.contextmanager
    def browser(self) -> Any:
        """A websocket with the token that says where it stands, and the names of its controls."""
        headers, origin = {"Cookie": f"{self.name}={self.value}"}, f"http://localhost:{self.viewer.port}"
        url: Any = f"ws://localhost:{self.viewer.port}"
        with connect(url, subprotocols=[VISER], additional_headers=headers, origin=origin, max_size=None) as browser:  # type: ignore[arg-type]
            browser.send(msgspec.msgpack.encode(CAMERA))
            yield browser

    def says(self, browser: ClientConnection, words: bytes) -> bytes:
        """Everything up to the message that contains ``words``."""
        heard, end = b"", time.monotonic() + PATIENCE
        while words not in heard:
            heard += browser.recv(timeout=max(0.0, end - time.monotonic()))  # type: ignore[operator]
        return heard

    def check(self) -> None:
        """A browser that behaves sees the ball, and the drawing goes on."""
        with self.browser() as browser:
            self.says(browser, b"BackgroundImageMessage")
        if self.broken is not None:
            raise self.broken


shown = cache(Shown)


def write_messages(folder: Path) -> None:
    updates = [{"type": "GuiUpdateMessage", "uuid": "?", "updates": {"value": value}} for value in (True, 300, "depth", [1, 2, 3], 0.5)]
    click = {"type": "ScenePointerMessage", **CLICK, "modifier": None}
    told = [CAMERA, *updates, click, {"type": "GuiButtonHoldMessage", "uuid": "?", "frequency": 9.0}]
    (folder / "messages.json").write_text(json.dumps(told))


def write_request(folder: Path) -> None:
    lines = ["GET / HTTP/1.1", "Host: localhost", "Cookie: a=b; COOKIE", "Upgrade: websocket", "Connection: Upgrade", "Accept: */*", "", ""]
    (folder / "request").write_text("\n".join(lines))


def damage_messages(rng: random.Random, folder: Path) -> None:
    file, kinds = folder / "messages.json", (damaged_json, damaged_json, damaged_json, damaged_bytes)
    file.write_bytes(rng.choice(kinds)(rng, file.read_bytes()))


def damage_request(rng: random.Random, folder: Path) -> None:
    file, kinds = folder / "request", (damaged_text, damaged_text, damaged_bytes)
    file.write_bytes(rng.choice(kinds)(rng, file.read_bytes()))


def packed(data: bytes) -> list[bytes]:
    """The messages in a file as viser's pages send them; what is no JSON or fits in no message is sent as it is."""
    try:
        tree = json.loads(data)
        return [msgspec.msgpack.encode(message) for message in (tree if isinstance(tree, list) else [tree])]
    except (ValueError, TypeError, OverflowError, RecursionError):
        return [data]


def tell(folder: Path) -> None:
    """Say the messages, with a true control's identifier for each "?"."""
    data, chance = (folder / "messages.json").read_bytes(), random.Random((folder / "messages.json").stat().st_size)
    with shown().browser() as browser, contextlib.suppress(WebSocketException, OSError):
        heard = shown().says(browser, b"BackgroundImageMessage")
        names = re.findall(rb"\xa4uuid\xd9\x24([0-9a-f-]{36})", heard) or [b"?"]  # where the picture came before the controls
        for message in packed(re.sub(rb'"\?"', lambda _: b'"' + chance.choice(names) + b'"', data)):
            browser.send(message)
        browser.ping().wait(PATIENCE)


def ask(folder: Path) -> None:
    """Send the request, with the true cookie, and take what comes."""
    data = (folder / "request").read_bytes().replace(b"\n", b"\r\n").replace(b"COOKIE", f"{shown().name}={shown().value}".encode())
    with socket.create_connection(("127.0.0.1", shown().viewer.port), PATIENCE) as client, contextlib.suppress(OSError):
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        while client.recv(1 << 16):
            pass


SUBJECTS = {"messages": Subject(write_messages, damage_messages, tell), "request": Subject(write_request, damage_request, ask)}


def use(name: str, folder: Path, whole: bool = False) -> None:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        SUBJECTS[name].use(folder)
        shown().check()
    assert "/nerfit/" not in said.getvalue(), said.getvalue()[-2000:]


@linux
def test_damaged_messages_disturb_no_other_browser(tmp_path: Path) -> None:
    fuzz(0, QUICK, tmp_path / "fuzz", list(SUBJECTS), __file__)


@linux
@pytest.mark.slow
@pytest.mark.parametrize("name", SUBJECTS)
def test_many_damaged_messages(name: str, tmp_path: Path) -> None:
    fuzz(QUICK, THOROUGH, tmp_path / "fuzz", [name], __file__)


if __name__ == "__main__":
    survive_as_asked(SUBJECTS, use)
    shown().close()
