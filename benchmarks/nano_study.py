"""What adaptation does to nano: references, baseline, methods, and the wrong sign on purpose.

    python -m benchmarks.nano_study --videos ../shared/clips/metadata.csv --report nano/STUDY.md

One process a core, one clip at a time in each; a finished row of a clip is a line in its file in
--work, so the same command goes on where it was stopped. Adaptation, generation, draws and metrics
are those of the scripts.
"""

import argparse
import contextlib
import os
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

import common
import runs
from adasteer import AdaSteer
from benchmarks.nano_captions import caption_differences
from benchmarks.nano_report import study_report
from common.clip import Window, load_clip
from common.data import list_videos, sha256
from common.loss import preflight
from common.metrics import score
from full_tta import FullTTA
from runs.identity import fingerprint
from runs.results import read_json, write_json

RECONSTRUCTED = 16  # frames from the anchor on, for the autoencoder's ceiling


@dataclass(frozen=True)
class Row:
    method: type
    flags: str
    flipped: bool = False

    @property
    def name(self):
        return f"{self.method.__name__} {self.flags}" + (", sign flipped" if self.flipped else "")

    def arguments(self, shared):
        return runs.parse_args(__doc__, self.method, [*shlex.split(self.flags), *shared])


BASELINE = Row(AdaSteer, "--steps 0")
ROWS = [
    BASELINE,
    *(
        Row(AdaSteer, f"--groups {groups} --lr {lr} --steps {steps}")
        for groups in (1, 4, 12)
        for lr in ("5e-3", "2e-2")
        for steps in (5, 20)
    ),
    Row(AdaSteer, "--groups 12 --lr 2e-2 --steps 20 --context-latents 2"),
    Row(AdaSteer, "--groups 12 --lr 2e-2 --steps 20 --draws 4 --context varying"),
    *(Row(FullTTA, f"--lr {lr} --steps {s}") for lr in ("1e-4", "3e-4") for s in (5, 20)),
    Row(FullTTA, "--lr 1e-4 --steps 20 --context-latents 2"),
    Row(FullTTA, "--lr 3e-4 --steps 20 --draws 4 --context varying"),
    Row(AdaSteer, "--groups 12 --lr 2e-2 --steps 20", flipped=True),
    Row(FullTTA, "--lr 1e-4 --steps 20", flipped=True),
]


@contextlib.contextmanager
def sign_flipped(model, really):
    """The mistake of the first attempt: adaptation against the negated velocity."""
    model.network_sign *= -1 if really else 1
    try:
        yield
    finally:
        model.network_sign *= -1 if really else 1


def run_row(row, shared, model, video, texts):
    """What is kept of one row on one clip."""
    args = row.arguments(shared)
    clip = load_clip(
        model, video, Window.of(args, model.geometry), model.frame_size, *texts, args.seed
    )
    method = row.method(model, clip, args)
    with method.attached():
        with sign_flipped(model, row.flipped):
            record = common.adapt(model, method, clip, args)
        frames = common.generate(model, clip, args, record)
    kept = {name: record[name] for name in ("losses", "diverged", "adapt_seconds")}
    return kept | {"psnr_db": score(frames[0], clip.truth)["psnr_db"]}


def references(shared, model, video, texts):
    """Repeating the last frame, the autoencoder's ceiling, and the preflight's losses."""
    args = BASELINE.arguments([*shared, "--gen-frames", str(RECONSTRUCTED)])
    clip = load_clip(
        model, video, Window.of(args, model.geometry), model.frame_size, *texts, args.seed
    )
    frames = torch.cat([clip.cond_frames, clip.truth])
    again = model.decode(model.encode(frames.transpose(0, 1)[None]))[0].transpose(0, 1)
    asked = BASELINE.arguments(shared).gen_frames
    truth = clip.truth[:asked]
    return preflight(model, clip) | {
        "repeat_psnr_db": score(clip.cond_frames[-1:].expand_as(truth), truth)["psnr_db"],
        "reconstruction_psnr_db": score(again, frames)["psnr_db"],
    }


def load(checkpoint):
    torch.set_num_threads(1)  # there is one process a core
    flags = ["--checkpoint", str(checkpoint), "--device", "cpu", "--checkpointing", "none"]
    return common.load_model(BASELINE.arguments(flags))


def study_clip(video, checkpoint, shared, path):
    """Runs what the clip's file does not hold yet."""
    global MODEL  # loaded once a process
    if "MODEL" not in globals():
        MODEL = load(checkpoint)
    found, file = read_json(path), sha256(video.path)
    if found is None or found["video_sha256"] != file:
        found = {"video_sha256": file, "rows": {}}
    texts = list(MODEL.embed_each([video.caption, ""]))
    if "references" not in found:
        found["references"] = references(shared, MODEL, video, texts)
    for row in ROWS:
        if row.name not in found["rows"]:
            found["rows"][row.name] = run_row(row, shared, MODEL, video, texts)
            write_json(path, found)
    return video, found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=Path, required=True, help="manifest of real clips")
    parser.add_argument("--checkpoint", type=Path, default=Path("nano/checkpoint"))
    parser.add_argument("--limit", type=int, help="the first N clips only")
    parser.add_argument("--work", type=Path, default=Path("results/nano_study"))
    parser.add_argument("--report", type=Path, help="Markdown file to write; else standard output")
    parser.add_argument("shared", nargs="*", help="flags for every row, after --")
    args = parser.parse_args()
    videos = list_videos(args.videos)[0][: args.limit]
    folder = args.work / fingerprint(args.checkpoint)[:12] / ("_".join(args.shared) or "defaults")
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        jobs = [
            pool.submit(study_clip, v, args.checkpoint, args.shared, folder / f"{v.id}.json")
            for v in videos
        ]
        results = [job.result() for job in tqdm(jobs, "clips", unit="clip")]
    command = f"python -m benchmarks.nano_study {shlex.join(sys.argv[1:])}"
    captions = caption_differences(load(args.checkpoint))
    text = study_report(results, captions, ROWS, BASELINE, command)
    if args.report:
        args.report.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
