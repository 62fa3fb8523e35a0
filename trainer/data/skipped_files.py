"""Names that a pattern does not mean: hidden files, backup copies, and folders of version control and of tools."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

_FOLDERS = frozenset(("CVS", "RCS", "SCCS", "_svn", "_darcs", "__MACOSX", "__pycache__", "_temporary", "lost+found"))
_FILES = frozenset(("_SUCCESS", "_metadata", "_common_metadata", "Thumbs.db", "desktop.ini"))
_BACKUP = re.compile(
    r".*~\d*|#.*#|~\$.*|_(started|committed)_\d+|.*\.(bak|backup|old|orig|rej|sw[a-p]|tmp|temp|part|partial|crdownload"
    r"|incomplete|lock|crc|md5|sha1|sha256|rpmsave|save)",
    re.IGNORECASE,
)
_MAGIC = re.compile(r"\[[^]]*\]|[*?]+")


def is_leftover(part: str) -> bool:
    """Whether a file or folder of this name is hidden, a backup copy, or made by a tool."""
    hidden = part.startswith(".") and part not in (".", "..")
    return hidden or part in _FOLDERS or part in _FILES or _BACKUP.fullmatch(part) is not None


def left_out(name: str, pattern: str) -> bool:
    """Whether a match of a pattern is left out: a part of its path is a leftover that the pattern does not name.

    "*.bak" and ".*" name what they match, "**" and "train*" do not.

    Args:
        name: path below the root.
        pattern: with wildcards.
    """
    parts = pattern.split("/")
    named = [part for part in parts if is_leftover(_MAGIC.sub("x", part))]
    return any(is_leftover(part) and not any(fnmatchcase(part, given) for given in named) for part in name.split("/"))
