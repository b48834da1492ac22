"""Several processes, and everything that can go wrong in a week: signals, kills, full disks, bad numbers."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import config
import train
from config import Problem
from data import load_meta
from model import load_checkpoint
from runtime import flops_per_token, memory_estimate, prefetch
from train_config import PRESETS, parse_args
from validate import ce_by_snr

ROOT = Path(__file__).resolve().parent.parent


def flags_of(cfg, **changes):
    """The command line of a configuration (the demo's defaults left out)."""
    changed = replace(cfg, **changes)
    default, flags = parse_args(["--preset", "demo"]), ["--preset", "demo"]
    for name, value in changed.__dict__.items():
        if value != getattr(default, name):
            flags += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return flags


def launch(cfg, processes=1, wait=True, **changes):
    """Run train.py as a user does; -> the finished process, or the running one."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    command = (torchrun if processes > 1 else [sys.executable]) + ["train.py", *flags_of(cfg, **changes)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if not wait:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def losses(cfg):
    return [(row["step"], row["loss"]) for row in map(json.loads, open(f"{cfg.out_dir}/log.jsonl")) if "loss" in row]


def load(path):
    return torch.load(path, weights_only=True)


# ---- several processes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["dsl", "mdlm"])
def test_two_processes_of_two_passes_are_one_process_of_one_pass(cfg, objective):
    """AdamW's first moments, losses and sharded evaluation of 20 steps, to float32's rounding, as sums have another order: 5e-8, 2e-7 and
    1e-8 apart as measured, moments being up to 0.2. No clip, which would hide a factor; the first step moves only the head, hence 20."""
    cfg = replace(cfg, objective=objective, dtype="float32", batch_size=8, max_steps=20, clip=1e9, save_every=1, keep=20, eval_windows=50)
    one, two = replace(cfg, out_dir=cfg.out_dir + "/one"), replace(cfg, micro_batch=2, out_dir=cfg.out_dir + "/two")
    train.main(one)
    done = launch(two, processes=2)
    assert done.returncode == 0, done.stderr
    for step in range(1, 21):
        a, b = (load(f"{c.out_dir}/ckpt-{step:08d}.pt")["optimizer"]["state"] for c in (one, two))
        assert all((state["exp_avg"] - b[name]["exp_avg"]).abs().max() < 1e-6 for name, state in a.items()), step
    assert [step for step, _ in losses(two)] == list(range(1, 21))
    assert all(abs(a - b) < 1e-5 for (_, a), (_, b) in zip(losses(one), losses(two)))
    ends = [load(f"{c.out_dir}/ckpt.pt")["validation"] for c in (one, two)]
    for bound in ("roar", "diffusion"):
        assert ends[0][bound] == pytest.approx(ends[1][bound], abs=1e-5)
    assert "2 x cpu" in done.stdout and done.stdout.count("parameters") == 1  # only the first process speaks


def test_passes_without_endpoint_sequences_leave_the_bound_to_the_others(cfg):
    train.main(replace(cfg, micro_batch=1))
    assert all(0 < row["bits_per_byte"] < 20 for row in map(json.loads, open(f"{cfg.out_dir}/log.jsonl")) if "loss" in row)


def test_a_process_says_what_went_wrong_and_which_it_is(cfg, monkeypatch):
    done = launch(cfg, processes=2, dataset="elsewhere")
    assert done.returncode != 0 and "error: no dataset" in done.stderr  # torchrun may stop the second to fail before it speaks
    for rank, said in (("0", "error: no dataset"), ("1", "[process 1] error: no dataset")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as stop:
            config.run(lambda: load_meta("elsewhere"))
        assert stop.value.code.startswith(said)


def test_a_batch_that_does_not_divide_is_said(cfg):
    with pytest.raises(Problem, match="no multiple of 1 processes times --micro_batch 3"):
        train.main(replace(cfg, micro_batch=3))
    assert not Path(cfg.out_dir).exists()


def test_passes_share_a_step_out_without_gap_or_overlap(cfg):
    cfg = replace(cfg, batch_size=24, micro_batch=4)
    for world in (1, 2, 3):
        samples = [s for rank in range(world) for part in train.passes_of(cfg, 5, rank, world) for s in part]
        assert samples == list(range(120, 144))


def test_prefetch_keeps_order_and_passes_errors_on():
    assert list(prefetch(lambda i: i * i, range(5))) == [0, 1, 4, 9, 16] and list(prefetch(str, [])) == []
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda i: 1 / i, [2, 1, 0]))


def test_numbers_below_1e_38_are_zero_in_every_thread():
    """They slow a CPU down; in a process of its own, as threads that have started already keep what they had."""
    def count(before):
        code = f"import torch, runtime; {before}; print((torch.full((2**22,), 1e-30) * 1e-10).count_nonzero().item())"
        return int(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout)

    assert count("pass") == 2**22 and count("runtime.join_ranks('cpu')") == 0


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_and_plain_agree(cfg):
    """To 1e-3 over three steps of float32: fused kernels add in another order. Resumed, the compiled run is the same to the bit."""
    cfg = replace(cfg, max_steps=3, dtype="float32", warmup=0, lr_final=1.0)
    runs = [replace(cfg, compile=mode, out_dir=f"{cfg.out_dir}/{mode}") for mode in ("off", "on")]
    for run in runs:
        train.main(run)
    assert all(abs(a - b) < 1e-3 for (_, a), (_, b) in zip(*map(losses, runs)))
    plain, whole = (load(f"{run.out_dir}/ckpt.pt")["model"] for run in runs)
    assert set(plain) == set(whole)  # no _orig_mod
    for steps in (2, 3):
        train.main(replace(runs[1], max_steps=steps, resume=steps == 3, out_dir=f"{cfg.out_dir}/again"))
    assert all(torch.equal(p, whole[name]) for name, p in load(f"{cfg.out_dir}/again/ckpt.pt")["model"].items())


# ---- nothing is lost ---------------------------------------------------------------------------------------------------------


def test_kill_9_at_20_random_moments_changes_nothing(cfg, monkeypatch):
    """Each kill leaves a checkpoint that loads (or none yet); after the last the weights are those of an uninterrupted run."""
    cfg = replace(cfg, max_steps=600, save_every=3, log_every=1, dtype="float32", keep=2)
    whole, torn = replace(cfg, out_dir=cfg.out_dir + "/whole"), replace(cfg, out_dir=cfg.out_dir + "/torn")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(["test_scale", "torch._dynamo"])  # imported once, so that children start in milliseconds
    path, log, rng, steps = Path(torn.out_dir) / "ckpt.pt", Path(torn.out_dir) / "log.jsonl", random.Random(0), []

    def begin(run):
        child = fork.Process(target=quiet_main, args=(run,))
        child.start()
        return child

    first = begin(whole)
    first.join()
    for _ in range(20):
        size = log.stat().st_size if log.exists() else 0
        child = begin(replace(torn, resume=path.exists()))
        while child.is_alive() and not (log.exists() and log.stat().st_size > size + 2000):  # until it is well on its way
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        child.kill()
        child.join()
        if path.exists():
            steps.append(load_checkpoint(path)[1]["step"])
    assert len(set(steps)) >= 8 and steps == sorted(steps) and steps[-1] < 600  # the kills did fall into the run
    last = begin(replace(torn, resume=True))
    last.join()
    assert first.exitcode == last.exitcode == 0
    a, b = load(f"{whole.out_dir}/ckpt.pt"), load(path)
    assert all(torch.equal(a[part][name], b[part][name]) for part in ("model", "ema") for name in a["model"])
    assert losses(torn)[-1] == losses(whole)[-1]


def quiet_main(cfg):
    torch.set_num_threads(1)
    with open(os.devnull, "w") as sys.stderr:
        train.main(cfg)


@pytest.mark.parametrize("processes, number", [(1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGTERM)])
def test_a_signal_finishes_the_step_and_saves(cfg, processes, number):
    cfg = replace(cfg, max_steps=100_000, save_every=50_000, compile="off")  # which takes a minute on old cores
    run, log = launch(cfg, processes, wait=False), Path(cfg.out_dir) / "log.jsonl"
    deadline = time.time() + 60
    while not (log.exists() and '"loss"' in log.read_text()) and time.time() < deadline:
        time.sleep(0.05)
    run.send_signal(number)
    out, err = run.communicate(timeout=60)
    step = load(f"{cfg.out_dir}/ckpt.pt")["step"]
    assert 0 < step < 50_000 and step == losses(cfg)[-1][0]
    if processes == 1:  # torchrun has an exit status of its own
        assert run.returncode == 0, err
        assert f"stopped by {number.name}, go on with: python train.py" in out and out.rstrip().endswith("--resume")


@pytest.mark.parametrize("kilobytes", [100, 150, 200])
def test_a_full_disk_is_one_sentence_and_keeps_the_old_checkpoint(cfg, kilobytes):
    """The disk is full in the middle of a record or between two: a size limit of the process stands in for it."""
    train.main(cfg)
    path = Path(cfg.out_dir) / "ckpt.pt"
    before, names = path.read_bytes(), {p.name for p in path.parent.iterdir()}
    command = [sys.executable, "train.py", *flags_of(cfg, max_steps=20, resume=True)]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1000,) * 2)  # noqa: E731
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit)
    assert len(before) > kilobytes * 1000
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr and "too large" in done.stderr
    assert path.read_bytes() == before and {p.name for p in path.parent.iterdir()} == names


def test_a_folder_that_cannot_be_written_is_one_sentence(cfg):
    done = launch(cfg, out_dir="/proc/nowhere")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "/proc/nowhere" in done.stderr.splitlines()[-1]


def test_steps_that_are_not_finite_are_skipped_and_counted(cfg, monkeypatch):
    real, calls = train.LOSSES["dsl"], []

    def explode(*args):
        calls.append(0)
        loss, bound = real(*args)
        return (loss * float("inf") if len(calls) in (4, 7) else loss), bound

    monkeypatch.setitem(train.LOSSES, "dsl", explode)
    train.main(replace(cfg, skip_nonfinite=2))
    state = load(f"{cfg.out_dir}/ckpt.pt")
    assert state["step"] == 12 and all(p.isfinite().all() for p in state["model"].values())
    assert int(state["optimizer"]["state"][0]["step"]) == 10
    assert [row["skipped"] for row in map(json.loads, open(f"{cfg.out_dir}/log.jsonl")) if "skipped" in row] == [1, 2]
    assert "NaN" not in open(f"{cfg.out_dir}/log.jsonl").read()  # a step that was skipped has no loss to show
    calls.clear()
    with pytest.raises(Problem, match="not finite at step 7, samples 24-27 of seed 0: start over .*--init_from .*ckpt.pt"):
        train.main(replace(cfg, skip_nonfinite=1, out_dir=cfg.out_dir + "/again"))


def test_the_last_k_checkpoints_are_kept(cfg):
    best = Path(cfg.out_dir) / "ckpt-best.pt"
    best.parent.mkdir(parents=True)
    best.write_text("somebody's own")
    train.main(replace(cfg, save_every=2, keep=3))
    assert best.read_text() == "somebody's own"
    best.unlink()
    names = sorted(p.name for p in Path(cfg.out_dir).glob("*.pt"))
    assert names == ["ckpt-00000008.pt", "ckpt-00000010.pt", "ckpt-00000012.pt", "ckpt.pt"]
    assert load(f"{cfg.out_dir}/ckpt-00000008.pt")["step"] == 8
    os.unlink(f"{cfg.out_dir}/ckpt.pt")  # that run is given up, another starts in its folder
    train.main(replace(cfg, save_every=2, keep=3, max_steps=4))
    assert [p.name for p in sorted(Path(cfg.out_dir).glob("ckpt-*.pt"))] == ["ckpt-00000002.pt", "ckpt-00000004.pt", "ckpt-00000012.pt"]


# ---- stages and what is seen -------------------------------------------------------------------------------------------------


def test_stages_mdlm_then_dsl(cfg):
    first = replace(cfg, objective="mdlm", out_dir=cfg.out_dir + "/mdlm")
    train.main(first)
    second = replace(cfg, init_from=f"{first.out_dir}/ckpt.pt", out_dir=cfg.out_dir + "/dsl", lr=1e-9, max_steps=1)
    train.main(second)
    a, b = load(f"{first.out_dir}/ckpt.pt"), load(f"{second.out_dir}/ckpt.pt")
    assert all((a["ema"][name] - b["model"][name]).abs().max() < 1e-6 for name in a["ema"])
    assert a["validation"]["roar"] == pytest.approx(b["validation"]["roar"], abs=1e-4)
    with pytest.raises(Problem, match="n_layer 1, this run 2"):
        train.main(replace(second, n_layer=2, out_dir=cfg.out_dir + "/x"))
    with pytest.raises(Problem, match="causal False, this run True"):
        train.main(replace(second, objective="ar", out_dir=cfg.out_dir + "/x"))
    assert not Path(cfg.out_dir + "/x").exists()


def test_loss_by_snr_sorts_tokens_by_their_snr():
    snr = torch.tensor([[0.0, 0.0, torch.inf, torch.inf, 1.0, 2.0, 3.0, 999.0, 998.0]])
    ce = torch.tensor([[5.0, 7.0, 0.0, 0.1, 4.0, 3.0, 2.0, 0.5, 0.7]])
    read = {name: mean for name, (mean, _) in ce_by_snr(ce, snr, t_c=10.0).items()}
    assert read == pytest.approx({"masked": 6.0, "clean": 0.05, "0-0.25": 3.5, "4-inf": 0.6})  # a bin of one token has no error: left out


def test_evaluation_reports_the_loss_by_snr_falling(cfg):
    train.main(replace(cfg, max_steps=200, lr=1e-2, save_every=1000, eval_windows=200))
    rows = load(f"{cfg.out_dir}/ckpt.pt")["validation"]["by_snr"]
    assert {"masked", "clean"} < rows.keys() and rows["masked"][0] > rows["clean"][0] + 0.1
    means = [rows[name][0] for name in ("0-0.25", "0.5-1", "2-4")]
    assert means == sorted(means, reverse=True) and means[0] > means[-1] + 0.1


def test_eval_only_and_dry_run_train_nothing(cfg, capsys):
    train.main(replace(cfg, dry_run=True))
    assert "parameters" in capsys.readouterr().out and not Path(cfg.out_dir).exists()
    train.main(cfg)
    before, logged = open(f"{cfg.out_dir}/ckpt.pt", "rb").read(), open(f"{cfg.out_dir}/log.jsonl").read()
    validation = load(f"{cfg.out_dir}/ckpt.pt")["validation"]["roar"]
    capsys.readouterr()
    train.main(replace(cfg, eval_only=True))
    assert f"roar {validation[0]:.3f}" in capsys.readouterr().out
    assert open(f"{cfg.out_dir}/log.jsonl").read().startswith(logged)
    assert open(f"{cfg.out_dir}/ckpt.pt", "rb").read() == before
    train.main(replace(cfg, eval_only=True, init_from="elsewhere.pt"))
    assert f"parameters from {cfg.out_dir}/ckpt.pt" in capsys.readouterr().out  # which are what was evaluated
    with pytest.raises(Problem, match="no checkpoint at .*mistyped/ckpt.pt"):
        train.main(replace(cfg, eval_only=True, out_dir=f"{cfg.out_dir}/mistyped"))


def test_samples_are_printed_on_the_way(cfg, capsys):
    train.main(replace(cfg, sample_every=6))
    assert "--- step 6 ---" in capsys.readouterr().out


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_fit_together(preset, cfg, capsys):
    cfg = parse_args(["--preset", preset, "--data_dir", cfg.data_dir, "--dry_run"])
    train.main(cfg)
    assert cfg.batch_size % (8 * (cfg.micro_batch or 2)) == 0 and "tokens per step" in capsys.readouterr().out


def test_flops_and_memory_of_the_owt_shape_are_the_textbooks():
    """6 N per token and the attention's 12 n_layer L C on top, N being the matrices that a token passes."""
    config = train.shape(parse_args(["--preset", "owt"]), 50_257)
    blocks, head = 12 * 12 * 768**2, 768 * 50_257
    assert flops_per_token(config) == 6 * (blocks + head) + 12 * 12 * 1024 * 768
    assert flops_per_token(config, endpoint=0.5) - flops_per_token(config) == 3 * 50_257 * (64 + 768)
    assert memory_estimate(config, 32) == pytest.approx(11.9, rel=0.2)  # counted op by op: 8.4 + 2.5, and 1.0 for a piece of logits


def test_the_gpu_smoke_run_works_at_a_small_size(tmp_path):
    import smoke_gpu

    flags = "--n_layer 1 --n_head 2 --d_model 32 --d_embed 8 --length 32 --batch_size 16 --micro_batch 8 --dropout 0"
    flags += " --max_steps 30 --log_every 10 --warmup 2 --lr 1e-2 --eval_windows 20 --device cpu --compile off"
    smoke_gpu.main(flags.split(), tmp_path, tokens=20_000)
    rows = [json.loads(line) for line in open(tmp_path / "gpu_owt.jsonl")]
    assert rows[0]["config"]["objective"] == "dsl" and rows[0]["config"]["frame_eos"]
    assert (tmp_path / "gpu_owt_mdlm.jsonl").exists() and rows[3]["loss"] < rows[1]["loss"]


def test_wandb_gets_what_the_log_gets(cfg, monkeypatch):
    """Against a stand-in: the real service is not reached here."""
    seen = []
    service = types.SimpleNamespace(init=lambda **about: types.SimpleNamespace(log=lambda fields, step: seen.append((step, fields))))
    monkeypatch.setitem(sys.modules, "wandb", service)
    train.main(replace(cfg, wandb="project"))
    logged = [(row.pop("step"), row) for row in map(json.loads, open(f"{cfg.out_dir}/log.jsonl"))]
    assert json.loads(json.dumps(seen)) == json.loads(json.dumps(logged))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(Problem, match="pip install wandb"):
        train.main(replace(cfg, wandb="project", out_dir=cfg.out_dir + "/x"))
