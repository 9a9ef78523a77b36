"""A hook of MkDocs: pages of the site that lie elsewhere in the project, and links to its files."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "deploy/README.md": "clusters.md",
}
"""Pages of the site by their place in the project."""

LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_with_links_of_the_site(text, source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links out of docs/ into links of the site."""
    if page.file.src_uri in PAGES.values():
        return markdown
    return _with_links_of_the_site(markdown, f"docs/{page.file.src_uri}")


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Take the one script that Material loads from elsewhere from the site itself: it needs no network."""
    here = posixpath.relpath("assets/iframe-worker.js", posixpath.dirname(page.url) or ".")
    return output.replace("https://unpkg.com/iframe-worker/shim", here)


def on_post_template(output: str, template_name: str, **_: Any) -> str:
    """Do the same for the page that says that there is none."""
    return output.replace("https://unpkg.com/iframe-worker/shim", "/assets/iframe-worker.js")


def _with_links_of_the_site(text: str, source: str) -> str:
    """Return a page with its links made relative to docs/; a file that is no page is named without a link."""

    def inside(match: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        return PAGES.get(place) or posixpath.relpath(place, "docs")

    text = LINK.sub(inside, text)
    return re.sub(r"\[([^]]+)\]\(\.\./[^)]*\)", r"\1", text)
