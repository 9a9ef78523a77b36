from __future__ import annotations

import json
import random

import pytest

from raymat.checkpoint.manifest import CheckpointId, FileEntry, Manifest, parse_manifest_name
from raymat.errors import CheckpointError
from raymat.storage.digest import digest, is_digest, matches

ZERO = "sha256:" + "0" * 64


def _manifest(rank: int = 1, world: int = 4) -> Manifest:
    names = [f"shard-{rank:05d}-of-{world:05d}.safetensors"] + ["state.json"] * (rank == 0)
    files = tuple(FileEntry(name, 1234, digest([name.encode()])) for name in names)
    return Manifest("run-id", CheckpointId(1200, 3), rank, world, files)


def test_names_are_the_promised_ones() -> None:
    assert str(CheckpointId(1200, 3)) == "step-000001200-a003"
    assert str(CheckpointId(0, 0)) == "step-000000000-a000"
    assert str(CheckpointId(12345678901, 1000)) == "step-12345678901-a1000"
    for checkpoint in (CheckpointId(1200, 3), CheckpointId(12345678901, 1000)):
        assert CheckpointId.parse(str(checkpoint)) == checkpoint


@pytest.mark.parametrize(
    "text",
    ["", "step-1200-a3", "step-0000001200-a003", "step-000001200-a0003", "step-000001200-a003/", "x",
     "step-000001200-a003\n", "step-00000120٣-a003", "../step-000001200-a003", "Step-000001200-a003"],
)  # fmt: skip
def test_other_names_are_no_checkpoints(text: str) -> None:
    assert CheckpointId.try_parse(text) is None
    with pytest.raises(CheckpointError, match="expected a checkpoint like"):
        CheckpointId.parse(text)


def test_later_steps_are_newer_then_later_attempts() -> None:
    ids = [CheckpointId(9, 5), CheckpointId(10, 1), CheckpointId(10, 2), CheckpointId(11, 0)]
    shuffled = ids[:]
    random.Random(1).shuffle(shuffled)
    assert sorted(shuffled) == ids


def test_manifest_names_carry_rank_and_world() -> None:
    assert parse_manifest_name("manifest-00001-of-00004.json") == (1, 4)
    for name in (
        "manifest-00004-of-00004.json",
        "manifest-1-of-4.json",
        "manifest-00000-of-00000.json",
        "x",
    ):
        assert parse_manifest_name(name) is None


def test_a_manifest_comes_back() -> None:
    for rank in (0, 1):
        manifest = _manifest(rank)
        assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_manifest_reads_as_documented() -> None:
    content = json.loads(_manifest(0).to_json())
    own = content.pop("digest")
    assert is_digest(own)
    assert content == {
        "format": 1, "run": "run-id", "step": 1200, "attempt": 3, "rank": 0, "world": 4,
        "files": [
            {"name": "shard-00000-of-00004.safetensors", "size": 1234,
             "digest": digest([b"shard-00000-of-00004.safetensors"])},
            {"name": "state.json", "size": 1234, "digest": digest([b"state.json"])},
        ],
    }  # fmt: skip


def test_every_flipped_bit_is_found() -> None:
    data = _manifest().to_json()
    for place in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            with pytest.raises(CheckpointError):
                Manifest.from_json(bytes(damaged))


def test_every_truncation_and_addition_is_found() -> None:
    data = _manifest().to_json()
    for end in range(len(data)):
        with pytest.raises(CheckpointError):
            Manifest.from_json(data[:end])
    for added in (b" ", b"\n", b"\0", b"{}"):
        with pytest.raises(CheckpointError):
            Manifest.from_json(data + added)
        with pytest.raises(CheckpointError):
            Manifest.from_json(added + data)


def _forged(**changes: object) -> bytes:
    """A manifest with other content, its own digest right."""
    content = json.loads(_manifest(0).to_json())
    content.pop("digest")
    content |= changes

    def canonical(value: object) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    return canonical(content | {"digest": digest([canonical(content)])}) + b"\n"


def _file(**changes: object) -> dict[str, object]:
    return {"name": "shard-00000-of-00004.safetensors", "size": 1, "digest": ZERO} | changes


STATE = {"name": "state.json", "size": 1, "digest": ZERO}


def test_the_forger_of_these_tests_can_forge() -> None:
    assert Manifest.from_json(_forged(files=[_file(), STATE])).files[0].size == 1


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b"{}", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, b"\xff\xfe",
        b" " * (2**20 + 1), b'{"format":NaN}',
        _forged(format=2), _forged(format=True), _forged(format="1"),
        _forged(step=-1), _forged(step=1.0), _forged(step=True), _forged(step="1"), _forged(step=10**30),
        _forged(rank=4), _forged(rank=-1), _forged(world=0), _forged(world=10**9), _forged(run=None),
        _forged(files=None), _forged(files=[]), _forged(files=[_file()]), _forged(files=[None, None]),
        _forged(files=[_file(), STATE, STATE]), _forged(files=[STATE, _file()]),
        _forged(files=[_file(name="../../etc/passwd"), STATE]),
        _forged(files=[_file(name="/etc/passwd"), STATE]),
        _forged(files=[_file(name="x/shard-00000-of-00004.safetensors"), STATE]),
        _forged(files=[_file(name="shard-00001-of-00004.safetensors"), STATE]),
        _forged(files=[_file(name="weights.pkl"), STATE]),
        _forged(files=[_file(size=-1), STATE]), _forged(files=[_file(size=1.5), STATE]),
        _forged(files=[_file(size=True), STATE]), _forged(files=[_file(size=2**70), STATE]),
        _forged(files=[_file(digest="md5:" + "0" * 32), STATE]),
        _forged(files=[_file(digest="sha256:" + "0" * 63), STATE]),
        _forged(files=[_file(digest="sha256:" + "0" * 63 + "G"), STATE]),
        _forged(files=[_file(more=1), STATE]), _forged(more=1),
    ],
)  # fmt: skip
def test_hostile_manifests_are_refused_in_one_short_line(data: bytes) -> None:
    with pytest.raises(CheckpointError) as caught:
        Manifest.from_json(data)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_digests_say_how_they_were_made() -> None:
    empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digest([]) == digest([b"", b""]) == empty
    assert digest([b"ab", b"c"]) == digest([b"abc"])
    assert matches(digest([b"abc"], "blake2b"), [b"a", b"bc"])
    assert not matches(digest([b"abc"], "blake2b"), [b"a", b"bd"])
    # BLAKE3's published test vector of no bytes.
    quick = "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert digest([], "blake3") == digest([b"", b""], "blake3") == quick
    assert matches(digest([b"abc"], "blake3"), [b"a", b"bc"])
    assert not matches(digest([b"abc"], "blake3"), [b"a", b"bd"])
    assert is_digest(empty)
    assert is_digest(quick)
    assert not any(
        is_digest(text) for text in (None, "", "e3b0", "sha256:", "sha1:" + "0" * 40, empty.upper())
    )
