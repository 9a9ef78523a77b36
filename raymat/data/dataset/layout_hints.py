"""What a dataset's folders look like where they are not as they should be, and what to rename or which flag takes them.

Looked at only when something is missing: a few listings of one folder each.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from os.path import isdir
from urllib.parse import unquote

from raymat.data.dataset.file_names import ARCHIVES, SUFFIXES, VIDEOS, composed
from raymat.data.dataset.image_folder import Folder
from raymat.errors import DataError

_OTHER_NAMES = {
    "train": ("training", "trainset", "train_set", "train-set"),
    "valid": ("test", "val", "validation", "eval", "evaluation", "dev", "testing", "validate"),
    "fgr": (
        *("fg", "fgs", "foreground", "foregrounds", "image", "images", "img", "imgs"),
        *("rgb", "colour", "color", "source", "src", "input", "inputs", "original"),
    ),
    "pha": (
        *("alpha", "alphas", "matte", "mattes", "mask", "masks", "alpha_matte", "alpha_mattes"),
        *("label", "labels", "gt", "annotation", "annotations", "target"),
    ),
}
_SHOWN = 5
_LOOKED_INTO = 20
"""Folders that are looked into for one that is a level too deep."""


def missing_hint(folder: Folder, path: str) -> str:
    """Return what is where the folder `path` should be, beginning with ": "; "" if that helps nobody."""
    parts = path.split("/")
    for depth, part in enumerate(parts):
        here = "/".join(parts[:depth])
        entries = folder.entries(here)
        if entries is None:
            return _no_folder(folder)
        if not entries.get(part, False):
            return f": {_instead(folder, here, part, entries)}"
    return ""


def refuse_misnamed_halves(folder: Folder, path: str) -> None:
    """Raise DataError if `path` has what is likely fgr/ and pha/ under other names, with what to rename."""
    folders = [name for name, is_folder in (folder.entries(path) or {}).items() if is_folder]
    if len(_renamings("fgr", folders)) == 2:
        raise DataError(
            f"no such folder: {folder.shown(f'{path}/fgr')}{missing_hint(folder, f'{path}/fgr')}"
        )


def no_pictures_hint(folder: Folder, path: str, names: Iterable[str]) -> str:
    """Return what is in a folder without pictures, beginning with ": "; "" if there is nothing."""
    names = [name for name in names if not name.endswith("/")]
    kinds = Counter(os.path.splitext(name)[1].lower() for name in names)
    videos = [kind for kind in kinds if kind in VIDEOS]
    if videos:
        return f": {kinds[videos[0]]:,} videos ({videos[0]}) are there: {_unpack(folder.shown(path), videos[0])}"
    archives = [name for name in names if os.path.splitext(name)[1].lower() in ARCHIVES]
    if archives:
        return f": {_unpack_archive(archives[0])}"
    counted = ", ".join(f"{n:,} {kind or 'without extension'}" for kind, n in kinds.most_common(3))
    return f": {counted} are there" if counted else ": it is empty"


def partner_hint(
    foregrounds: Sequence[str], mattes: Sequence[str], pair_suffix: str, some_pair: bool
) -> str:
    """Return what to do with names that have no partner, beginning with "; ".

    `pair_suffix`: what the mattes' names had at their end. `some_pair`: whether others have a partner.
    """
    found = (
        _suffix_hint(foregrounds, mattes, pair_suffix)
        or _same(
            foregrounds, mattes, _unpadded, "the numbers in their names are padded differently"
        )
        or _same(foregrounds, mattes, str.lower, "their names differ in upper and lower case")
        or _other_accents(foregrounds, mattes)
        or _beginning_hint(foregrounds, mattes)
    )
    return f"; {found}" if found else "; --skip-unpaired leaves them out" if some_pair else ""


def _suffix_hint(foregrounds: Sequence[str], mattes: Sequence[str], pair_suffix: str) -> str | None:
    ending = _common_ending(foregrounds, mattes)
    if ending:
        ending += pair_suffix
        word = shlex.quote(ending)
        # What begins with a hyphen would be taken for a flag.
        value = f"={word}" if ending.startswith("-") else f" {word}"
        return f"the mattes' names end in {word}: --pair-suffix{value} takes them"
    ending = _common_ending(mattes, foregrounds)
    return f"the foregrounds' names end in {ending}: rename them without it" if ending else None


def _beginning_hint(foregrounds: Sequence[str], mattes: Sequence[str]) -> str | None:
    for what, short, long in (
        ("mattes", foregrounds, mattes),
        ("foregrounds", mattes, foregrounds),
    ):
        beginning = _common_ending(*([_turned(name) for name in names] for names in (short, long)))
        if beginning:
            return f"the {what}' names begin with {beginning[::-1]}: rename them without it"
    return None


def _turned(path: str) -> str:
    """Return a path whose name is written backwards."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + name[::-1]


def _common_ending(short: Sequence[str], long: Sequence[str]) -> str | None:
    """Return what most of the `long` names have besides a `short` one."""
    known = set(short)
    endings = Counter(
        name[cut:]
        for name in long
        for cut in range(name.rfind("/") + 2, len(name))
        if name[:cut] in known and not name[cut:].isdigit()
    )
    ending, count = endings.most_common(1)[0] if endings else ("", 0)
    return ending if 2 * count > len(long) else None


def _same(
    foregrounds: Sequence[str], mattes: Sequence[str], form: object, words: str
) -> str | None:
    assert callable(form)
    ours = {form(name): name for name in foregrounds}
    both = [(ours[form(name)], name) for name in mattes if form(name) in ours]
    if 2 * len(both) <= len(mattes):
        return None
    return f"{words} ({both[0][0]} and {both[0][1]}): rename those of one folder"


def _other_accents(foregrounds: Sequence[str], mattes: Sequence[str]) -> str | None:
    ours = {composed(name) for name in foregrounds}
    alike = sum(composed(name) in ours for name in mattes)
    if not alike:
        return None
    return (
        f"the accents of {alike:,} of the mattes' names are written in another form than those of their foregrounds (NFC and "
        "NFD, as a Mac makes them), which looks the same: convmv -f utf8 -t utf8 --nfc -r --notest FOLDER renames them"
    )


def _unpadded(name: str) -> str:
    return re.sub(r"\d+", lambda digits: str(int(digits[0])), name)


def _instead(folder: Folder, here: str, part: str, entries: Mapping[str, bool]) -> str:
    """Return what the folder `here` has instead of the folder `part`."""
    folders = [name for name, is_folder in entries.items() if is_folder]
    shown = folder.shown(here)
    renamed = [f"{old}/ to {new}/" for old, new in _renamings(part, folders)]
    if renamed:
        return f"rename {' and '.join(renamed)} in {shown}"
    if part == "train" and {"fgr", "pha"} & {*folders}:
        if os.path.basename(shown) in ("train", "valid"):
            return f"this is one of its halves: give the folder above, {os.path.dirname(shown)}"
        return f"{shown} has fgr/ and pha/ itself: move them into {shown}/train"
    if part == "pha" and "fgr" in folders and "://" not in shown:
        link = shlex.quote(f"{shown}/pha")
        return f"{shown} has fgr/ alone; if its pictures have alpha channels: ln -s fgr {link}"
    deeper = [
        name for name in folders[:_LOOKED_INTO] if part in (folder.entries(_join(here, name)) or {})
    ]
    if deeper and part in ("train", "valid"):
        return f"it is a level deeper: give {folder.shown(_join(here, deeper[0]))}"
    return _files_instead(shown, part, entries)


def _files_instead(shown: str, part: str, entries: Mapping[str, bool]) -> str:
    files = [name for name, is_folder in entries.items() if not is_folder]
    for name in files:
        kind = os.path.splitext(name)[1].lower()
        if kind in VIDEOS:
            return f"{shown} has {name}: {_unpack(shown, kind)}"
        if kind in ARCHIVES:
            return _unpack_archive(f"{shown}/{name}")
    pictures = [name for name in files if os.path.splitext(name)[1].lower() in SUFFIXES]
    if pictures:
        return (
            f"{shown} has {len(pictures):,} pictures itself ({pictures[0]}): move them into {part}/"
        )
    names = [f"{name}/" if is_folder else name for name, is_folder in entries.items()]
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{shown} has {', '.join(names[:_SHOWN])}{more}" if names else f"{shown} is empty"


def _renamings(part: str, folders: Sequence[str]) -> list[tuple[str, str]]:
    """Return (name now, name that it should have) of the folders that are likely meant, if `part` is one."""
    wanted = ("fgr", "pha") if part in ("fgr", "pha") else (part,)
    found = []
    for name in wanted:
        taken = (other for other in folders if other != name and name not in folders)
        known = (name, *_OTHER_NAMES.get(name, ()))
        like = next((other for other in taken if other.lower() in known), None)
        if like:
            found.append((like, name))
    return found if part in [name for _, name in found] else []


def _no_folder(folder: Folder) -> str:
    """Return what is at the dataset's own URL, where there is no folder."""
    shown = folder.shown()
    kind = os.path.splitext(shown)[1].lower()
    if kind in ARCHIVES:
        return f": {_unpack_archive(shown)}"
    if kind in VIDEOS:
        return f": {_unpack(os.path.dirname(shown), kind)}"
    if folder.remote:
        return ""
    meant = next((p for p in (unquote(shown), shown.strip()) if p != shown and isdir(p)), None)
    if meant is not None:
        return f": a path is read as it is written, and there is {meant}: give that"
    if os.path.isfile(shown):
        return ": it is a file, and a folder of pictures is read: give the folder"
    several = [part for part in re.split("::|[:,;]", shown) if part]
    if len(several) > 1 and all(map(isdir, several)):
        return ": it is read as one path: give the flag once for each folder"
    return ""


def _unpack(where: str, kind: str) -> str:
    """Return how to make pictures of videos."""
    return (
        f'videos are unpacked by: for v in {where}/*{kind}; do mkdir -p "${{v%.*}}" && '
        'ffmpeg -i "$v" "${v%.*}/%06d.png"; done'
    )


def _unpack_archive(name: str) -> str:
    command = "unzip" if name.lower().endswith(".zip") else "tar -xf"
    return f"{name} is an archive: unpack it ({command} {name}), and give the folder"


def _join(here: str, name: str) -> str:
    return f"{here}/{name}" if here else name
