"""URLs, parsed in one place for all options: which parts a message may show, and what a URL may not carry."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote

from raymat.errors import StorageError

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*"
_CHAIN = re.compile(rf"(::)(?={_SCHEME}(?:::|://)|\.{{0,2}}/)")
"""Separator of a chained URL's links (zip://a.csv::s3://bucket/b.zip); not the :: of an IPv6 address."""
_QUERY_IN_TEXT = re.compile(r"\?(?=[\w.%~-]+=)[^\s\"'<>]*")
_SECRET_IN_TEXT = re.compile(
    r"(?i)\b((?:\w*(?:secret|token|password|signature|key|sig|credential))\s*=\s*)\S+"
)
_USER_IN_TEXT = re.compile(r"(?<![^\s\"'<>(=,])[^\s\"'<>(=,@:/]*:(?!//)[^\s\"'<>@]+@(?=[\w\[])")
"""Credentials in front of a host that has no scheme."""

_PATHS = {"file", "local"}
"""Schemes of local files: the rest is a path, in which every character is allowed."""
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs"}
"""Schemes whose URLs take neither credentials nor a port."""
_AZURE = {"abfs", "abfss", "adl", "az", "wasb", "wasbs"}
_NO_USER = {
    *_AZURE,  # CONTAINER@ACCOUNT
    *("github", "git", "hf"),  # OWNER:REPOSITORY@COMMIT
    *("memory", "zip", "tar", "libarchive"),  # no host, hence no user
}
"""Schemes whose URLs have an @ for something other than a user name."""
_WEB = {"http", "https"}
_USER_ALONE = {"sftp", "ssh", "ftp", "ftps", "smb", "hdfs", "webhdfs"}
"""Schemes whose URLs name a user without a secret."""
_KNOWN = {*_OBJECT_STORES, *_AZURE, *_WEB, *_USER_ALONE, *_PATHS, "memory", "github"}
"""Schemes that are recognised without their two slashes."""
_CHAINING = {
    *("zip", "tar", "libarchive", "reference", "dir", "cached", "async_wrapper"),
    *("simplecache", "filecache", "blockcache"),
}
"""Schemes that may stand before another link of a chain."""
_HARMLESS = {
    *("versionid", "generation", "snapshot"),
    *("download", "dl", "raw", "ref", "rev", "revision", "format", "alt"),
}
"""Names in a query that hold no secret."""
_MISSPELT = rf"(?<![\w:])(?:{'|'.join(sorted(_KNOWN - _PATHS, reverse=True))}):/?(?!/)"
_IN_TEXT = re.compile(rf"(?:{_SCHEME}(?:::{_SCHEME})*://|(?i:{_MISSPELT}))[^\s\"'<>]*")


@dataclass(frozen=True)
class Link:
    """A URL, or one link of a chain of them, in its parts. Of a path of this machine all is `path`."""

    scheme: str
    """In lower case; "file" for a path."""
    start: str
    """All up to the :// or the like, as it was written."""
    user: str
    """With its @."""
    path: str
    """With the host or the bucket."""
    query: str
    """With its ?."""
    fragment: str
    """With its #."""

    @property
    def secret(self) -> str | None:
        """What this link carries that belongs to nobody else, in words; None if there is nothing."""
        if self.user and not (self.scheme in _USER_ALONE and ":" not in self.user):
            return "credentials"
        names = {part.partition("=")[0].lower() for part in self.query[1:].split("&")}
        if names - _HARMLESS - {""}:
            return "a query, which may hold a signature or a token"
        if self.fragment and (self.scheme in _WEB or "=" in self.fragment):
            return "a fragment, which may hold a token"
        return None


def redact(url: str) -> str:
    """Return the URL without user name, password, query and fragment; paths of this machine as they are.

    In a chained URL each link is treated by itself.
    """
    return "".join(_redact_link(link, "") for link in _CHAIN.split(url))


def shown_urls(urls: str) -> str:
    """Return URLs, one a line, in a sentence, each as `redact` does."""
    return " and ".join(map(redact, urls.split("\n")))


def redact_urls(text: str) -> str:
    """Return text of any origin with every URL in it redacted; queries become ?..., fragments #... ."""
    return _IN_TEXT.sub(_redact_found, text)


def redact_text(text: str, length: int = 200) -> str:
    """Return text of any origin as one line of at most `length` characters, every URL in it redacted.

    Queries become ?..., fragments #..., and values of names such as secret, token, key and signature are cut as well, as are
    a user and a password before a host.
    """
    text = redact_urls(" ".join(text.split()))
    text = _USER_IN_TEXT.sub("...@", text)
    text = _QUERY_IN_TEXT.sub("?...", text)
    text = _SECRET_IN_TEXT.sub(r"\1...", text)
    return text if len(text) <= length else text[: length - 3] + "..."


def here(url: str) -> str:
    """Return a URL of this machine's files as a path, in which ~ is the home folder; all others as they are."""
    link = _parse(url)
    is_path = link.scheme in _PATHS and len(_CHAIN.split(url)) == 1
    return os.path.expanduser(link.path) if is_path else url


def literal_path(url: str) -> str | None:
    """Return the path that `url` is, if it is one of this machine with :: in it, which would be taken for a chain; else None."""
    link = _parse(url)
    is_path = link.scheme in _PATHS and url.split("::")[0] not in _CHAINING
    return link.path if is_path and "::" in url else None


def schemes(url: str) -> list[str]:
    """Return the scheme of each link of a chain, in lower case; "file" for a path."""
    return [_scheme_and_rest(link)[0] for link in _CHAIN.split(url) if link != "::"]


def takes_keys(url: str) -> bool:
    """Return whether the URL is an object store's, which asks for an account's keys."""
    return not {*_OBJECT_STORES, *_AZURE}.isdisjoint(schemes(url))


def delete_right(url: str) -> str:
    """Return the name of the right to delete files there, for messages."""
    rights = {"s3": "s3:DeleteObject", "s3a": "s3:DeleteObject"}
    rights |= dict.fromkeys(("gs", "gcs"), "storage.objects.delete")
    rights |= dict.fromkeys(_AZURE, "Microsoft.Storage/.../blobs/delete")
    return rights.get(_scheme_and_rest(url)[0], "the right to delete files")


def url_problem(url: str) -> str | None:
    """Return why no option takes this URL, and what to write instead; None if it is fine.

    A URL is stored with the run and shown to others, so that it may not carry a secret. One without its two slashes, or
    with a scheme in capitals, would be taken for a path.
    """
    for link in _links(url):
        if (secret := link.secret) is not None:
            return f"the URL {redact(url)} carries {secret}; {_advice(link, secret)}"
        if _is_url(link) and not link.start.endswith(f"{link.scheme}://"):
            root = "/" if link.scheme in _PATHS else ""
            return f"{redact(url)} is no URL: write {link.scheme}://{root}{link.path.lstrip('/')}"
        if link.scheme in _OBJECT_STORES and not link.path.split("/")[0]:
            return f"{redact(url)} names no bucket: write {link.scheme}://BUCKET/FOLDER"
        if link.scheme in _PATHS and _is_url(link) and link.path.startswith("localhost/"):
            return f"{redact(url)} would be a folder localhost: write file://{link.path.removeprefix('localhost')}"
        if link.scheme in _PATHS and _is_url(link) and _is_coded(link.path):
            path = unquote(link.path)
            return f"{redact(url)} does not exist, and its % is read as it stands: write the path, {path}"
    return _cut_off(url)


def _is_coded(path: str) -> bool:
    """Return whether nothing is at a path of this machine, and something where its %20 and the like are decoded."""
    coded = unquote(path)
    return coded != path and os.path.exists(coded) and not os.path.exists(path)


def _cut_off(url: str) -> str | None:
    """Return what is wrong with a URL of which only the part before a :: would be read; None if it is a chain, or has none."""
    first, *others = _CHAIN.split(url)
    link = _parse(first)
    stands_alone = link.scheme in _KNOWN - _PATHS and not re.match(r"arn:|\[", link.path)
    if stands_alone and (others or "::" in link.path):
        return f"{redact(url)}: what is behind :: would not be read: give each URL by itself, or rename it"
    return None


def _advice(link: Link, secret: str) -> str:
    if link.scheme in _WEB:
        return "fetch the file first and give its path, or give the bucket's own URL (s3://...)"
    if link.scheme in _OBJECT_STORES and secret.startswith("a query") and "=" not in link.query:
        return "if the ? is part of an object's name, rename the object"
    they = "them" if secret == "credentials" else "it"
    chain = "the environment, the provider's files or the machine's role"
    return f"leave {they} out and give {'them' if they == 'them' else 'credentials'} by {chain}"


def root_problem(url: str) -> str | None:
    """Return why runs cannot be stored at this URL, and what to write instead; None if it is fine.

    What is refused here would be another place for each program that reads it.
    """
    if (problem := url_problem(url)) is not None:
        return problem
    (link, *others) = map(_parse, _CHAIN.split(url))
    shown = redact(url)
    if others or "::" in link.path:
        return f"{shown} is a chain of URLs: runs are stored in one place, a folder or s3://BUCKET/FOLDER"
    if "\\" in url or re.match(r"[A-Za-z]:", url):
        return f"{shown} is a path of Windows: write /FOLDER or s3://BUCKET/FOLDER"
    if link.scheme in _PATHS:
        return _local_problem(link, shown)
    return _folder_problem(link, url)


def _local_problem(link: Link, shown: str) -> str | None:
    """Return why a path of this machine cannot hold runs; `shown`: as it was written."""
    if _is_url(link) and not link.path.startswith("/"):
        return f"{shown} is relative: write file:///FOLDER"
    if _is_url(link) and unquote(link.path) != link.path:
        path = unquote(link.path)
        return f"{shown} has a % that programs read in different ways: write the path, {path} or {link.path}"
    return None


def _folder_problem(link: Link, url: str) -> str | None:
    """Return why the folder of an object store or a server cannot hold runs."""
    parts = link.path.rstrip("/").split("/")
    plain = f"{link.scheme}://{'/'.join(p for p in parts if p not in ('', '.', '..'))}"
    if "?" in url or "#" in url:
        return f"{redact(url)} with a ? or # is no folder: write {re.split('[?#]', redact(url))[0]}"
    if not parts[0] and link.scheme != "memory":
        return f"{redact(url)} names no bucket: write {link.scheme}://BUCKET/FOLDER"
    if any(part in ("", ".", "..") for part in parts[1:]):
        return f"{redact(url)} has a part that is empty, . or ..: write {plain}"
    if url != url.strip() or re.search(r"[\0-\x1f%]", url):
        return f"{redact(url)!r} has a character that servers read in different ways: use letters, digits, . _ -"
    return None


def refuse_secrets(url: str) -> None:
    """Raise StorageError for a URL that no option takes, as `url_problem` says."""
    if (problem := url_problem(url)) is not None:
        raise StorageError(problem)


def _is_url(link: Link) -> bool:
    return bool(link.start)


def _links(url: str) -> Iterator[Link]:
    """Yield the links of a chain, and URLs that follow one another in a path, as in a list between commas."""
    for text in _CHAIN.split(url):
        link = _parse(text)
        yield link
        if inner := re.search(rf"{_SCHEME}://", link.path):
            yield from _links(link.path[inner.start() :])


def _parse(link: str) -> Link:
    scheme, rest = _scheme_and_rest(link)
    start = link[: len(link) - len(rest)]
    if scheme in _PATHS:
        return Link(scheme, start, "", rest, "", "")
    slashes = len(rest) - len(rest.lstrip("/"))
    user = rest[: slashes + length] if (length := _user_length(scheme, rest[slashes:])) else ""
    path, query, fragment = re.fullmatch(  # type: ignore[union-attr]
        r"([^?#]*)(\?[^#]*)?(#.*)?", rest[len(user) :], re.DOTALL
    ).groups("")
    if scheme in _OBJECT_STORES and not query and "=" not in fragment:
        path, fragment = path + fragment, ""  # of an object's name: no store reads a fragment
    return Link(scheme, start, user, path, query, fragment)


def _scheme_and_rest(link: str) -> tuple[str, str]:
    """Return the scheme in lower case ("file" for a bare path), and what follows its ://, or what stands for it."""
    start, separator, rest = link.partition("://")
    if separator:
        return start.rpartition("::")[2].strip().lower(), rest
    misspelt = re.match(rf"\s*({_SCHEME}):/?", link)
    if misspelt and misspelt[1].lower() in _KNOWN:
        return misspelt[1].lower(), link[misspelt.end() :]
    return "file", link


def _redact_found(found: re.Match[str]) -> str:
    # What follows a URL in a sentence is no part of it: "cannot open s3://bucket: ..." has no port.
    url = found[0].rstrip(":;,.")
    redacted = "".join(_redact_link(link, "...") for link in _CHAIN.split(url))
    return redacted + found[0][len(url) :]


def _redact_link(text: str, rest: str) -> str:
    """Return a link without its secrets; `rest` stands for a query or a fragment."""
    link = _parse(text)
    path = link.path
    # Texts join URLs by commas: one that follows in the path is a URL by itself.
    if after := re.search(rf"{_SCHEME}://", path):
        path = path[: after.start()] + _redact_link(path[after.start() :], rest)
    mark = (link.query or link.fragment)[:1] + rest if rest else ""
    return link.start + path + (mark if link.query or link.fragment else "")


def _user_length(scheme: str, rest: str) -> int:
    """Return the length of the credentials at the start of what follows ://, their @ included; 0 without any."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    name, colon, after = authority.partition(":")
    if (scheme, name) in {("s3", "arn"), ("s3a", "arn")}:
        return 0  # s3://arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME/...
    if scheme not in _NO_USER and re.search("[:@]", unquote(authority).replace(authority, "")):
        return _up_to_path(rest, authority)
    is_host = name.startswith("[") or (after.isdigit() and scheme not in _OBJECT_STORES)
    if colon and not is_host and scheme not in _NO_USER:
        # A password may hold a slash, ? or @, and goes on behind what a parser takes for the host.
        known = re.sub(r"(@[^?#]*).*", r"\1", rest, flags=re.DOTALL) if "@" in authority else rest
        return known.rfind("@") + 1 or _up_to_path(rest, authority)
    if scheme in _NO_USER and (not colon or scheme == "github"):
        return 0
    return authority.rfind("@") + 1


def _up_to_path(rest: str, authority: str) -> int:
    """Return the length of an authority that is all secret, with the slash behind it."""
    return len(authority) + (rest[len(authority) :][:1] == "/")
