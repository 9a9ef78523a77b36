"""Kinds of files that are no pictures that can be read, told by their first bytes."""

from __future__ import annotations

READ = "JPEG, PNG, WebP, TIFF, BMP, GIF and AVIF"
_BY_START = {
    b"v/1\x01": "an OpenEXR picture",
    b"\xff\x0a": "a JPEG XL picture",
    b"\0\0\0\x0cJXL ": "a JPEG XL picture",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 picture",
    b"8BPS": "a Photoshop document",
    b"#?RADIANCE": "a Radiance HDR picture",
    b"II\xbc": "a JPEG XR picture",
    b"gimp xcf": "a GIMP document",
    b"FUJIFILM": "a camera's raw picture (RAF)",
    b"IIRO": "a camera's raw picture (ORF)",
    b"IIU\0": "a camera's raw picture (RW2)",
    b"\0\0\1\0": "an icon",
    b"DDS ": "a DDS texture",
    b"\x93NUMPY": "a NumPy array",
    b"\0\5\x16\7": "what a Mac leaves beside a file (AppleDouble)",
    b"\x1f\x8b": "a gzip archive",
    b"\x1aE\xdf\xa3": "a video (Matroska or WebM)",
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive",
    b"version https://git-lfs": "a Git LFS pointer: the picture itself was not fetched (git lfs pull)",
    b"<": "HTML, XML or SVG",
}
_MARK = b"\xef\xbb\xbf"
"""What some programs write before a text."""
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_READ_STARTS = (b"\x89PNG", b"BM", b"GIF8", b"RIFF")
_BRANDS = {
    **dict.fromkeys(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"), "a HEIC picture"
    ),
    **dict.fromkeys((b"crx ",), "a camera's raw picture (CR3)"),
    **dict.fromkeys(
        (b"qt  ", b"isom", b"mp41", b"mp42", b"avc1", b"iso2", b"M4V "), "a video (MP4 or MOV)"
    ),
}


def kind_of(data: bytes) -> str:
    """Return what bytes that are no readable picture are, as the end of a sentence about their file."""
    if not data:
        return "is empty"
    text = data[:64].removeprefix(_MARK).lstrip(b"\r\n\t ")
    found = next((name for start, name in _BY_START.items() if data.startswith(start)), None)
    found = found or (_BY_START[b"<"] if text.startswith(b"<") else None)
    if data.startswith(_TIFF_STARTS):
        return "is a TIFF that is not read: truncated, a camera's raw picture, or of other numbers than 8 or 16 bits: convert it"
    if data[8:12] == b"avif" or data.startswith(_READ_STARTS):
        return "is not an image: truncated, corrupt or of a rare kind"
    if data[4:8] == b"ftyp":
        found = _BRANDS.get(data[8:12])
    return (
        f"is {found}, not an image that is read ({READ})" if found else f"is not an image ({READ})"
    )
