"""Training: the loss teaches a small network the exact posterior; the loop resumes to the bit, and stops in time."""

import contextlib
import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import ExactDenoiser

import train
from config import Problem, run
from data import load_meta, load_tokens
from dsl_loss import SNRMix, add_noise, critical_snr, draw_corruption, dsl_loss, is_endpoint
from model import DSL, ModelConfig, load_checkpoint
from runtime import pick_device


def test_a_small_network_learns_the_exact_posterior_at_every_snr():
    """One set of weights, from all masked to nearly clean, and mixtures of both: KL to the exact posterior below 0.02 nats per token.

    The table is made symmetric: rotary positions are relative, so two masked tokens look alike to the network. A network that ignores
    the evidence is more than 0.1 nats away and fails.
    """
    torch.manual_seed(0)
    toy, mix = ExactDenoiser(V=3, L=2, seed=5), SNRMix(endpoint=0.5, common=0.3, median=0.9, sigma=1.2)
    toy.log_p = (toy.p + toy.p.view(3, 3).T.flatten()).div(2).log()
    model = DSL(ModelConfig(vocab_size=3, length=2, n_layer=2, n_head=2, d_model=32, d_embed=4))
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3, (0.9, 0.98), weight_decay=0)
    steps, t_c = 800, critical_snr(3)
    x0 = toy.draw(steps * 256).view(steps, 256, 2)
    order = sorted(range(256), key=lambda s: not is_endpoint(s, 0.5))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / steps)
        snr, eps = draw_corruption(0, [256 * step + s for s in order], 2, 4, t_c, mix)
        dsl_loss(model, x0[step], snr, eps)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    toy.E = model.eval().E.detach().double()  # the channel of the network's own embeddings
    x0 = toy.draw(4000, seed=9)
    gap = {}
    for units in (0.0, 0.1, 0.3, 1.0, 3.0):
        snr = torch.full((4000, 2), units * t_c).double()
        z = add_noise(toy.E[x0], snr, torch.randn(4000, 2, 4, generator=torch.Generator().manual_seed(1)).double())
        gap[units] = kl(toy, model, toy.embed_noisy(z), model.embed_noisy(z.float()))
    for shown in ([3, 3], [0, 3], [3, 1], [2, 0]):
        x = torch.tensor([shown])
        gap[str(shown)] = kl(toy, model, toy.embed_ids(x), model.embed_ids(x))
    assert max(gap.values()) < 0.02, gap
    ignorant = kl(toy, lambda h: toy(toy.embed_ids(torch.full((4000, 2), 3))), toy.embed_noisy(z), None)
    assert ignorant > 0.1


@torch.no_grad()
def kl(toy, model, exact_h, h):
    """Mean KL of the exact posterior to the model's, nats per token."""
    exact, ours = toy(exact_h), model(h).double().log_softmax(-1)
    return (exact.exp() * (exact - ours)).sum(-1).mean().item()


# ---- runs of the real loop on a small dataset --------------------------------------------------------------------------------


def losses(cfg):
    rows = map(json.loads, open(f"{cfg.out_dir}/log.jsonl"))
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def ckpt(cfg):
    return torch.load(f"{cfg.out_dir}/ckpt.pt", weights_only=True)


def interrupt(monkeypatch, at):
    """Pull the plug when step `at` asks for its batch."""
    real = train.batch

    def batch(cfg, samples, *rest):
        if samples[0] >= at * cfg.batch_size:
            raise KeyboardInterrupt
        return real(cfg, samples, *rest)

    monkeypatch.setattr(train, "batch", batch)


@pytest.mark.parametrize("objective, dtype, dropout", [("dsl", "float32", 0.0), ("dsl", "bfloat16", 0.0), ("mdlm", "float32", 0.3),
                                                       ("ar", "float32", 0.0)])
def test_stop_and_resume_is_the_uninterrupted_run_to_the_bit(cfg, objective, dtype, dropout, monkeypatch):
    whole = replace(cfg, objective=objective, dtype=dtype, dropout=dropout, out_dir=cfg.out_dir + "/whole")
    parts = replace(whole, out_dir=cfg.out_dir + "/parts")
    train.main(whole)
    with monkeypatch.context() as patch:
        interrupt(patch, at=8)  # the last checkpoint is of step 5
        with pytest.raises(KeyboardInterrupt):
            train.main(parts)
    assert ckpt(parts)["step"] == 5
    train.main(replace(parts, resume=True))
    assert losses(parts) == losses(whole) and len(losses(whole)) == 12
    said = [row for row in map(json.loads, open(f"{cfg.out_dir}/parts/log.jsonl")) if "config" in row]
    assert [row["precision"] for row in said] == [dtype] * 2
    a, b = ckpt(whole), ckpt(parts)
    assert all(torch.equal(a[part][name], b[part][name]) for part in ("model", "ema") for name in a["model"])
    for name, state in a["optimizer"]["state"].items():
        assert all(torch.equal(state[k], b["optimizer"]["state"][name][k]) for k in state)
    assert a["validation"] == b["validation"]


def test_loss_falls_and_the_average_follows(cfg):
    cfg = replace(cfg, max_steps=150, lr=1e-2, save_every=1000)
    train.main(cfg)
    first, last = np.mean([x for _, x in losses(cfg)[:10]]), np.mean([x for _, x in losses(cfg)[-10:]])
    assert last < 0.7 * first
    state = ckpt(cfg)
    assert not torch.equal(state["ema"]["out.weight"], state["model"]["out.weight"])
    assert set(state["validation"]) == {"roar", "diffusion", "by_snr"} and state["config"]["lr"] == 1e-2
    model, _ = load_checkpoint(f"{cfg.out_dir}/ckpt.pt")
    assert torch.equal(model.out.weight, state["ema"]["out.weight"])


def test_frozen_parts_stay_as_they_start_and_the_rest_moves(cfg):
    train.main(replace(cfg, frozen=("E", "beta"), beta=0.7))
    train.main(replace(cfg, out_dir=cfg.out_dir + "/free", beta=0.7))
    torch.manual_seed(cfg.seed)
    start = DSL(train.shape(replace(cfg, beta=0.7), 257)).view
    held, free = (ckpt(of)["model"] for of in (cfg, replace(cfg, out_dir=cfg.out_dir + "/free")))
    assert torch.equal(held["view.raw_E"], start.raw_E) and held["view.beta"] == start.beta
    assert not torch.equal(held["view.value"], start.value)
    assert not torch.equal(free["view.raw_E"], start.raw_E) and free["view.beta"] != start.beta


def test_evidence_starts_anew_where_dsl_has_not_trained_it(cfg):
    train.main(replace(cfg, objective="mdlm"))
    start = f"{cfg.out_dir}/ckpt.pt"
    other = replace(cfg, init_from=start, out_dir=cfg.out_dir + "/dsl", d_embed=5, beta=0.5, max_steps=1, lr=1e-9)
    train.main(other)
    before, after = load_checkpoint(start)[0], load_checkpoint(f"{other.out_dir}/ckpt.pt")[0]
    assert after.E.shape == (257, 5) and after.view.beta.item() == pytest.approx(0.5)
    assert torch.allclose(before.view.value, after.view.value, atol=1e-6) and torch.allclose(before.out.weight, after.out.weight, atol=1e-6)
    with pytest.raises(Problem, match="has d_embed 5, this run 6"):
        train.main(replace(cfg, init_from=f"{other.out_dir}/ckpt.pt", out_dir=cfg.out_dir + "/more", d_embed=6))


def test_resume_of_a_finished_run_trains_nothing(cfg, capsys):
    train.main(cfg)
    before = open(f"{cfg.out_dir}/ckpt.pt", "rb").read()
    train.main(replace(cfg, resume=True))
    assert "nothing to train" in capsys.readouterr().out
    assert open(f"{cfg.out_dir}/ckpt.pt", "rb").read() == before


def test_resume_of_a_run_stopped_in_its_last_evaluation_evaluates(cfg, monkeypatch):
    def stops(*args):
        raise KeyboardInterrupt

    train.main(replace(cfg, out_dir=cfg.out_dir + "/whole"))
    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate", stops)
        with pytest.raises(KeyboardInterrupt):
            train.main(cfg)
    assert ckpt(cfg)["step"] == cfg.max_steps and not ckpt(cfg)["validation"]
    train.main(replace(cfg, resume=True))
    assert ckpt(cfg)["validation"] == ckpt(replace(cfg, out_dir=cfg.out_dir + "/whole"))["validation"] != {}


def test_scores_in_a_checkpoint_are_of_its_own_step(cfg):
    train.main(replace(cfg, eval_every=5, save_every=5, keep=3))
    at = {step: torch.load(f"{cfg.out_dir}/ckpt-{step:08d}.pt", weights_only=True)["validation"] for step in (5, 10, 12)}
    logged = {row["step"]: row["validation"] for row in map(json.loads, open(f"{cfg.out_dir}/log.jsonl")) if "validation" in row}
    assert {step: scores["roar"] for step, scores in at.items()} == {step: tuple(scores["roar"]) for step, scores in logged.items()}
    other = replace(cfg, eval_every=4, save_every=5, keep=3, out_dir=cfg.out_dir + "/other")
    train.main(other)
    assert not torch.load(f"{other.out_dir}/ckpt-{10:08d}.pt", weights_only=True)["validation"]  # last evaluated at step 8


def test_a_validation_split_that_is_too_short_stops_before_the_training(cfg):
    with pytest.raises(Problem, match="has 16 windows of 250 tokens and 17 are needed"):
        train.main(replace(cfg, length=250))
    assert not Path(cfg.out_dir).exists()


def test_a_run_does_not_go_on_with_another_text(cfg):
    path = Path(cfg.data_dir) / "toy" / "meta.json"
    meta = json.loads(path.read_text())
    for text, message in (("one", None), ("one", None), ("another", "was trained on another text than toy holds now")):
        path.write_text(json.dumps(meta | {"train": meta["train"] | {"sha256": text}}))
        with pytest.raises(Problem, match=message) if message else contextlib.nullcontext():
            train.main(replace(cfg, resume=Path(cfg.out_dir).exists()))


def test_an_existing_checkpoint_is_not_overwritten(cfg):
    train.main(cfg)
    before = open(f"{cfg.out_dir}/ckpt.pt", "rb").read()
    for changed, message in ((cfg, "--resume"),
                             (replace(cfg, resume=True, lr=1.0), "--lr 0.004, not 1.0"),
                             (replace(cfg, resume=True, n_layer=3), "--n_layer 1, not 3")):
        with pytest.raises(Problem, match=message):
            train.main(changed)
    meta = f"{cfg.data_dir}/toy/meta.json"
    text = open(meta).read()
    open(meta, "w").write(text.replace('"bytes"', '"text8"', 1).replace("257", "27"))
    for split in ("train", "val"):
        np.memmap(f"{cfg.data_dir}/toy/{split}.bin", np.uint16)[:] %= 27
    with pytest.raises(Problem, match=r"trained on bytes tokens \(V = 257\), toy holds text8"):
        train.main(replace(cfg, resume=True))
    assert open(f"{cfg.out_dir}/ckpt.pt", "rb").read() == before


def test_nothing_to_resume_is_said(cfg):
    with pytest.raises(Problem, match="no checkpoint at"):
        train.main(replace(cfg, resume=True))


def test_an_evaluation_that_was_stopped_is_made_up_for(cfg, monkeypatch):
    """After step 5, where ckpt.pt stands already."""
    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(train, "evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            train.main(replace(cfg, eval_every=5))
    assert ckpt(cfg)["step"] == 5 and not ckpt(cfg)["validation"]
    train.main(replace(cfg, eval_every=5, resume=True))
    rows = map(json.loads, open(f"{cfg.out_dir}/log.jsonl"))
    assert [row["step"] for row in rows if "validation" in row] == [5, 10, 12] and len(losses(cfg)) == 12
    torch.save(ckpt(cfg) | {"validation": {}}, f"{cfg.out_dir}/ckpt.pt")  # stopped by a signal, and called done by a lower --max_steps
    train.main(replace(cfg, eval_every=5, resume=True, max_steps=11))
    assert ckpt(cfg)["validation"] and ckpt(cfg)["step"] == 12


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(cfg, monkeypatch):
    real = train.LOSSES["dsl"]
    calls = []

    def explode(*args):
        calls.append(0)
        loss, bound = real(*args)
        return (loss * float("nan") if len(calls) == 8 else loss), bound

    monkeypatch.setitem(train.LOSSES, "dsl", explode)
    with pytest.raises(Problem, match="loss nan with a gradient that is not finite at step 8, samples 28-31"):
        train.main(cfg)
    assert ckpt(cfg)["step"] == 5
    assert all(p.isfinite().all() for p in ckpt(cfg)["model"].values())
    calls[:] = [0] * 6
    with pytest.raises(Problem, match="at step 2, .*: start over in another --out_dir with a lower --lr, or add --skip_nonfinite 10$"):
        train.main(replace(cfg, out_dir=cfg.out_dir + "/again"))  # where there is no checkpoint to go on from


@pytest.mark.parametrize("objective", ["dsl", "mdlm", "ar"])
def test_a_step_never_waits_for_the_device(cfg, objective, monkeypatch):
    """Whatever brings a number from the device to the host makes it wait; between two lines of the log nothing may."""
    inside, waits, step = [], [], train.update

    def update(*args):
        inside.append(threading.current_thread())  # the next batch is made in another
        seen = step(*args)
        inside.clear()
        return seen

    def noted(name, real):
        def told(self, *args):
            if threading.current_thread() in inside:
                waits.append(name)
            return real(self, *args)
        return told

    for name in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, noted(name, getattr(torch.Tensor, name)))
    monkeypatch.setattr(train, "update", update)
    train.main(replace(cfg, objective=objective))
    assert not waits and len(losses(cfg)) == 12


@pytest.mark.parametrize("objective", ["dsl", "mdlm", "ar"])
def test_a_batch_is_copied_without_waiting_for_the_device(cfg, objective, monkeypatch):
    """On a GPU a copy that blocks would wait for all that is queued there; it is made in a thread, but the next step needs it."""
    seen, real = [], torch.Tensor.to

    def to(self, *args, **options):
        seen.append((args, options))
        return real(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    train.batch(replace(cfg, objective=objective), range(8), load_tokens(cfg.dataset, "train", cfg.data_dir),
                load_meta(cfg.dataset, cfg.data_dir), torch.device("cpu"))
    copies = [options for args, options in seen if not isinstance(args[0], torch.dtype)]
    assert copies and all(options.get("non_blocking") for options in copies)


def test_more_processes_than_gpus_and_errors_of_our_own_are_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(SystemExit, match="^error: torchrun started more processes than the 4 GPU"):
        run(lambda: pick_device(""))

    def fail():
        raise OSError("a worker died")

    with pytest.raises(SystemExit, match="^error: a worker died$"):
        run(fail)


def test_missing_data_says_what_to_run(cfg):
    with pytest.raises(Problem, match="prepare_owt.py"):
        train.main(replace(cfg, dataset="elsewhere"))
    with pytest.raises(Problem, match="shorter --length"):
        train.main(replace(cfg, length=5000))
    meta = Path(cfg.data_dir) / "toy" / "meta.json"
    meta.write_text(json.dumps((text := json.loads(meta.read_text())) | {"train": text["train"] | {"tokens": 5}}))
    np.zeros(5, np.uint16).tofile(meta.with_name("train.bin"))
    with pytest.raises(Problem, match="training split has 0 windows"):
        train.main(cfg)
    assert not Path(cfg.out_dir).exists()  # nothing was written


def test_learning_rate_warms_up_and_falls_to_its_share(cfg):
    cfg = replace(cfg, lr=1.0, warmup=10, max_steps=110, lr_final=0.1)
    assert train.learning_rate(cfg, 0) == pytest.approx(0.1) and train.learning_rate(cfg, 9) == 1.0
    assert train.learning_rate(cfg, 60) == pytest.approx(0.55) and train.learning_rate(cfg, 109) == pytest.approx(0.109)
    assert train.learning_rate(replace(cfg, lr_final=1.0), 100) == 1.0


@pytest.mark.parametrize("flags", ["--lr x", "--lr -1", "--max_steps 0", "--preset none", "--endpoint 2", "--max_step 5",
                                   "--n_head 3 --d_model 64", "--objective gan", "stray", "--micro_batch -1", "--beta2 1",
                                   "--clip 0", "--lr nan", "--seed -1", "--frozen bias", "--frame_eos --length 2", "--eval_windows 9",
                                   "--weight_decay nan", "--lr inf", "--seed 9223372036854775808", "--device mps --sample_every 5"])
def test_bad_flags_are_usage_errors_of_one_line(flags, capsys):
    with pytest.raises(SystemExit) as error:
        train.parse_args(flags.split())
    assert error.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_flags_override_the_preset(capsys):
    for flags, steps in (["--preset", "demo"], 4800), (["--preset=text8"], 500_000), ([], 60_000):
        with pytest.raises(SystemExit):
            train.parse_args([*flags, "--help"])
        assert f"optimiser steps (default: {steps})" in " ".join(capsys.readouterr().out.split())
    assert train.parse_args(["--preset", "demo", "--lr", "0.5"]).lr == 0.5
    assert train.parse_args([]) == train.parse_args(["--preset", "owt"]) != train.parse_args(["--preset", "demo"])
