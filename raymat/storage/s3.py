"""HTTP session for S3 that gives up on every silent server."""

from __future__ import annotations

import asyncio
from typing import Any

from aiobotocore.httpsession import AIOHTTPSession
from botocore.exceptions import ReadTimeoutError

_AFTER_BODY = 4
"""Maximum read timeouts from the end of a body to the end of its answer."""


class WatchedSession(AIOHTTPSession):
    """HTTP session that also times out requests whose body the server does not accept.

    The read timeout starts only after the body was sent. Before that the session waits without limit for the server's
    "100 Continue", and then for room in the socket: a server that accepts connections and does nothing more would
    block an upload for ever. RFC 9110, 10.1.1 warns of that wait. The header stays: it lets a refusal arrive before
    the body is sent.
    """

    async def send(self, request: Any) -> Any:
        """Raises botocore's ReadTimeoutError, which its retries know, also for such a body."""
        sending = asyncio.ensure_future(super().send(request))
        try:
            while not sending.done():
                before = _left(request)
                # After the body the answer may come in pieces, each with its own read timeout. Or it has not
                # begun: the end of the body may still wait, or all of it if aiohttp retries by itself.
                limit = self._timeout.sock_read * (1 if before else _AFTER_BODY)
                await asyncio.wait({sending}, timeout=limit)
                if not sending.done() and _left(request) == before:
                    raise ReadTimeoutError(endpoint_url=request.url)
            return sending.result()
        finally:
            sending.cancel()


def _left(request: Any) -> int:
    """Return the bytes of the body that are not sent yet; 0 if unknown."""
    tell = getattr(request.body, "tell", None)
    return int(request.headers.get("Content-Length", 0)) - tell() if tell is not None else 0
