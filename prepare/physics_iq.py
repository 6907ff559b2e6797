"""Physics-IQ (Motamed et al. 2025) -> clips of 3 s of context and 5 s to score, and a manifest.

    python -m prepare.physics_iq physics-IQ-benchmark --descriptions descriptions_original.csv \\
        --checkpoint Wan-AI/Wan2.2-TI2V-5B-Diffusers --out data/physics_iq

SOURCE is the benchmark's folder in its official layout, of which full-videos is read:

    full-videos/take-1/30FPS/0001_full-videos_30FPS_perspective-left_take-1_trimmed-NAME.mp4
    full-videos/take-2/30FPS/0199_full-videos_30FPS_perspective-left_take-2_trimmed-NAME.mp4

--descriptions is a CSV of its repository's folder descriptions/. Clips have the rate and size of
--checkpoint's model, from the folder of that rate, else from the fastest. A clip is the first take
of a scene from one of three sides; the scene is its source. The column second_take names the second
take: what a baseline scores of it is the row "(second take: physical noise)" of every table, which
says how far two runs of the same physics are apart. A scene without one has no such score. The last
line says with which flags a run conditions and scores as the benchmark does; its own score, over
masks of what moves, is not computed.
"""

import hashlib
import re
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from runs.exits import run_script  # first: signals, and how torch's threads wait

# isort: split
from tqdm import tqdm

from common.clip import fitting_window
from common.data import Video, real, sha256
from common.errors import StopRun, UsageError, VideoError
from common.loading import NANO, geometry_of
from common.values import folder
from prepare.flags import clip_size, frame_rate
from prepare.make import Candidate, Rules, copy_frames, one_line, without_path
from prepare.workers import start_workers, submit
from runs.lists import read_csv, write_list
from runs.names import printable, unusable
from runs.parser import Parser
from runs.results import read_json, replace_file, write_json

CONTEXT, SCORED = 3, 5  # seconds
NAME = re.compile(r"\d+_full-videos_\d+FPS_(perspective-[a-z]+)_take-[12]_(.+)\.mp4")
CLIPS = ("clips", "second_takes")  # folders of the first and the second takes
RULES = "physics_iq.json"  # what a folder was made with


@dataclass(frozen=True)
class Scene:
    """A scene from one side: its takes, the second perhaps None."""

    name: str  # as the benchmark names a generated video, without its suffix
    scene: str
    caption: str
    category: str
    takes: tuple


def scenes(args, fps):
    """All that have a first take and a description; of the others a line. Raises UsageError."""
    first, second = (takes(args.source, number, fps) for number in (1, 2))
    if not first:
        raise UsageError(
            f"SOURCE {args.source}: holds no full-videos/take-1/30FPS/0001_full-videos_...mp4, as "
            "the folder of the benchmark does"
        )
    texts, found = descriptions(args.descriptions), []
    for key, path in first.items():
        number = path.name.partition("_")[0]
        row = texts.get(f"{number}_{key[0]}_take-1_{key[1]}.mp4")
        name = f"{number}_{key[0]}_{key[1]}"
        if row is None or unusable(name):
            print(printable(f"skipped {name}: --descriptions has no scenario of that name"))
            continue
        caption, category = one_line(row["description"]), row.get("category") or ""
        found.append(Scene(name, key[1], caption, category, (path, second.get(key))))
    if not found:
        raise UsageError(f"--descriptions {args.descriptions}: describes no video of SOURCE")
    return found, len(first)


def takes(source, number, fps):
    """{(side, scene): path} of one take, in the order of names. Raises UsageError where all are
    slower than fps."""
    place = source / "full-videos" / f"take-{number}"
    rates = {float(path.name[:-3]): path for path in place.glob("*FPS") if path.name[:-3].isdigit()}
    if not rates:
        return {}
    rate = fps if fps in rates else max(rates)
    if rate < fps:
        raise UsageError(
            f"SOURCE {source}: {place.name} has {rate:g} frames a second at most, the clips need "
            f"{fps:g}; fetch its 30FPS, or give a lower --fps"
        )
    matches = ((NAME.fullmatch(path.name), path) for path in sorted(rates[rate].glob("*.mp4")))
    return {match.groups(): path for match, path in matches if match}


def descriptions(path):
    """{scenario: row} of the CSV. Raises UsageError."""
    if not path.is_file():
        raise UsageError(f"--descriptions {path}: no such file; descriptions_original.csv is one")
    columns, where = {"scenario", "description"}, f"--descriptions {path}"
    return {row["scenario"]: row for _, row in read_csv(path, columns, where) if row["description"]}


def make(scene, path, take, rules):
    """Writes one take's clip; gives why not, or None."""
    candidate = Candidate(scene.name, take, scene.caption, scene.category, scene.scene)
    try:
        replace_file(path, lambda temporary: copy_frames(candidate, rules, temporary))
    except VideoError as error:
        return without_path(str(error), take)
    return None


def make_all(found, rules, out):
    """{path of a clip: why it could not be made, or None}, two for a scene with both takes. Those
    that are there stay."""
    for name in CLIPS:
        (out / name).mkdir(parents=True, exist_ok=True)
    work = [
        (scene, out / name / f"{scene.name}.mp4", take)
        for scene in found
        for name, take in zip(CLIPS, scene.takes, strict=True)
        if take is not None
    ]
    made = {path: None for _, path, _ in work if path.is_file()}
    work = [(scene, path, take) for scene, path, take in work if path not in made]
    if not work:
        return made
    try:
        with start_workers() as pool:
            jobs = {path: submit(pool, make, s, path, take, rules) for s, path, take in work}
            bar = tqdm(jobs.items(), "takes", unit="clip", disable=None)
            return made | {path: job.result() for path, job in bar}
    except BrokenProcessPool as error:
        raise StopRun("a process that makes clips was killed; the same command goes on") from error


def listed(scene, made, rules, out):
    """The scene's Video of the manifest, or None; says what could not be made."""
    path, second = (out / name / f"{scene.name}.mp4" for name in CLIPS)
    for each, kind in ((path, "skipped"), (second, "without its second take")):
        if made.get(each):
            print(printable(f"{kind} {scene.name}: {made[each]}"))
    if made[path]:
        return None
    height, width = rules.size
    columns = {"category": scene.category, "source": scene.scene, "frames": rules.max_frames}
    columns |= {"fps": rules.fps, "width": width, "height": height, "sha256": sha256(path)}
    again = second in made and not made[second]
    columns["second_take_sha256"] = sha256(second) if again else ""
    beside = {"second_take": second} if again else {}
    return Video(scene.name, path, scene.caption, columns, beside)


def run_flags(args, geometry):
    """Of a run that is given 3 s and scores 5 s, with as much of the context as the model takes."""
    args.anchor, frames = round(CONTEXT * args.fps), round(SCORED * args.fps)
    flags = ["--anchor", str(args.anchor), "--gen-frames", str(frames)]
    if geometry.context_lengths is None:
        known = geometry.frames_of(geometry.latents_filled(args.anchor))
        flags += ["--cond-frames", str(known)]
    return [*flags, *fitting_window(args, geometry)]


def same_rules(args, rules):
    """Raises UsageError where --out holds clips of other rules or another SOURCE."""
    made, asked = read_json(args.out / RULES), {"fps": rules.fps, "size": list(rules.size)}
    asked |= {"source": real(args.source).name, "takes": takes_digest(args)}
    if made is None and args.out.is_dir() and any(args.out.iterdir()):
        raise UsageError(f"--out {args.out}: is not empty; choose another folder")
    if (made or asked) != asked:
        raise UsageError(f"--out {args.out}: was made with {made}; choose another folder")
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / RULES, asked)


def takes_digest(args):
    """SHA-256 of the names and sizes of all takes; reading them whole would take minutes."""
    found = [takes(args.source, number, args.fps).values() for number in (1, 2)]
    known = [f"{path.name} {path.stat().st_size}" for paths in found for path in paths]
    return hashlib.sha256("\n".join(known).encode(errors="surrogateescape")).hexdigest()


def parse_args():
    parser = Parser(__doc__, "%(prog)s SOURCE --descriptions CSV --out DIR [flags]")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of the benchmark")
    parser.add_argument(
        "--descriptions", type=Path, required=True, metavar="CSV", help="what each scene shows"
    )
    parser.add_argument(
        "--out", type=folder, required=True, metavar="DIR", help="clips and manifest"
    )
    parser.add_argument(
        "--checkpoint", type=Path, default=NANO, metavar="FOLDER",
        help="model whose rate and size the clips have, a folder or OWNER/NAME in the cache",
    )  # fmt: skip
    parser.add_argument("--fps", type=frame_rate, help="another rate")
    parser.add_argument("--size", type=clip_size, metavar="WxH", help="another size")
    parser.set_defaults(download=False)
    return parser.parse_args()


def main():
    args = parse_args()
    geometry = geometry_of(args)
    args.fps, args.size = args.fps or geometry.fps, args.size or geometry.size
    count = round(CONTEXT * args.fps) + round(SCORED * args.fps)
    rules = Rules(args.size, float(args.fps), count, count, 0.0, float("inf"))
    found, total = scenes(args, args.fps)
    same_rules(args, rules)
    made = make_all(found, rules, args.out)
    videos = [video for scene in found if (video := listed(scene, made, rules, args.out))]
    if not videos:
        print(f"none of {total} clips could be made; no manifest is written")
        return 1
    write_list(args.out / "manifest.csv", videos)
    again = sum("second_take" in video.beside for video in videos)
    print(f"{len(videos)} clips, {again} with a second take: {args.out / 'manifest.csv'}")
    print(f"3 s of context, 5 s scored: {' '.join(run_flags(args, geometry))}")
    return 0 if len(videos) == total else 3


if __name__ == "__main__":
    run_script(main)
