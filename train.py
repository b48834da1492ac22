"""Train DSL, MDLM or an autoregressive model: config, batches, the loop, EMA, validation, checkpoints.

    python train.py --preset demo            # two CPU cores, about five minutes
    python train.py --preset demo --resume   # go on where the last checkpoint stands

Every random number of a run is keyed by (seed, global sample index), see dsl_loss.keyed_draws, so a resumed run is the same run.
"""

import copy
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from config import Problem, arg, parse, provenance, run

PRESETS = {
    "demo": dict(dataset="pydocs", out_dir="out/demo", max_steps=4800),
}


@dataclass(frozen=True)
class Config:
    """Every number of a run. The checkpoint and log.jsonl carry it whole."""

    preset: str = arg("demo", "named set of defaults that the other flags override", choices=tuple(PRESETS))
    dataset: str = arg("pydocs", "name of a folder that prepare_owt.py wrote")
    data_dir: str = arg("data", "where datasets live")
    out_dir: str = arg("out/demo", "where ckpt.pt and log.jsonl go")
    resume: bool = arg(False, "go on from out_dir/ckpt.pt")
    objective: str = arg("dsl", "what to train", choices=("dsl", "mdlm", "ar"))
    seed: int = arg(0, "seed of the weights, the data order, the masks and the noise")
    device: str = arg("", "cpu, cuda, mps; empty picks the best there is")
    dtype: str = arg("auto", "precision of the matrix products; auto: bfloat16 where the processor has it",
                     choices=("auto", "float32", "bfloat16"))
    # the network
    length: int = arg(128, "L, tokens in a sequence")
    n_layer: int = arg(4, "transformer blocks")
    n_head: int = arg(4, "attention heads")
    d_model: int = arg(128, "C, width of the stream")
    d_embed: int = arg(32, "D, dimension of the unit sphere of token embeddings")
    dropout: float = arg(0.0, "dropout on both branches of a block")
    beta: float = arg(1.0, "start of the view's inverse temperature")
    mask_share: float = arg(0.5, "start of the [MASK] slot's weight at SNR 0")
    # the corruption (DSL only), SNRs in units of t_c = 2 ln V
    endpoint: float = arg(0.5, "share of sequences made of clean and masked tokens only")
    common: float = arg(0.0, "share of the other sequences whose tokens have one SNR in common")
    snr_median: float = arg(0.9, "median of the log-normal SNR, in t_c")
    snr_sigma: float = arg(1.2, "standard deviation of ln SNR")
    # the optimiser
    max_steps: int = arg(4800, "optimiser steps")
    batch_size: int = arg(16, "sequences in one optimiser step")
    lr: float = arg(4e-3, "peak learning rate of AdamW")
    warmup: int = arg(50, "steps of linear warm-up")
    lr_final: float = arg(0.05, "learning rate at the last step as a share of the peak, reached linearly; 1 keeps it constant")
    beta2: float = arg(0.98, "AdamW's second decay rate; the first is 0.9")
    weight_decay: float = arg(0.0, "AdamW's weight decay")
    clip: float = arg(1.0, "largest norm of the gradient")
    ema: float = arg(0.995, "decay of the averaged weights, those that are evaluated and sampled")
    # what is seen and kept
    log_every: int = arg(20, "steps between lines of log.jsonl")
    eval_every: int = arg(0, "steps between evaluations; 0: only after the last step")
    eval_windows: int = arg(2048, "validation windows for the ROAR bound; the diffusion bound takes 1/16 of them")
    save_every: int = arg(500, "steps between checkpoints")

    def __post_init__(self):
        for name in ("length", "n_layer", "n_head", "d_model", "d_embed", "max_steps", "batch_size", "log_every", "save_every",
                     "eval_windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1")
        for name in ("endpoint", "common", "dropout", "lr_final", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} must be between 0 and 1")
        if self.lr <= 0 or self.snr_median <= 0 or not 0 < self.mask_share < 1:
            raise ValueError("--lr and --snr_median must be positive and --mask_share between 0 and 1")
        if self.d_model % (2 * self.n_head):
            raise ValueError("--d_model must be an even multiple of --n_head")


def parse_args(argv=None):
    return parse(Config, argv, PRESETS, __doc__)


CFG = parse_args() if __name__ == "__main__" else None  # before torch is imported: a typo should cost nothing

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data import load_meta, load_tokens, train_windows, val_windows
from dsl_loss import (SNRMix, ar_loss, critical_snr, diffusion_bound, draw_corruption, dsl_loss, is_endpoint, keyed_draws,
                      keyed_generator, mdlm_loss, mean_and_stderr, roar_bound, snr_grid, stratified)
from model import DSL, ModelConfig, autocast, load_checkpoint, pick_device, save_checkpoint

LOSSES = {"dsl": dsl_loss, "mdlm": mdlm_loss, "ar": ar_loss}
MAY_CHANGE = ("resume", "max_steps", "out_dir", "data_dir", "device", "log_every", "eval_every", "eval_windows", "save_every", "preset")


class Objective(nn.Module):
    """The loss as a module, so that it can be wrapped or compiled while the model that is saved stays as it is."""

    def __init__(self, model, objective):
        super().__init__()
        self.model, self.loss = model, LOSSES[objective]

    def forward(self, x0, *noise):
        return self.loss(self.model, x0, *noise)


def batch(cfg, step, tokens, vocab_size, device):
    """Clean ids (B, L) and the noise of optimiser step `step`, whose samples are step * batch_size + [0, batch_size)."""
    samples = range(step * cfg.batch_size, (step + 1) * cfg.batch_size)
    noise = ()
    if cfg.objective == "dsl":
        samples = sorted(samples, key=lambda s: not is_endpoint(s, cfg.endpoint))  # dsl_loss wants endpoint sequences first
        mix = SNRMix(cfg.endpoint, cfg.common, cfg.snr_median, cfg.snr_sigma)
        noise = draw_corruption(cfg.seed, samples, cfg.length, cfg.d_embed, critical_snr(vocab_size), mix, device)
    elif cfg.objective == "mdlm":
        u, _ = keyed_draws(cfg.seed, samples, cfg.length, None, device)
        noise = (1e-3 + (1 - 1e-3) * stratified(cfg.seed, samples).to(u), u)  # MDLM's t >= 1e-3: its weight is 1/t
    return torch.from_numpy(train_windows(tokens, cfg.length, cfg.seed, samples)).to(device), *noise


def learning_rate(cfg, step):
    """Linear warm-up, then a straight line from lr to lr * lr_final."""
    if step < cfg.warmup:
        return cfg.lr * (step + 1) / cfg.warmup
    return cfg.lr * (1 - (1 - cfg.lr_final) * (step - cfg.warmup) / max(1, cfg.max_steps - cfg.warmup))


def bits_per_byte(meta, split, nats_per_token):
    """Nats per token of a split -> bits per byte of its text: EOS tokens are paid for, though they are no byte."""
    return nats_per_token / math.log(2) * meta[split]["tokens"] / meta[split]["bytes"]


@torch.no_grad()
def evaluate(cfg, model, meta, device):
    """Bounds on the validation text -> {name: (mean, standard error)} in bits per byte.

    `roar` on eval_windows windows, `diffusion` on every 16th of them (it costs 25 calls); for an AR model the exact `nll`.
    """
    windows = torch.from_numpy(val_windows(load_tokens(cfg.dataset, "val", cfg.data_dir), cfg.length, cfg.eval_windows))
    grid = snr_grid(critical_snr(meta["vocab_size"]))
    terms = {  # name: (windows, function of (x0, number of its first window) -> nats per sequence (B,))
        "nll": (windows, lambda x0, i: cfg.length * torch.stack([ar_loss(model, x[None])[0] for x in x0])),
        "roar": (windows, lambda x0, i: roar_bound(model, x0, "val", range(i, i + len(x0)))),
        "diffusion": (windows[::16], lambda x0, i: diffusion_bound(model, x0, grid, keyed_generator(device, "val", i))),
    }
    scores = {}
    for name in ("nll",) if cfg.objective == "ar" else ("roar", "diffusion"):
        rows, term = terms[name]
        parts = tqdm(range(0, len(rows), 64), f"validation, {name}", leave=False)
        nats = torch.cat([term(rows[i : i + 64].to(device), i) for i in parts])
        scores[name] = mean_and_stderr(bits_per_byte(meta, "val", nats / cfg.length))
    return scores


def describe(scores, windows):
    parts = (f"{name} {mean:.3f} +- {stderr:.3f}" for name, (mean, stderr) in scores.items())
    return f"validation, up to {windows:,} windows, bits per byte: {', '.join(parts)}"


def build(cfg, tokens, vocab_size):
    """A new network whose first prediction is the unigram distribution of the training tokens."""
    torch.manual_seed(cfg.seed)
    model = DSL(ModelConfig(vocab_size, cfg.length, cfg.n_layer, cfg.n_head, cfg.d_model, cfg.d_embed,
                            cfg.objective == "ar", cfg.dropout, cfg.beta, cfg.mask_share))
    counts = torch.from_numpy(np.bincount(tokens[:10_000_000], minlength=vocab_size)) + 1.0
    with torch.no_grad():
        model.out.bias.copy_((counts / counts.sum()).log())
    return model


def resume(cfg, path, meta):
    """The checkpoint's dict, after making sure that going on from it is the same run. Raises Problem with the first difference."""
    _, ckpt = load_checkpoint(path)
    if ckpt["tokenizer"] != meta["tokenizer"] or ckpt["model_config"]["vocab_size"] != meta["vocab_size"]:
        raise Problem(f"{path} was trained on {ckpt['tokenizer']} tokens (V = {ckpt['model_config']['vocab_size']}), {cfg.dataset} holds "
                      f"{meta['tokenizer']} (V = {meta['vocab_size']}): use the dataset it was trained on, or another --out_dir")
    for name, value in asdict(cfg).items():
        if name not in MAY_CHANGE and ckpt["config"].get(name) != value:
            raise Problem(f"{path} was trained with --{name} {ckpt['config'].get(name)}, not {value}: use that, or another --out_dir")
    return ckpt


class Log:
    """log.jsonl: one dict a line. On resume the lines after the checkpoint's step are dropped, since those steps are run again."""

    def __init__(self, path, step):
        lines = path.read_text().splitlines() if step and path.is_file() else []
        path.write_text("".join(line + "\n" for line in lines if json.loads(line)["step"] <= step))
        self.path = path

    def write(self, **fields):
        with open(self.path, "a") as f:
            f.write(json.dumps(fields) + "\n")


def main(cfg):
    device, out = pick_device(cfg.device), Path(cfg.out_dir)
    meta, tokens = load_meta(cfg.dataset, cfg.data_dir), load_tokens(cfg.dataset, "train", cfg.data_dir)
    path = out / "ckpt.pt"
    if path.exists() and not cfg.resume:
        raise Problem(f"{path} exists: add --resume to go on from it, or choose another --out_dir")
    ckpt = resume(cfg, path, meta) if cfg.resume else None
    model = build(cfg, tokens, meta["vocab_size"]).to(device)
    ema = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), cfg.lr, (0.9, cfg.beta2), weight_decay=cfg.weight_decay, fused=True)
    if ckpt:
        model.load_state_dict(ckpt["model"])
        ema.load_state_dict(ckpt["ema"])
        optimizer.load_state_dict(ckpt["optimizer"])
    start = ckpt["step"] if ckpt else 0
    size = sum(p.numel() for p in model.parameters())
    print(f"{cfg.objective} on {cfg.dataset} ({len(tokens):,} {meta['tokenizer']} tokens): {size:,} parameters, "
          f"{cfg.batch_size * cfg.length:,} tokens per step, steps {start:,} to {cfg.max_steps:,}, on {device}", flush=True)
    if start >= cfg.max_steps:
        print(f"{path} has all {start:,} steps already: nothing to train")
        return
    out.mkdir(parents=True, exist_ok=True)
    log = Log(out / "log.jsonl", start)
    log.write(step=start, config=asdict(cfg), device=str(device), torch=torch.__version__, **provenance())
    train(cfg, model, ema, optimizer, start, tokens, meta, log, path)


def train(cfg, model, ema, optimizer, start, tokens, meta, log, path):
    """The loop from step `start` to max_steps: update, average, and every so often look, evaluate and save."""
    device, objective = model.E.device, Objective(model, cfg.objective)
    seen, clock, scores = [], time.time(), {}
    with tqdm(total=cfg.max_steps, initial=start, desc="training", mininterval=1) as bar:
        for step in range(start, cfg.max_steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(cfg, step)
            x0, *noise = batch(cfg, step, tokens, meta["vocab_size"], device)
            with autocast(device, cfg.dtype):
                loss, bound = objective(x0, *noise)
            if not loss.isfinite():
                raise Problem(f"the loss is {loss.item()} at step {step} (seed {cfg.seed}); {path} holds the last good step, if it exists: "
                              "resume from it with a lower --lr in another --out_dir")
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():  # a shorter memory while young, or the average would remember the initialisation
                decay = min(cfg.ema, (1 + step) / (10 + step))
                torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
            seen.append((loss.item(), bits_per_byte(meta, "train", bound.item())))
            bar.update()
            done, last = step + 1, step + 1 == cfg.max_steps
            if done % cfg.log_every == 0 or last:
                loss, bpb = np.mean(seen, 0)
                speed = len(seen) * x0.numel() / (time.time() - clock)
                bar.set_postfix(loss=f"{loss:.3f}", bits_per_byte=f"{bpb:.3f}", tokens_s=f"{speed:,.0f}")
                log.write(step=done, loss=loss, bits_per_byte=bpb, lr=learning_rate(cfg, step), tokens_per_s=speed)
                seen, clock = [], time.time()
            if last or cfg.eval_every and done % cfg.eval_every == 0:
                with autocast(device, cfg.dtype):
                    scores = evaluate(cfg, ema, meta, device)
                log.write(step=done, validation=scores)
                bar.write(describe(scores, cfg.eval_windows))
                clock = time.time()
            if last or done % cfg.save_every == 0:
                save_checkpoint(path, model, ema=ema.state_dict(), optimizer=optimizer.state_dict(), step=done, config=asdict(cfg),
                                tokenizer=meta["tokenizer"], validation=scores, **provenance())
    print(f"saved {path}; sample from it with: python sampler.py --ckpt {path}")


if __name__ == "__main__":
    run(lambda: main(CFG))
