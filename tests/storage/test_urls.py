"""Laws of redaction: messages show no secret, and all of what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymat.errors import StorageError
from raymat.storage.faults import classify, reason
from raymat.storage.urls import (
    here,
    literal_path,
    redact,
    redact_text,
    refuse_secrets,
    root_problem,
    url_problem,
)

CANARY = "cAn4ry"

SECRETS = {
    "https://user:{}@host/x": "https://host/x",
    "HTTPS://user:{}@host:9000/x": "HTTPS://host:9000/x",
    "https://:{}@host/x": "https://host/x",
    "https://user:{}/{}@host/x": "https://host/x",
    "https://user:{}?{}@host/x": "https://host/x",
    "https://user:{}#{}@host/x": "https://host/x",
    "https://user:{}@{}@host/x": "https://host/x",
    "https://user:{}@{}/{}@host/x": "https://host/x",
    "https://user:{}@host/x?mail=a@b": "https://host/x",
    "https://user:{}@[::1]:9000/x?sig={}": "https://[::1]:9000/x",
    "https://{}@host/x": "https://host/x",
    "https://{}@host:9000/x": "https://host:9000/x",
    "s3://KEY:{}@bucket/runs/x": "s3://bucket/runs/x",
    "s3://KEY:{}/{}@bucket/runs/x": "s3://bucket/runs/x",
    "s3://KEY:0/{}@bucket/runs/x": "s3://bucket/runs/x",
    "gs://{}@bucket/runs/x": "gs://bucket/runs/x",
    "https://host/x?X-Amz-Signature={}": "https://host/x",
    "https://host/x?X-Amz-Signature={}/a:b@c&t={}": "https://host/x",
    "https://host/x?next=https://other/y&sig={}": "https://host/x",
    "https://host/x#access_token={}": "https://host/x",
    "abfs://container@account.dfs.core.windows.net/x?sig={}": "abfs://container@account.dfs.core.windows.net/x",
    "memory://user:{}@bucket/w.pth?sig={}": "memory://bucket/w.pth",
    "simplecache::s3://KEY:{}@bucket/x": "simplecache::s3://bucket/x",
    "zip://a::https://user:{}@host/x?sig={}": "zip://a::https://host/x",
    "zip://a::simplecache::https://user:{}@host/x.zip?sig={}": "zip://a::simplecache::https://host/x.zip",
    "file:///a,https://user:{}@host/y": "file:///a,https://host/y",
    "s3://bucket/x,https://user:{}@host/y": "s3://bucket/x,https://host/y",
}  # fmt: skip


@pytest.mark.parametrize("url", SECRETS)
def test_a_secret_is_shown_in_no_position(url: str) -> None:
    secret = url.replace("{}", CANARY)
    assert redact(secret) == SECRETS[url]
    assert redact(redact(secret)) == SECRETS[url]
    texts = [
        redact_text(f"GET {secret} failed\nand '{secret}' (<{secret}>)", 1000),
        reason(ValueError(f"cannot open {secret}")),
        classify(OSError(5, "input/output error", secret)).detail,
        classify(ConnectionError(f'Could not connect to the endpoint URL: "{secret}"')).detail,
    ]
    for text in texts:
        assert CANARY not in text
        assert SECRETS[url] in text
        assert "\n" not in text


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/data/what? #1 me@home a:b.png",
        "./runs/night@best",
        "C:\\data\\x",
        "user@host:x",
        "file:///data/what?#me@home:b.png",
        "file://data/what?",
        "s3://bucket/my run/night@best@ema",
        "memory://night@120",
        "memory://a:b/night@best",
        "https://host:8080/runs/night@best",
        "http://[::1]:9000/x@y",
        "http://[fe80::1]/x",
        "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/name/night@best",
        "abfs://container@account.dfs.core.windows.net/x",
        "github://owner:repository@commit/x.pth",
        "zip://*.csv::simplecache::gcs://bucket/file.zip",
        "zip://a.csv::/data/what?#me@home:b.zip",
        "tar://a.csv::./me@home.tar",
    ],
)
def test_plain_urls_and_paths_are_shown_as_they_are(url: str) -> None:
    assert redact(url) == url
    refuse_secrets(url)
    if " " not in url:
        assert redact_text(url) == url


@pytest.mark.parametrize("user", ["KEY:{}", "KEY:{}/{}", "KEY:0/{}", "{}"])
@pytest.mark.parametrize("scheme", ["s3", "s3a", "gs", "gcs", "simplecache::s3"])
def test_object_stores_refuse_credentials_in_their_urls(scheme: str, user: str) -> None:
    secret = user.replace("{}", CANARY)
    with pytest.raises(StorageError, match=f"{scheme}://bucket/x carries credentials") as caught:
        refuse_secrets(f"{scheme}://{secret}@bucket/x")
    assert CANARY not in str(caught.value)


def test_texts_show_no_secret_outside_of_urls_either() -> None:
    text = "GET https://me:pw1@host/x?X-Amz-Signature=abc&token=t failed\n secret_key=hunter2 Sig = zzz"
    assert redact_text(text) == "GET https://host/x?... failed secret_key=... Sig = ..."
    assert redact_text("exceeded with url: /x?X-Amz-Credential=A (why?)") == (
        "exceeded with url: /x?... (why?)"
    )
    assert redact_text("endpoint: me:pw/1@host:9, x=:pw@host") == "endpoint: ...@host:9, x=...@host"
    plain = "at 10:30 a@b, s3://bucket/a@ema: bad, [Errno 2] no file: /a@b"
    assert redact_text(plain) == plain
    assert redact_text("a  b\n" + 300 * "c", 20) == "a b " + 13 * "c" + "..."


@pytest.mark.parametrize(
    "url",
    ["s3://bucket/set::1", "s3://bucket/a::s3://bucket/b", "abfs://a@b/c::/d", "memory://a::b"],
)
def test_what_is_behind_two_colons_is_not_left_unread(url: str) -> None:
    assert url_problem(url) == (
        f"{url}: what is behind :: would not be read: give each URL by itself, or rename it"
    )


def test_a_path_with_two_colons_is_a_path_unless_it_is_a_chain() -> None:
    paths = ["/data/set::1", "set::1", "file:///data/a::b", "/a::/b"]
    assert [literal_path(url) for url in paths] == [
        "/data/set::1",
        "set::1",
        "/data/a::b",
        "/a::/b",
    ]
    chains = [
        "zip::/data/a.zip",
        "zip://x::/data/a.zip",
        "simplecache::s3://b/x",
        "/data/a:b",
        "s3://b/a::b",
    ]
    assert [literal_path(url) for url in chains] == [None] * 5


def test_file_urls_that_programs_read_in_different_ways_are_refused() -> None:
    assert url_problem("file://localhost/data") == (
        "file://localhost/data would be a folder localhost: write file:///data"
    )
    assert root_problem("file:///my%20runs") == (
        "file:///my%20runs has a % that programs read in different ways: write the path, /my runs or /my%20runs"
    )
    assert [root_problem(url) for url in ("/my%20runs", "file:///100%", "file:///my runs")] == [
        None
    ] * 3


def test_a_file_url_whose_percents_were_meant_as_spaces_names_the_path(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    assert url_problem(f"file://{tmp_path}/a%20b") == (
        f"file://{tmp_path}/a%20b does not exist, and its % is read as it stands: write the path, {tmp_path}/a b"
    )
    (tmp_path / "a%20b").mkdir()
    assert url_problem(f"file://{tmp_path}/a%20b") is None


def test_objects_with_a_hash_in_their_names_are_told_whole() -> None:
    assert redact("s3://bucket/set#1/a.png") == "s3://bucket/set#1/a.png"
    assert redact_text("cannot read s3://bucket/a#1.png: gone") == (
        "cannot read s3://bucket/a#1.png: gone"
    )
    assert redact("s3://bucket/a#token=cAn4ry") == "s3://bucket/a"
    assert root_problem("s3://bucket/set#1") == (
        "s3://bucket/set#1 with a ? or # is no folder: write s3://bucket/set"
    )
    assert url_problem("s3://bucket/what?.png") == (
        "the URL s3://bucket/what carries a query, which may hold a signature or a token; "
        "if the ? is part of an object's name, rename the object"
    )


@pytest.mark.parametrize("url", ["s3://", "s3:///folder", "gs://", "simplecache::s3://"])
def test_an_object_store_without_a_bucket_is_no_url(url: str) -> None:
    scheme = "gs" if url.startswith("gs") else "s3"
    assert url_problem(url) == f"{url} names no bucket: write {scheme}://BUCKET/FOLDER"


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("file:///data/a%20b.png", "/data/a%20b.png"),
        ("local:///data/x", "/data/x"),
        ("~/x.png", "/home/me/x.png"),
        ("~", "/home/me"),
        ("a~b/c.png", "a~b/c.png"),
        ("s3://bucket/~/x", "s3://bucket/~/x"),
        ("zip://a.png::file:///b.zip", "zip://a.png::file:///b.zip"),
        ("#78ff9b", "#78ff9b"),
    ],
)
def test_what_lies_on_this_machine_is_a_path_however_it_is_written(
    given: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert here(given) == path
