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

    The read timeout alone begins only when a body is sent. Before that the session waits for the
    server's "100 Continue", and then for room in the socket, as long as it takes: a server that
    accepts connections and does nothing more would hold an upload for ever. RFC 9110, 10.1.1 warns
    of that wait. The header stays: by it a refusal arrives before the body is under way.
    """

    async def send(self, request: Any) -> Any:
        """Raises botocore's ReadTimeoutError, which its retries know, also for such a body."""
        sending = asyncio.ensure_future(super().send(request))
        try:
            while not sending.done():
                before = _left(request)
                # Then an answer may come in pieces, as to the end of a large upload, and the read
                # timeout is for each. But it need not have begun: the last piece of the body may
                # still wait, or all of it, where aiohttp tries again by itself.
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
