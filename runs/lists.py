"""The list of videos."""

import csv
import hashlib
import os
import re
from collections import Counter
from pathlib import Path

from common.data import Video, real
from common.errors import UsageError
from runs.names import unusable, usable
from runs.results import replace_file

# columns that name a file of the same frames: without a shift; of the same scene, filmed again
BESIDE = ("truth", "second_take")
SHIFTS = (  # what column shift says, where prepare.shift made a list
    "noise", "blur", "dark", "contrast", "colour-cast", "jpeg", "video-codec", "low-frame-rate",
    "speed", "flip", "rotation", "letterbox",
)  # fmt: skip
SUFFIXES = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".gif", ".m4v", ".mpg", ".mpeg"}


# the name of a video as a cell among others
CELL = rf"[^\n,]*({'|'.join(map(re.escape, sorted(SUFFIXES)))})\"?"
# in a text of several lines: such a cell before or after a comma, so another row
SWALLOWED = re.compile(rf"\n{CELL},|,{CELL}\s*(,|\n|\Z)", re.IGNORECASE)


def list_videos(path, prompt=None, flag="--videos", allow_empty=False):
    """The videos of a CSV manifest, of a folder (not recursive) or of one file, and the list's
    SHA-256.

    A manifest has the columns filename and caption, perhaps id and those of BESIDE; files are
    relative to its folder.
    The caption of a folder's video or of a file is the text beside it, clip.txt of clip.mp4, else
    `prompt`. Captions may be missing with allow_empty. Raises UsageError that names `flag`.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv" and path.is_file():
        if prompt is not None:
            raise UsageError(
                f"--prompt: {path} has its own captions; --prompt is for files and folders"
            )
        rows, digest = read_manifest(path, flag, allow_empty), hashlib.sha256(path.read_bytes())
    else:
        rows, digest = rows_of_files(path, prompt, flag)
    if not rows:
        raise UsageError(f"{flag} {path}: lists no videos; a CSV needs rows, a folder video files")
    if not allow_empty:
        refuse_empty(rows, path, flag)
    folder = path if path.is_dir() else path.parent
    return [
        new_video(row, name, folder) for row, name in zip(rows, ids(rows, path, flag), strict=True)
    ], (digest.hexdigest())


def rows_of_files(path, prompt, flag):
    """Rows as those of a manifest for a folder's videos or one file, and the SHA-256 of the names
    and of the texts beside them."""
    if path.is_dir():
        files = sorted(
            p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != "."
        )
    elif path.is_file():
        files = [path]
    else:
        raise UsageError(f"{flag} {path}: no such file or folder; give a CSV, a folder or a video")
    texts = [text_beside(file, flag) for file in files]
    rows = [
        {"filename": file.name, "caption": text or prompt}
        for file, text in zip(files, texts, strict=True)
    ]
    known = (
        f"{file.name}\0{text}" if text else file.name
        for file, text in zip(files, texts, strict=True)
    )
    return rows, hashlib.sha256("\n".join(known).encode(errors="surrogateescape"))


def text_beside(video, flag):
    """What a video's .txt says, as one line; "" where there is none."""
    path = video.with_suffix(".txt")
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split())
    except FileNotFoundError:
        return ""
    except (UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{flag} {path}: no caption in UTF-8 can be read ({error})") from error


def refuse_empty(rows, path, flag):
    """Raises UsageError where a video has no caption; a manifest's have theirs by now."""
    lacking = [Path(row["filename"]) for row in rows if not (row["caption"] or "").strip()]
    if lacking:
        found = [p.name for p in path.glob("*.csv")] if path.is_dir() else []
        hint = f" (or pass {flag} {path / found[0]})" if found else ""
        share = f" ({len(lacking)} of {len(rows)} videos lack one)" if len(rows) > 1 else ""
        raise UsageError(
            f"{flag} {path}: {lacking[0]} has no caption{share}; put it into "
            f"{lacking[0].with_suffix('.txt')} beside it, or say what it shows with --prompt "
            f"TEXT{hint}"
        )


def read_manifest(path, flag, allow_empty):
    rows = []
    for line, row in read_csv(path, {"filename", "caption"}, f"{flag} {path}"):
        for name in ("filename",) if allow_empty else ("filename", "caption"):
            if not (row[name] or "").strip():
                more = " (see --caption, --allow-poor-captions)" if name == "caption" else ""
                raise UsageError(
                    f"{flag} {path}, line {line}: empty {name}; every video needs one{more}"
                )
        rows.append(row)
    return rows


def read_csv(path, columns, where):
    """(line, row as a dict) of a CSV file in UTF-8, one by one. Raises UsageError that begins with
    `where` when a column is missing, or a quote is opened and never closed."""
    csv.field_size_limit(10_000_000)
    line = 0
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            if missing := columns - set(reader.fieldnames or []):
                raise UsageError(
                    f"{where}: no column {' or '.join(sorted(missing))}; it needs "
                    f"{','.join(sorted(columns, reverse=True))}"
                )
            line = reader.line_num
            for row in reader:
                line = reader.line_num
                begins = line - sum(str(text).count("\n") for text in row.values())
                refuse_swallowed(row, begins, where)
                yield begins, row
    except csv.Error as error:
        raise UsageError(
            f"{where}, line {line + 1}: not a row of a CSV file ({error}); is a quote opened there "
            "and not closed?"
        ) from error
    except (UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{where}: not a CSV file in UTF-8 ({error})") from error


def refuse_swallowed(row, line, where):
    """Raises UsageError where a text that goes on over several lines holds rows itself."""
    for value in row.values():
        if isinstance(value, str) and "\n" in value and SWALLOWED.search(value):
            raise UsageError(
                f"{where}, line {line}: a text goes on into the next rows; is a quote opened there "
                "and not closed?"
            )


def ids(rows, path, flag):
    """The id column, else the file name without suffix, with it where two would collide; what of
    that can name a file."""
    stems = Counter(Path(row["filename"]).stem for row in rows)
    names = []
    for row in rows:
        file, given = Path(row["filename"]), (row.get("id") or "").strip()
        if given and (why := unusable(given)):
            raise UsageError(f"{flag} {path}: the id {given[:60]!r} cannot name a file: it {why}")
        names.append(given or usable(file.stem if stems[file.stem] == 1 else file.name))
    for name, count in Counter(names).items():
        if count > 1:
            raise UsageError(
                f"{flag} {path}: the id {name!r} stands {count} times; make ids unique"
            )
    return names


def new_video(row, name, folder):
    known = {"id", "filename", "caption"}
    columns = {key: value for key, value in row.items() if key and key not in known}
    beside = {key: folder / row[key] for key in BESIDE if (row.get(key) or "").strip()}
    return Video(name, folder / row["filename"], (row["caption"] or "").strip(), columns, beside)


def write_list(path, videos):
    """A manifest of the videos that list_videos reads back, files relative to its folder."""

    def relative(file):
        return os.path.relpath(real(file.parent) / file.name, real(path.parent))

    rows = [
        {"id": v.id, "filename": relative(v.path), "caption": v.caption, **v.columns}
        | {"source": v.source, **{key: relative(file) for key, file in v.beside.items()}}
        for v in videos
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))

    def write(temporary):
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    replace_file(path, write)
