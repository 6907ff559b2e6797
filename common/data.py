"""A video of a list, and its file."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Video:
    id: str
    path: Path
    caption: str
    columns: dict = field(default_factory=dict)  # the manifest's other columns
    beside: dict = field(default_factory=dict)  # of those the files of the same frames, by column

    @property
    def source(self):
        """What statistics cluster by."""
        return self.columns.get("source") or self.id


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_facts(path):
    """What changes when a file does, mostly."""
    found = path.stat()
    return {"size": found.st_size, "modified_ns": found.st_mtime_ns}


def real(path):
    """Where links lead, as far as they do; a path that no file can have is left as it is."""
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a NUL in it
        return path
