"""S3 as servers differ in it: silent ones, and those that delete only with an MD5."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Sequence
from typing import Any

from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore.exceptions import ClientError, ReadTimeoutError

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


def new_session() -> AioSession:
    """Return a session that reads its keys anew, and whose requests to delete carry an MD5.

    botocore sends a CRC instead since 1.36, which MinIO before 2025 and Ceph do not take for the checksum they ask for.
    """
    session = AioSession()
    session.register("before-call.s3.DeleteObjects", _add_md5)
    return session


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    md5 = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(md5).decode()


def delete_objects(filesystem: Any, paths: Sequence[str]) -> None:
    """Remove up to 1000 objects of one bucket with one request, ignoring missing ones.

    Raises:
        ClientError: the request was refused, or the first refusal of a single object, which s3fs would pass over.
    """
    places = [filesystem.split_path(path) for path in paths]
    if not places:
        return
    objects = {"Objects": [{"Key": key} for _, key, _ in places], "Quiet": True}
    answer = filesystem.call_s3("delete_objects", Bucket=places[0][0], Delete=objects)
    for refused in answer.get("Errors", []):
        if refused.get("Code") != "NoSuchKey":
            raise ClientError({"Error": refused}, "DeleteObjects")
