"""MkDocs hook: publish benchmarks/README.md and the JSON files of the results, which are outside of docs/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add the files under the same path as in the repository."""
    for path in [ROOT / "benchmarks/README.md", *sorted((ROOT / "benchmarks/results").glob("*.json"))]:
        files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Adapt links between docs/ and benchmarks/: on the site both are in one folder."""
    if page.file.src_uri == "benchmarks/README.md":
        return markdown.replace("](../docs/", "](../")
    return markdown.replace("](../benchmarks/", "](benchmarks/").replace("](../../benchmarks/", "](../benchmarks/")
