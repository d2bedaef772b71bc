"""A gate before the viewer for browsers from the network: they show a token, first in the address, from then on in a cookie."""

import asyncio
import secrets
import threading
from concurrent.futures import Future
from urllib.parse import parse_qs, urlsplit

_HEAD, _PATIENCE, _PIECE = 1 << 14, 10.0, 1 << 16
"""Most bytes of a request's head, seconds in which it must have come, and bytes that are passed on at once."""
_PAGE = """HTTP/1.1 {status}\r
Content-Type: text/html; charset=utf-8\r
Content-Length: {length}\r
Cache-Control: no-store\r
Referrer-Policy: no-referrer\r
Connection: close\r
{more}\r
{body}"""


class Gate:
    """Passes HTTP and WebSockets on, from browsers that show ``token``, to a server on 127.0.0.1 and port ``inner``.

    A connection carries one request, or one WebSocket, and is closed unless its own head shows the token: nothing of it reaches the
    server then. What another site's page asks for is refused even with the cookie. Raises OSError where the port can't be had.
    """

    def __init__(self, host: str, port: int, inner: int) -> None:
        self.token = secrets.token_urlsafe(18)
        self._cookie, self._inner = f"nerfit-{port}", inner
        self._guests: set[asyncio.Task[None] | None] = set()  # the loop alone keeps no task alive
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(host, port, ready)), daemon=True)
        self._thread.start()
        ready.result()

    async def _serve(self, host: str, port: int, ready: "Future[None]") -> None:
        self._loop, self._closed = asyncio.get_running_loop(), asyncio.Event()
        try:
            server = await asyncio.start_server(self._welcome, host, port, limit=_HEAD)
        except OSError as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        await self._closed.wait()
        server.close()

    def close(self) -> None:
        """Let nobody in any more, and those out who are."""
        self._loop.call_soon_threadsafe(self._closed.set)
        self._thread.join(1)

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        guest = asyncio.current_task()
        self._guests.add(guest)
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _PATIENCE)
            await self._answer(head.decode("latin-1"), reader, writer)
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # who says nothing, or no HTTP, gets no answer
        finally:
            writer.close()
            self._guests.discard(guest)

    async def _answer(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request, *lines = head.split("\r\n")[:-2]
        method, target, _ = request.split(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        cookies = {name.strip(): value for name, _, value in (pair.partition("=") for pair in headers.get("cookie", "").split(";"))}
        shown = parse_qs(urlsplit(target).query).get("token", [""])[0]
        upgrade = headers.get("upgrade", "").lower() == "websocket"
        if self._knows(shown) and not upgrade:
            cookie = f"Set-Cookie: {self._cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict\r\n"
            writer.write(_page("200 OK", '<meta http-equiv="refresh" content="0; url=/">', cookie))
        elif not self._knows(cookies.get(self._cookie, "")):
            writer.write(_page("403 Forbidden", "This needs the whole address that nerfit has printed, with its token."))
        elif "origin" in headers and urlsplit(headers["origin"]).netloc != headers.get("host"):
            writer.write(_page("403 Forbidden", "A page of another site asks for this."))
        elif method != "GET":
            writer.write(_page("405 Method Not Allowed", "The viewer answers GET only."))
        else:
            kept = [line for line in lines if line.partition(":")[0].strip().lower() not in ("origin", "cookie")]
            await self._pass_on("\r\n".join([request, *kept, "", ""]), reader if upgrade else None, writer)
            return
        await writer.drain()

    def _knows(self, token: str) -> bool:
        return secrets.compare_digest(token.encode("latin-1", "replace"), self.token.encode())

    async def _pass_on(self, head: str, reader: asyncio.StreamReader | None, writer: asyncio.StreamWriter) -> None:
        """Hand a request on and its answer back; with ``reader`` also what else the browser says, until one of them ends."""
        from_viewer, to_viewer = await asyncio.open_connection("127.0.0.1", self._inner)
        to_viewer.write(head.encode("latin-1"))
        asked = [] if reader is None else [asyncio.ensure_future(_pipe(reader, to_viewer))]
        answered = asyncio.ensure_future(_pipe(from_viewer, writer))
        try:
            await asyncio.wait([*asked, answered], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*asked, answered):
                task.cancel()
            to_viewer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_PIECE):
        writer.write(data)
        await writer.drain()


def _page(status: str, body: str, more: str = "") -> bytes:
    return _PAGE.format(status=status, length=len(body.encode()), more=more, body=body).encode()
