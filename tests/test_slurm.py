"""The batch files in a real Slurm on this machine: shards, requeues, signals, sweeps."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster, wait_for
from sharded import differences, records
from test_run import ROOT, demo_rows, results
from test_sweep import THREE

from runs import claims

pytestmark = pytest.mark.slow
LONG = "--steps 60 --limit 4".split()  # about three seconds a video
FLAGS = "--steps 2 --sampling-steps 2 --sampling enhance_hf=false".split()
SITE = f"""
CHECKPOINT=nano/checkpoint
VIDEOS=list.csv
OUT=results
PATH={Path(sys.executable).parent}:$PATH
export OMP_NUM_THREADS=1
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    if cluster.why_not:
        pytest.skip(cluster.why_not)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository with a site file and a list of eight clips."""
    folder = tmp_path_factory.mktemp("checkout") / "adasteer"
    left_out = shutil.ignore_patterns(".*", "results", "data", "weights", "work", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=left_out)
    (folder / "sbatch" / "site.sh").write_text(SITE)
    with open(folder / "list.csv", "w", newline="") as file:
        rows = [[f"{path.stem}{copy}", path, text] for copy in "ab" for path, text in demo_rows()]
        csv.writer(file).writerows([["id", "filename", "caption"], *rows])
    return folder


@pytest.fixture(scope="module")
def local(checkout):
    """Results of the same flags in the same copy, without Slurm."""

    def call(*flags, out="local"):
        command = [sys.executable, "adasteer.py", *flags, "--out", out]
        settings = ["--checkpoint", "nano/checkpoint", "--videos", "list.csv"]
        done = subprocess.run(
            [*map(str, command + settings)], cwd=checkout, capture_output=True, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return results(checkout / out)

    return call


def submit(slurm, checkout, *flags, options=(), name="adasteer"):
    return slurm("sbatch", "--parsable", *options, f"sbatch/{name}.sbatch", *flags, cwd=checkout)


def said(checkout, job, name="adasteer"):
    return "\n".join(p.read_text() for p in sorted(checkout.glob(f"{name}_{job}*.out")))


def states(slurm, job):
    """State and exit code of every task of an array."""
    records = slurm("scontrol", "show", "job", job).split("\n\n")
    words = [dict(w.split("=", 1) for w in record.split() if "=" in w) for record in records]
    return {(word["JobState"], word["ExitCode"]) for word in words}


def test_the_readmes_line(slurm, checkout, local):
    (line,) = [x for x in (ROOT / "README.md").read_text().splitlines() if x[:7] == "sbatch "]
    job = slurm(*line.replace("sbatch", "sbatch --parsable", 1).split(), cwd=checkout)
    slurm.wait()
    assert states(slurm, job) == {("COMPLETED", "0:0")}, said(checkout, job)
    assert {f"--shard {i}/8" in said(checkout, job) for i in range(8)} == {True}
    found = results(checkout / "results" / "adasteer_groups_1_steps_5")
    assert len(found) == 8 and found == local("--groups", 1, "--steps", 5, out="local_readme")


def test_any_array_leaves_nothing_out(slurm, checkout, local):
    """Ranges with a first index and a step share the list out, lists of indices through claims."""
    arrays = ("4-9:5", "1,2,6")
    jobs = [
        submit(slurm, checkout, *FLAGS, "--out", f"array_{a}", options=[f"--array={a}"])
        for a in arrays
    ]
    slurm.wait()
    for job, array in zip(jobs, arrays, strict=True):
        assert states(slurm, job) == {("COMPLETED", "0:0")}, said(checkout, job)
        assert results(checkout / f"array_{array}") == local(*FLAGS)


def begun(checkout, out, count):
    return lambda: len(list((checkout / out / "videos").glob("*.json"))) >= count


def held_video(out):
    """Claims the last of four clips, so that no job on `out` ends before the claim is deleted."""
    claim = out / "videos" / f"{demo_rows()[3][0].stem}a.claim"
    claim.parent.mkdir(parents=True)
    assert claims.create(claim)
    return claim


def test_a_requeue_in_the_middle(slurm, checkout, local):
    claim = held_video(checkout / "requeued")
    job = submit(slurm, checkout, *LONG, "--out", "requeued", options=["--array=0-0"])
    assert wait_for(begun(checkout, "requeued", 2), 60), said(checkout, job)
    kept = {p: p.stat().st_mtime_ns for p in (checkout / "requeued" / "videos").glob("*.json")}
    slurm("scontrol", "requeue", f"{job}_0")
    claim.unlink()
    slurm.wait()
    assert slurm.job(f"{job}_0")["Restarts"] == "1" and "stopped by" in said(checkout, job)
    assert results(checkout / "requeued") == local(*LONG, out="local_long")
    assert all(p.stat().st_mtime_ns == then for p, then in kept.items())


def test_a_signal_before_the_limit(slurm, checkout, local):
    """Slurm's own USR1, which comes up to 30 seconds early: the job queues itself again."""
    claim = held_video(checkout / "limited")
    options = ["--array=0-0", "--time=2", "--signal=B:USR1@55"]
    job = submit(slurm, checkout, *FLAGS, "--limit", 4, "--out", "limited", options=options)
    assert wait_for(lambda: slurm.job(f"{job}_0")["Restarts"] == "1", 110), said(checkout, job)
    claim.unlink()
    slurm.wait()
    assert "stopped by SIGUSR1" in said(checkout, job)
    assert states(slurm, job) == {("COMPLETED", "0:0")}
    assert results(checkout / "limited") == local(*FLAGS, "--limit", 4, out="local_limited")


def test_a_limit_too_short_for_a_video_is_no_endless_loop(slurm, checkout):
    endless = ["--steps", 10**6, "--limit", 1, "--out", "endless"]
    job = submit(slurm, checkout, *endless, options=["--array=0-0", "--time=3"])
    for restarts in ("0", "1"):
        assert wait_for(
            lambda n=restarts: (
                slurm.job(f"{job}_0")["Restarts"] == n
                and list((checkout / "endless").rglob("*.claim"))
            ),
            60,
        )
        slurm("scancel", "--batch", "--signal=USR1", job)
    slurm.wait(60)
    assert states(slurm, job) == {("FAILED", "1:0")}, said(checkout, job)
    assert "no video was finished from start to time limit" in said(checkout, job)


def test_a_cancelled_task_does_not_come_back_nor_disturb_the_others(slurm, checkout):
    """One task of an array has the bare number of the job, which names them all."""
    job = submit(slurm, checkout, *LONG, "--out", "cancelled", options=["--array=0-1"])
    assert wait_for(lambda: len(list((checkout / "cancelled").rglob("*.claim"))) == 2, 60)
    slurm("scancel", f"{job}_1")
    slurm.wait(120)
    tasks = slurm("scontrol", "show", "job", job).split("\n\n")
    tasks = [dict(w.split("=", 1) for w in task.split() if "=" in w) for task in tasks]
    found = {task["ArrayTaskId"]: (task["JobState"], task["Restarts"]) for task in tasks}
    assert found == {"0": ("COMPLETED", "0"), "1": ("CANCELLED", "0")}
    assert not list((checkout / "cancelled").rglob("*.claim"))


def test_a_node_whose_processes_share_the_weights_out(slurm, checkout):
    """Requeued in the middle, it goes on; the numbers are those of one process."""
    flags = ["--steps", 2, "--no-generate", "--limit", 3, "--device", "cpu"]
    claim = checkout / "node" / "videos" / f"{demo_rows()[2][0].stem}a.claim"
    claim.parent.mkdir(parents=True)
    assert claims.create(claim)
    options = ["--gres=gpu:2", "--cpus-per-task=8"]
    given = [*flags, "--out", "node"]
    job = submit(slurm, checkout, *given, options=options, name="full_tta_node")
    assert wait_for(begun(checkout, "node", 1), 200), said(checkout, job, "full_tta_node")
    slurm("scontrol", "requeue", job)
    claim.unlink()
    slurm.wait(300)
    words = said(checkout, job, "full_tta_node")
    assert slurm.job(job)["Restarts"] == "1" and "stopped by SIGTERM" in words, words
    assert states(slurm, job) == {("COMPLETED", "0:0")}, words
    assert "torchrun --standalone --nproc-per-node 2 full_tta.py" in words
    command = [sys.executable, "full_tta.py", *flags, "--out", "alone"]
    command += ["--checkpoint", "nano/checkpoint", "--videos", "list.csv"]
    subprocess.run([*map(str, command)], cwd=checkout, capture_output=True, check=True)
    assert not differences(records(checkout / "alone"), records(checkout / "node"))


def test_every_script_has_its_batch_file(slurm, checkout):
    names = ["full_tta", "lora_tta", "delta_c", "last_layer_tta", "norm_tta", "film_tta"]
    options = ["--array=0-0"]
    jobs = [submit(slurm, checkout, *FLAGS, "--limit", 1, options=options, name=n) for n in names]
    slurm.wait()
    for job, name in zip(jobs, names, strict=True):
        assert states(slurm, job) == {("COMPLETED", "0:0")}, said(checkout, job, name)
        folder = f"{name}_steps_2_sampling-steps_2_sampling_enhance_hf-false_limit_1"
        assert len(results(checkout / "results" / folder)) == 1


def test_without_settings_the_job_says_what_to_write(slurm, checkout):
    site = checkout / "sbatch" / "site.sh"
    site.write_text("CHECKPOINT=nano/checkpoint\n")
    job = submit(slurm, checkout, options=["--array=0-0"])
    slurm.wait(60)
    site.write_text(SITE)
    assert states(slurm, job) == {("FAILED", "2:0")}
    assert "no --videos: pass it after the file name, or write VIDEOS=" in said(checkout, job)


def test_a_sweep_is_the_same_as_at_home(slurm, checkout):
    """Arrays for the rows, compare.py after them; what is complete is not submitted again."""
    (checkout / "three.yaml").write_text(THREE)
    environment = slurm.environment | {"OMP_NUM_THREADS": "1"}

    def sweep(*flags):
        command = [sys.executable, "sweep.py", "three.yaml", "--limit", "3", *flags]
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    flags = ["--slurm", "--array", "2", "--out", "far"]
    first = sweep(*flags)
    jobs = json.loads((checkout / "far" / "jobs.json").read_text())
    compared = jobs.pop("compare.py")
    assert len(jobs) == 4 and f"--dependency=afterany:{':'.join(jobs.values())}" in first
    assert sweep(*flags).count("in the queue as job") >= 1
    assert json.loads((checkout / "far" / "jobs.json").read_text())["compare.py"] != compared
    assert compared not in slurm("squeue", "--noheader", "--format=%F").split()
    slurm.wait()
    assert "groups4" in (checkout / "far" / "report" / "table.md").read_text()
    assert sweep(*flags).count(": complete\n") == 4
    assert sweep("--status", "--out", "far").count("3     0        0        0") == 4
    sweep("--local", "--out", "home")
    for row in jobs:
        assert results(checkout / "far" / row) == results(checkout / "home" / row)
    slurm.wait()
    assert gains(checkout / "far") == gains(checkout / "home") != []


def gains(out):
    """Method, mean, gain and p of every metric."""
    with open(out / "report" / "table.csv", newline="") as file:
        return [
            [row[key] for key in ("metric", "method", "mean", "gain", "p")]
            for row in csv.DictReader(file)
        ]
