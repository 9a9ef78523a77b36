"""URLs in messages: nothing secret is shown."""

from __future__ import annotations

import re

from raymat.errors import StorageError
from raymat.storage.faults import scrub


def redact(url: str) -> str:
    """`url` without the user, password and query that it may carry."""
    url = re.sub(r"(://)[^/@]*:[^/@]*@", r"\1", url)
    return re.sub(r"\?.*", "", url)


def refuse_secrets(url: str) -> None:
    """Object stores take no credentials from a URL: the bucket would be KEY:SECRET@bucket."""
    if re.match(r"(s3|s3a|gs|gcs)://[^/]*@", url):
        raise StorageError(
            f"the URL {scrub(redact(url))} carries credentials; leave them out and give them by the environment, "
            "the provider's files or the machine's role"
        )


def shown(url: str) -> str:
    """A URL as messages may show it: without user name and password."""
    return re.sub(r"//[^/@]*@", "//", url)
