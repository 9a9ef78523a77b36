"""YAML as people write it: what is wrong with a file, and in which line."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from raymat.errors import one_line


def text_of(data: bytes) -> str:
    """Return a file's text.

    Raises:
        ValueError: it is no text in UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text_in_utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        what = "it is text in UTF-16" if text_in_utf16 else f"byte {error.start} is no text"
        raise ValueError(f"{what}: save it as UTF-8") from None


def mistake(error: Exception) -> str:
    """Return `line N: what is wrong` for what YAML's parser raised."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if isinstance(error, yaml.reader.ReaderError):
        return f"character {error.position + 1} is no text"
    if mark is None:
        return "nested too deeply" if isinstance(error, RecursionError) else one_line(error)
    said = ": ".join(filter(None, (getattr(error, n, None) for n in ("context", "problem"))))
    tab = " (indent with spaces)" if r"\t" in said else ""
    return f"line {mark.line + 1}: {said}{tab}"


def repeated(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """Yield each key that its mapping has had before: of such entries YAML's parser keeps the last, and says nothing."""
    seen, waiting = set[int](), [node]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen or isinstance(each, yaml.ScalarNode):
            continue
        seen.add(id(each))
        if isinstance(each, yaml.MappingNode):
            yield from _twice(each)
            waiting += [part for pair in each.value for part in pair]
        elif isinstance(each, yaml.SequenceNode):
            waiting += each.value


def _twice(mapping: yaml.MappingNode) -> Iterator[yaml.ScalarNode]:
    names = set[str]()
    for key, _ in mapping.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in names:
                yield key
            names.add(key.value)
