"""compare.py on folders that are not as a run leaves them: a result, or one line."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from folders import change, make_run
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import compare
from common.video import write_video
from report import adapted, curves, figures, swept

VIDEOS, SIZE = 10, (16, 64)
NASTY = '"><script>alert(1)</script>\x1b[31m\ud800\x00'
SAMPLES = {
    "kernel_score": 0.01, "energy_score": 0.1, "sample_variance": 0.002,
    "psnr_db_per_sample": [20.0, 21.0, None],
}  # fmt: skip
GARBAGE = st.sampled_from(
    [
        None, True, -1, 0, 3, 1e-310, 1e59, -1e308, 10**30, 10**400, float("nan"), float("inf"),
        "", "text", NASTY, "=1+1", [], {}, [[]], [None], [0, 1], [1, 10**30], ["a", None], {"": {}},
        {"loss": "x"}, [[0, 0.5], [1]], {"a": float("nan")}, json.loads("[" * 300 + "]" * 300),
    ]
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep of a baseline and a run, with mp4s and adapters."""
    folder = tmp_path_factory.mktemp("whole") / "sweep"
    gains = list(np.random.default_rng(0).normal(0.2, 1, VIDEOS))
    losses = [0.2 - 0.01 * gain for gain in gains]
    make_run(folder / "base", [0] * VIDEOS, 0, futures=[0.2] * VIDEOS, samples=SAMPLES)
    make_run(folder / "run", gains, futures=losses, samples=SAMPLES)
    for name in ("base", "run"):
        for i in range(VIDEOS):
            frames = torch.rand(27, 3, 1, 2).repeat_interleave(16, 2).repeat_interleave(32, 3)
            write_video(folder / name / "videos" / f"v{i:03d}.mp4", frames, 24)
            save_file({"d": torch.rand(4)}, folder / name / "videos" / f"v{i:03d}.safetensors")
    rows = [
        {"name": "base", "baseline": None, "over": {}, "template": ""},
        {"name": "run", "baseline": "base", "over": {"lr": 0.1}, "template": "run{lr}"},
        {"name": "more", "baseline": "base", "over": {"lr": 0.2}, "template": "run{lr}"},
    ]
    (folder / "sweep.json").write_text(json.dumps({"rows": rows}))
    make_run(folder / "more", gains[::-1], lr=0.2, futures=losses[::-1], samples=SAMPLES)
    return folder


@pytest.fixture
def compared(whole, tmp_path, script, capsys):
    """Damages a copy and compares it; gives the exit code and what was said."""

    def call(damage, *flags, sweep=False, out=tmp_path / "report"):
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        damage(folder)
        given = ["--sweep", folder] if sweep else [folder / "base", folder / "run"]
        code = script(compare, *given, "--out", out, "--show", 1, *flags)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made but not written as SVG, which takes most of the time."""
    for module in (figures, adapted, swept, curves):
        monkeypatch.setattr(module, "as_svg", lambda figure: "<svg></svg>")


def overwrite(name, content):
    def damage(folder):
        (folder / name).write_bytes(content)

    return damage


def edit(name, change_content):
    return lambda folder: change(folder / name, change_content)


REFUSED = {  # what compare.py says of it, in one line
    "steps is 'many', not a whole number": edit(
        "run/config.json", lambda c: c["arguments"].update(steps="many")
    ),
    "steps is -1": edit("run/config.json", lambda c: c["arguments"].update(steps=-1)),
    "seed is None": edit("run/config.json", lambda c: c["arguments"].update(seed=None)),
    "seed is [1]": edit("base/config.json", lambda c: c["arguments"].update(seed=[1])),
    "seed is True": edit("base/config.json", lambda c: c["arguments"].update(seed=True)),
    "lr is nested": edit("run/config.json", lambda c: c["arguments"].update(lr=[[[]]])),
    "manifest_sha256 is None": edit("run/config.json", lambda c: c.pop("manifest_sha256")),
    "method is 7": edit("run/config.json", lambda c: c.update(method=7)),
    "no whole config.json": overwrite("run/config.json", b"\xff{"),
    "no such folder": lambda folder: shutil.rmtree(folder / "run"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_config_that_no_run_writes_is_refused(message, compared):
    code, _, said = compared(REFUSED[message])
    assert code == 2 and message in said and said.count("\n") == 1
    assert "/copy/" in said


SWEEPS = {
    "no whole sweep.json": overwrite("sweep.json", b"{"),
    "sweep.json has no rows": overwrite("sweep.json", b"[]"),
    "row 1 in sweep.json": edit("sweep.json", lambda c: c["rows"][0].update(name=None)),
    "row 2 in sweep.json": edit("sweep.json", lambda c: c["rows"][1].update(name="../run")),
    "row 3 in sweep.json": edit("sweep.json", lambda c: c["rows"][2].pop("template")),
}


@pytest.mark.parametrize("message", SWEEPS)
def test_a_sweep_that_is_none_is_refused(message, compared):
    code, _, said = compared(SWEEPS[message], sweep=True)
    assert code == 2 and message in said and said.count("\n") == 1


def test_a_damaged_row_leaves_the_others(compared, undrawn):
    def damage(folder):
        change(folder / "more" / "config.json", lambda c: c["arguments"].update(steps={}))

    code, said, _ = compared(damage, sweep=True)
    assert code == 0 and "more: " in said and "steps is {}" in said


RECORDS = {
    "of another video": lambda r: r.update(id="v007"),
    "without scores": lambda r: r.pop("ssim"),
    "text for a number": lambda r: r.update(adapt_seconds="1"),
    "preflight without a loss": lambda r: r["preflight"].pop("loss"),
    "nothing predicted": lambda r: r["preflight"].update(zero_loss=0),
    "window": lambda r: r["frame_indices"].update(conditioning=[0, 10**30]),
    "checks": lambda r: r.update(anchor_losses=[[1, 2, 3]]),
    "stop": lambda r: r.update(stop_step=[1]),
    "distance": lambda r: r.update(distances={"d": None}),
    "columns": lambda r: r.update(columns={"category": {}}),
    "no loss on the true future": lambda r: r.update(future_loss="small"),
    "traced loss": lambda r: r.update(future_losses=[[1]]),
    "traced step": lambda r: r.update(future_losses=[["1", 0.2]]),
    "noise levels": lambda r: r.update(future_loss_per_sigma=0.2),
    "latent frames": lambda r: r.update(future_loss_per_latent=[[0.2]]),
    "samples": lambda r: r.update(psnr_db_per_sample={"0": 20}),
    "spread": lambda r: r.update(sample_variance="wide"),
    "huge": lambda r: r.update(psnr_db=1e200),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_damaged_record_is_left_out(kind, compared, undrawn):
    code, said, _ = compared(edit("run/videos/v001.json", RECORDS[kind]))
    assert code == 0 and "run: v001.json is damaged and left out" in said
    assert "9 of 10 videos are in every run" in said


def no_video(folder):
    (folder / "run" / "videos" / "v009.mp4").unlink()


def other_size(folder):
    path = folder / "run" / "videos" / "v009.mp4"
    write_video(path, torch.zeros(27, 3, 32, 128), 24)


def fewer_frames(folder):
    write_video(folder / "run" / "videos" / "v009.mp4", torch.zeros(9, 3, *SIZE), 24)


def truncated(folder):
    path = folder / "run" / "videos" / "v009.mp4"
    path.write_bytes(path.read_bytes()[:-300])


def unknown_codec(folder):
    path = folder / "run" / "videos" / "v009.mp4"
    path.write_bytes(path.read_bytes().replace(b"avc1", b"xxxx"))


def playlist(folder):
    path = folder / "run" / "videos" / "v009.mp4"
    path.write_text(f"ffconcat version 1.0\nfile {folder}/base/videos/v009.mp4\n")


MP4S = {
    no_video: "no such file", other_size: "frames of another size", truncated: "v009.mp4",
    fewer_frames: "9 frames, not 27", playlist: "no whole video",
    unknown_codec: "nothing here decodes",
}  # fmt: skip


@pytest.mark.parametrize("damage", MP4S)
def test_a_clip_that_cannot_be_shown_says_why(damage, compared, undrawn, tmp_path, monkeypatch):
    monkeypatch.setattr("report.page.chosen_videos", lambda *_: ["v009"])
    code, _, _ = compared(damage, "--predict")
    page = (tmp_path / "report" / "index.html").read_text()
    assert code == 0 and "<p>v009 cannot be shown: " in page and MP4S[damage] in page
    assert 'class="player"' not in page


def test_a_baseline_without_mp4s_predicts_nothing(compared, undrawn):
    def damage(folder):
        (folder / "base" / "videos" / "v003.mp4").write_bytes(b"no video")

    code, said, _ = compared(damage, "--predict")
    assert code == 0 and "the baseline has no whole mp4 of a video" in said


def test_damaged_adapters_draw_nothing(compared, undrawn, tmp_path):
    compared(lambda folder: None)
    assert "one-direction" in (tmp_path / "report" / "index.html").read_text()
    code, _, _ = compared(overwrite("run/videos/v001.safetensors", b"\x08\0\0\0\0\0\0\0{"))
    assert code == 0
    assert "one-direction" not in (tmp_path / "report" / "index.html").read_text()


def test_a_video_without_psnr_has_no_figures_of_it(compared, tmp_path):
    def damage(folder):
        for path in folder.glob("*/videos/*.json"):
            change(path, lambda record: record.update(psnr_db=None, future_loss=None))

    assert compared(damage, "--predict")[0] == 0
    assert compared(damage, "--predict", sweep=True)[0] == 0


def test_the_report_needs_a_folder(compared, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for out, why in ((file, f"{file}: is a file; give a folder"), ("", "must not be empty")):
        code, _, said = compared(lambda folder: None, out=out)
        assert code == 2 and f"--out: {why}" in said and file.read_text() == "mine"
    code, _, said = compared(lambda folder: None, out=file / "report")
    assert code == 1 and str(file) in said and said.count("\n") == 1


def test_what_others_wrote_is_harmless(compared, tmp_path):
    """Captions, reasons, sources and names from files: in the page, the terminal and the CSV."""

    def damage(folder):
        for path in folder.glob("*/videos/*.json"):
            change(path, lambda r: r.update(caption=NASTY, source=f"{NASTY}{r['id']}"))
            change(path, lambda r: r["columns"].update(category=NASTY + r["id"][-1:]))
        skipped = {"id": "v000", "status": "skipped", "reason": NASTY}
        (folder / "run" / "videos" / "v000.json").write_text(json.dumps(skipped))
        for name in ("base", "run"):
            odd = folder / name / "videos" / '"><b>\x1b.json'
            os.rename(folder / name / "videos" / "v001.json", odd)
            change(odd, lambda r, stem=odd.stem: r.update(id=stem, future_loss=0.9))
        change(folder / "sweep.json", lambda c: c["rows"][1].update(template=NASTY))
        change(folder / "sweep.json", lambda c: c["rows"][2].update(template=NASTY))
        change(folder / "sweep.json", lambda c: c["rows"][1]["over"].update({NASTY: NASTY}))
        change(folder / "sweep.json", lambda c: c["rows"][2]["over"].update({NASTY: "{{body}}"}))

    for sweep in (False, True):
        code, said, _ = compared(damage, sweep=sweep)
        page = (tmp_path / "report" / "index.html").read_text()
        assert code == 0 and "\\x1b" in said
        for text in (said, page):
            assert "\x1b" not in text and "\0" not in text and "\ud800" not in text
        assert "<script>alert" not in page and "<b>" not in page and page.count("<script>") == 1


def test_cells_that_begin_a_formula_are_quoted(tmp_path, script):
    names = [make_run(tmp_path / "base", [0, 0], steps=0), make_run(tmp_path / "=1+1", [-1, -2])]
    assert script(compare, *names, "--out", tmp_path / "report") == 0
    text = (tmp_path / "report" / "table.csv").read_text()
    assert "'=1+1" in text and ",=1+1" not in text and ",-1.5," in text


def places(content, path=()):
    """The way to every key and item of a JSON's content."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in pairs:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def damaged_json(path, data):
    """Damages any key of a JSON file, or the file as a whole."""
    content = json.loads(path.read_text())
    *way, key = data.draw(st.sampled_from(sorted(places(content), key=str)))
    parent = content
    for step in way:
        parent = parent[step]
    how = data.draw(st.sampled_from(["delete", "other", "other", "other", "cut", "whole"]))
    if how == "delete":
        del parent[key]
    elif how == "other":
        parent[key] = data.draw(GARBAGE)
    elif how == "whole":
        content = data.draw(GARBAGE)
    text = json.dumps(content)
    path.write_text(text[: len(text) // 2] if how == "cut" else text)


FILES = ["sweep.json"] + [
    f"{run}/{name}"
    for run in ("base", "run")
    for name in ("config.json", "videos/v000.json", "videos/v001.json")
]


@settings(
    max_examples=20,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a smaller example takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_any_damage_gives_a_result_or_one_line(compared, undrawn, data):
    names = data.draw(st.lists(st.sampled_from(FILES), min_size=1, max_size=3, unique=True))

    def damage(folder):
        for name in names:
            damaged_json(folder / name, data)

    code, _, said = compared(damage, "--predict", sweep=data.draw(st.booleans()))
    assert code == 0 or (code == 2 and said.count("\n") == 1 and said.startswith("compare.py: "))
