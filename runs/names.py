"""What may name a file of ours, and how text that others wrote is shown on a terminal."""

import hashlib
import re
import unicodedata

LONGEST = 200  # bytes: suffixes and temporary names come on top, file systems take 255
RESERVED = {"report", "sweep.json", "jobs.json"}  # of a sweep's folder


def unusable(name):
    """Why `name` cannot be that of a video's or a row's results, or None."""
    if not name or name.startswith("."):
        return "is empty" if not name else "begins with a dot"
    if "/" in name or "\\" in name:
        return "has a slash"
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        return "has control characters"
    if len(name.encode()) > LONGEST:
        return f"is longer than {LONGEST} bytes"
    return "is a name of ours" if name in RESERVED else None


def usable(text):
    """`text` where it can name results, else what is left of it with a part of its SHA-256."""
    if unusable(text) is None:
        return text
    digest = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
    return re.sub(r"[^A-Za-z0-9_.,=+ -]+", "_", text).strip(". ")[:100] + f"-{digest[:8]}"


def printable(text):
    """Control characters, which a terminal would obey, as escapes."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)
