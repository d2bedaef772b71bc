"""The port of the viewer: a free one, and viser's server there, guarded against pages of other sites."""

import contextlib
import errno
import io
import re
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import viser
import websockets.asyncio.server

from nerfit.errors import ConfigError

PORTS_TRIED = 100
_OPTION: int = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
"""How a port is tried: Windows takes the second option for leave to share one in use, others only pass over closed connections."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that only this machine reaches."""


def free_port(host: str, port: int) -> int:
    """``port``, or the next one that is not in use; ConfigError where the host can't be served on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, min(port + PORTS_TRIED, 1 << 16)):
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, _OPTION, 1)
            try:
                probe.bind((host, candidate))
                return candidate
            except (OSError, OverflowError) as error:
                if getattr(error, "errno", None) not in (errno.EADDRINUSE, errno.EACCES):
                    raise ConfigError(f"the viewer can't serve on --host {host}: {getattr(error, 'strerror', None) or error}.") from error
    raise ConfigError(f"the ports from {port} on are in use: choose another --port.")


def host_in_url(host: str) -> str:
    """A host as a URL writes it; this machine's name for a host that stands for all of its addresses."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def start_viser(host: str, port: int, label: str) -> viser.ViserServer:
    """Viser's server. It refuses pages of other sites, and sends nothing to viser's relay on the internet."""
    ours = re.compile(rf"https?://({'|'.join(re.escape(host_in_url(name)) for name in LOOPBACK)})(:\d+)?")
    with _only_origins(None, ours), contextlib.redirect_stdout(io.StringIO()):  # viser prints a box of its own
        server = viser.ViserServer(host=host, port=port, label=label, verbose=False)
    server.request_share_url = lambda verbose=True: None
    server.gui.configure_theme(show_share_button=False)
    return server


@contextlib.contextmanager
def _only_origins(*origins: re.Pattern[str] | None) -> Iterator[None]:
    """WebSocket servers that start meanwhile accept these origins only: viser offers no option for what `websockets` can check."""
    module: Any = websockets.asyncio.server
    serve = module.serve
    module.serve = partial(serve, origins=origins)
    try:
        yield
    finally:
        module.serve = serve
