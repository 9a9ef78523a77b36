"""S3 as servers and settings differ in it: silent servers, those that delete only with an MD5, settings that are none."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import os
from collections.abc import Sequence
from typing import Any

from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    ReadTimeoutError,
)

from raymat.errors import first_line
from raymat.storage.faults import SettingsError

# What these say of an error comes with its traceback, and the error is told anyway: to those that listen only.
for _package in ("botocore", "aiobotocore"):
    logging.getLogger(_package).addHandler(logging.NullHandler())

_AFTER_BODY = 4
"""Maximum read timeouts from the end of a body to the end of its answer."""
FIRST_SECONDS = 10.0
"""Silence after which a server that has never answered is given up: most likely no S3 server is there."""
_SMALL = 2**16
"""Bytes of a body that are sent at once over any link: what follows is silence."""


class SilentError(BotoCoreError):
    """Error for a server that has never answered. botocore does not ask it again, as it would after a timeout."""

    fmt = "No answer from {endpoint_url} within {seconds:.0f} s"


class WatchedSession(AIOHTTPSession):
    """HTTP session that also times out requests whose body the server does not accept.

    The read timeout starts only after the body was sent. Before that the session waits without limit for the server's
    "100 Continue", and then for room in the socket: a server that accepts connections and does nothing more would
    block an upload for ever. RFC 9110, 10.1.1 warns of that wait. The header stays: it lets a refusal arrive before
    the body is sent.
    """

    def __init__(self, verify: Any = True, **options: Any) -> None:
        if isinstance(verify, str) and not os.path.exists(verify):
            raise SettingsError(f"the file of certificates {verify} does not exist")
        super().__init__(verify=verify, **options)
        self._answered = False

    async def send(self, request: Any) -> Any:
        """Raises botocore's ReadTimeoutError, which its retries know, also for such a body; SilentError at first."""
        if self._answered or _left(request) > _SMALL:
            return await self._send(request)
        try:
            answer = await asyncio.wait_for(self._send(request), FIRST_SECONDS)
        except (asyncio.TimeoutError, ConnectTimeoutError, ReadTimeoutError) as error:
            raise SilentError(endpoint_url=request.url, seconds=FIRST_SECONDS) from error
        self._answered = True
        return answer

    async def _send(self, request: Any) -> Any:
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


class CheckedSession(AioSession):
    """Session that tells wrong settings from faults of the storage."""

    async def _create_client(self, *args: Any, **options: Any) -> Any:
        try:
            return await super()._create_client(*args, **options)
        except BotoCoreError:
            raise
        except (ValueError, OSError) as error:
            raise SettingsError(_wrong_setting(error)) from error


def _wrong_setting(error: BaseException) -> str:
    text = first_line(error)
    if text.startswith("Invalid endpoint:"):
        text += ", expected http://HOST or https://HOST"
    return text


def new_session() -> AioSession:
    """Return a session that reads its keys anew, and whose requests to delete carry an MD5.

    botocore sends a CRC instead since 1.36, which MinIO before 2025 and Ceph do not take for the checksum they ask for.
    """
    session = CheckedSession()
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
