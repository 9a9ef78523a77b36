"""Redaction: the only place that decides which parts of a URL a message may show."""

from __future__ import annotations

import re

from raymat.errors import StorageError

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*"
_CHAIN = re.compile(rf"(::)(?={_SCHEME}(?:::|://)|\.{{0,2}}/)")
"""Separator of a chained URL's links (zip://a.csv::s3://bucket/b.zip); not the :: of an IPv6 address."""
_IN_TEXT = re.compile(rf"{_SCHEME}(?:::{_SCHEME})*://[^\s\"'<>]*")
_QUERY_IN_TEXT = re.compile(r"\?(?=[\w.%~-]+=)[^\s\"'<>]*")
_SECRET_IN_TEXT = re.compile(
    r"(?i)\b((?:\w*(?:secret|token|password|signature|key|sig|credential))\s*=\s*)\S+"
)

_PATHS = {"file", "local"}
"""Schemes of local files: the rest is a path, in which every character is allowed."""
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs"}
"""Schemes whose URLs take neither credentials nor a port."""
_AZURE = {"abfs", "abfss", "adl", "az", "wasb", "wasbs"}
_NO_USER = {
    *_AZURE,  # CONTAINER@ACCOUNT
    "github",  # OWNER:REPOSITORY@COMMIT
    *("memory", "zip", "tar", "libarchive", "hf"),  # no host, hence no user
}  # fmt: skip
"""Schemes whose URLs have an @ for something other than a user name."""


def redact(url: str) -> str:
    """Return the URL without user name, password, query and fragment; paths of this machine as they are.

    In a chained URL each link is treated by itself.
    """
    return "".join(_redact_link(link, "") for link in _CHAIN.split(url))


def redact_text(text: str, length: int = 200) -> str:
    """Return text of any origin as one line of at most `length` characters, every URL in it redacted.

    Queries become ?..., fragments #..., and values of names such as secret, token, key and signature are cut as well.
    """
    text = _IN_TEXT.sub(_redact_found, " ".join(text.split()))
    text = _QUERY_IN_TEXT.sub("?...", text)
    text = _SECRET_IN_TEXT.sub(r"\1...", text)
    return text if len(text) <= length else text[: length - 3] + "..."


def takes_keys(url: str) -> bool:
    """Return whether the URL is an object store's, which asks for an account's keys."""
    return any(
        _scheme_and_rest(link)[0] in {*_OBJECT_STORES, *_AZURE} for link in _CHAIN.split(url)
    )


def refuse_secrets(url: str) -> None:
    """Raise StorageError for an object store's URL with credentials: the bucket would be KEY:SECRET@bucket."""
    links = map(_scheme_and_rest, _CHAIN.split(url))
    if any(_user_length(scheme, rest) for scheme, rest in links if scheme in _OBJECT_STORES):
        raise StorageError(
            f"the URL {redact(url)} carries credentials; leave them out and give them by the environment, "
            "the provider's files or the machine's role"
        )


def _scheme_and_rest(link: str) -> tuple[str, str]:
    """Return the scheme in lower case ("file" for a bare path), and what follows its ://."""
    start, separator, rest = link.partition("://")
    return (start.rpartition("::")[2].lower(), rest) if separator else ("file", link)


def _redact_found(found: re.Match[str]) -> str:
    return "".join(_redact_link(link, r"\1...") for link in _CHAIN.split(found[0]))


def _redact_link(link: str, query: str) -> str:
    scheme, rest = _scheme_and_rest(link)
    shown = rest
    if scheme not in _PATHS:
        shown = re.sub(r"([?#]).*", query, rest[_user_length(scheme, rest) :], flags=re.DOTALL)
    # Texts join URLs by commas: one that follows in the path is a URL by itself.
    after = re.search(rf"{_SCHEME}://", shown)
    if after:
        shown = shown[: after.start()] + _redact_link(shown[after.start() :], query)
    return link[: len(link) - len(rest)] + shown


def _user_length(scheme: str, rest: str) -> int:
    """Return the length of the credentials at the start of what follows ://, their @ included; 0 without any."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    name, colon, after = authority.partition(":")
    if (scheme, name) in {("s3", "arn"), ("s3a", "arn")}:
        return 0  # s3://arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME/...
    is_host = name.startswith("[") or (after.isdigit() and scheme not in _OBJECT_STORES)
    if colon and not is_host and scheme not in _NO_USER:
        # A password may hold a slash, ? or @, and goes on behind what a parser takes for the host.
        known = re.sub(r"(@[^?#]*).*", r"\1", rest, flags=re.DOTALL) if "@" in authority else rest
        return known.rfind("@") + 1
    if scheme in _NO_USER and (not colon or scheme == "github"):
        return 0
    return authority.rfind("@") + 1
