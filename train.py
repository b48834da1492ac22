"""Train DSL, MDLM or an autoregressive model: config, batches, DDP and compile, the loop, EMA, checkpoints.

    python train.py --preset demo                    # two CPU cores, five to fourteen minutes; add --resume to go on
    torchrun --nproc_per_node=8 train.py             # preset owt: DSL fine-tuning of mdlm-owt on OpenWebText
    python train.py --dry_run                        # what that would cost, without starting it

Data order, masks and noise are keyed by (seed, sample index), see dsl_loss.keyed_draws: neither resuming nor more processes change them.
"""

import contextlib
import copy
import itertools
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NamedTuple

from config import Problem, provenance
from config import run as go
from train_config import MAY_CHANGE, parse_args

CFG = parse_args(description=__doc__) if __name__ == "__main__" else None  # before torch is imported: a typo should cost nothing

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from data import load_meta, load_tokens, require_text, tokenizer, train_windows
from dsl_loss import (SNRMix, ar_loss, critical_snr, draw_corruption, dsl_loss, is_endpoint, keyed_draws, keyed_generator, mdlm_loss,
                      stratified, to_device)
from mdlm import mdlm_to_dsl, read_mdlm
from model import DSL, ModelConfig, load_checkpoint, save_checkpoint
from runtime import (Log, StopSignal, autocast, compiled, flops_per_token, gather, join_ranks, matmul_ceiling, memory_estimate,
                     memory_in_use, precision, prefetch, rerun)
from sampler import sample
from sampler_config import DEFAULT_PATHS
from sampler_config import Config as Sampling
from show import printable
from validate import bits_per_byte, describe, evaluate, require_windows

LOSSES = {"dsl": dsl_loss, "mdlm": mdlm_loss, "ar": ar_loss}  # what one more takes: README, "Write your own path"


# ---- batches -----------------------------------------------------------------------------------------------------------------


def passes_of(cfg, step, rank, world):
    """The samples of optimiser step `step`, step * batch_size + [0, batch_size), that this process takes: one list per pass."""
    size = cfg.micro_batch or cfg.batch_size // world
    if size == 0 or cfg.batch_size % (size * world):
        raise Problem(f"--batch_size {cfg.batch_size} is no multiple of {world} processes times --micro_batch {size or 1}: change either")
    count = cfg.batch_size // (size * world)
    first = step * cfg.batch_size + rank * count * size
    return [range(first + i * size, first + (i + 1) * size) for i in range(count)]


def batch(cfg, samples, tokens, meta, device):
    """Clean ids (B, L) and the noise of these samples, as the arguments of the loss."""
    noise, eos = (), meta["eos"] if cfg.frame_eos else None
    if cfg.objective == "dsl":
        samples = sorted(samples, key=lambda s: not is_endpoint(s, cfg.endpoint))  # dsl_loss wants endpoint sequences first
        mix = SNRMix(cfg.endpoint, cfg.common, cfg.snr_median, cfg.snr_sigma)
        noise = draw_corruption(cfg.seed, samples, cfg.length, cfg.d_embed, critical_snr(meta["vocab_size"]), mix, device)
    elif cfg.objective == "mdlm":
        u, _ = keyed_draws(cfg.seed, samples, cfg.length, None, device)
        noise = (1e-3 + (1 - 1e-3) * to_device(stratified(cfg.seed, samples).to(u.dtype), device), u)  # MDLM's t >= 1e-3: its weight is 1/t
    return to_device(torch.from_numpy(train_windows(tokens, cfg.length, cfg.seed, samples, eos)), device), *noise


# ---- weights -----------------------------------------------------------------------------------------------------------------


def shape(cfg, vocab_size):
    return ModelConfig(vocab_size, cfg.length, cfg.n_layer, cfg.n_head, cfg.d_model, cfg.d_embed, cfg.objective == "ar", cfg.dropout,
                       cfg.beta, cfg.mask_share)


def build(cfg, tokens, meta):
    """The network to start from: `init_from`, or a new one that at first predicts the unigram distribution of the training tokens."""
    torch.manual_seed(cfg.seed)
    config = shape(cfg, meta["vocab_size"])
    if cfg.init_from == "scratch":
        model = DSL(config)
        counts = torch.from_numpy(np.bincount(tokens[:10_000_000], minlength=config.vocab_size)) + 1.0
        model.out.bias.data = (counts / counts.sum()).log()
        return model
    if cfg.init_from.endswith(".pt"):
        source, ckpt = load_checkpoint(cfg.init_from)  # the averaged weights
        if ckpt["tokenizer"] != meta["tokenizer"]:
            raise Problem(f"{cfg.init_from} was trained on {ckpt['tokenizer']} tokens and {cfg.dataset} holds {meta['tokenizer']}: prepare "
                          "the text again with that tokenizer")
        by = ckpt["config"]["objective"]
    else:
        source, by = mdlm_to_dsl(read_mdlm(cfg.init_from), cfg.n_head, cfg.length, cfg.d_embed, beta=cfg.beta), "mdlm"
    found, weights = source.config, source.state_dict()
    if by != "dsl" and (cfg.d_embed, cfg.beta) != (found.d_embed, found.beta):  # MDLM and AR have never trained them: they start anew
        found = replace(found, d_embed=cfg.d_embed, beta=cfg.beta)
        del weights["view.raw_E"], weights["view.beta"]
    for name in [f.name for f in fields(config) if f.name not in ("length", "dropout", "beta", "mask_share")]:
        if getattr(found, name) != getattr(config, name):
            raise Problem(f"{cfg.init_from} has {name} {getattr(found, name)}, this run {getattr(config, name)}: make them agree")
    model = DSL(replace(found, length=cfg.length, dropout=cfg.dropout))
    model.load_state_dict(model.state_dict() | weights)
    return model


def resumed(cfg, path, meta):
    """The checkpoint's dict, after making sure that going on from it is the same run. Raises Problem with the first difference."""
    _, ckpt = load_checkpoint(path)
    if ckpt["tokenizer"] != meta["tokenizer"] or ckpt["model_config"]["vocab_size"] != meta["vocab_size"]:
        raise Problem(f"{path} was trained on {ckpt['tokenizer']} tokens (V = {ckpt['model_config']['vocab_size']}), {cfg.dataset} holds "
                      f"{meta['tokenizer']} (V = {meta['vocab_size']}): use the dataset it was trained on, or another --out_dir")
    require_text(ckpt, path, cfg.dataset, cfg.data_dir)
    for name, value in asdict(cfg).items():
        before = ckpt["config"].get(name, getattr(cfg.__class__, name))  # a flag that is younger than the checkpoint was at its default
        if name not in MAY_CHANGE and before != value:
            raise Problem(f"{path} was trained with --{name} {before}, not {value}: use that, or another --out_dir")
    return ckpt


class Objective(nn.Module):
    """The loss as a module, so that DDP and compile wrap it while the model that is saved stays as it is."""

    def __init__(self, model, objective, frozen=()):
        super().__init__()
        self.model, self.loss = model, LOSSES[objective]
        for name, p in (("E", model.view.raw_E), ("beta", model.view.beta)):  # evidence is DSL's alone: DDP would wait for their gradients
            p.requires_grad_(objective == "dsl" and name not in frozen)

    def forward(self, x0, *noise):
        return self.loss(self.model, x0, *noise)


def wrap(cfg, run):
    """The objective to call: compiled where that pays, and averaging its gradients over the processes."""
    objective = compiled(Objective(run.model, cfg.objective, cfg.frozen), cfg, run.device, cfg.max_steps)
    if run.world > 1:
        size = len(passes_of(cfg, 0, run.rank, run.world)[0])
        only_endpoints = cfg.objective == "dsl" and size * (1 - cfg.endpoint) < 1  # a pass without evidence gives E no gradient
        objective = nn.parallel.DistributedDataParallel(objective, broadcast_buffers=False, gradient_as_bucket_view=True,
                                                        find_unused_parameters=only_endpoints)
    return objective


def learning_rate(cfg, step):
    """Linear warm-up, then a straight line from lr to lr * lr_final."""
    if step < cfg.warmup:
        return cfg.lr * (step + 1) / cfg.warmup
    return cfg.lr * (1 - (1 - cfg.lr_final) * (step - cfg.warmup) / max(1, cfg.max_steps - cfg.warmup))


# ---- the run -----------------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """Everything that a run holds besides its configuration."""

    model: DSL
    ema: DSL
    optimizer: torch.optim.Optimizer
    begun: str  # where the weights come from
    step: int  # of the checkpoint that it goes on from
    scores: dict  # of that step, {} if it was not evaluated
    tokens: np.ndarray
    meta: dict
    rank: int
    world: int
    device: torch.device
    ceiling: float  # FLOP/s of a large matrix product, measured


def start(cfg, rank, world, device):
    """Load or build all of it. Raises Problem before anything is written."""
    if not cfg.eval_only:
        passes_of(cfg, 0, rank, world)  # the batch should divide before a model is fetched
    meta, tokens = load_meta(cfg.dataset, cfg.data_dir), load_tokens(cfg.dataset, "train", cfg.data_dir)
    if cfg.frame_eos and meta["eos"] is None:
        raise Problem(f"--frame_eos needs an EOS token and {cfg.dataset} ({meta['tokenizer']}) has none: add --no-frame_eos")
    require_windows(cfg)
    if cfg.sample_every:
        tokenizer(meta["tokenizer"])  # GPT-2's vocabulary is fetched now, not at the first sample
    path = Path(cfg.out_dir) / "ckpt.pt"
    if path.exists() and not (cfg.resume or cfg.eval_only):
        raise Problem(f"{path} exists: add --resume to go on from it, or choose another --out_dir")
    ckpt = resumed(cfg, path, meta) if cfg.resume or cfg.eval_only and (path.exists() or cfg.init_from == "scratch") else None
    model = build(replace(cfg, init_from="scratch") if ckpt else cfg, tokens, meta).to(device)
    ema = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), cfg.lr, (0.9, cfg.beta2), weight_decay=cfg.weight_decay, fused=True)
    if ckpt:
        model.load_state_dict(ckpt["model"])
        ema.load_state_dict(ckpt.get("ema", ckpt["model"]))
        optimizer.load_state_dict(ckpt.get("optimizer", optimizer.state_dict()))  # mdlm.py's checkpoints have none
    origin = (str(path), ckpt["step"], ckpt["validation"]) if ckpt else (cfg.init_from, 0, {})
    return Run(model, ema, optimizer, *origin, tokens, meta, rank, world, device, matmul_ceiling(device, autocast(device, cfg.dtype)))


def save(cfg, run, step, scores):
    """Write out_dir/ckpt.pt atomically; with --keep k also keep the last k as ckpt-STEP.pt."""
    for name in ("ckpt.pt", f"ckpt-{step:08d}.pt")[: cfg.keep]:  # twice, as not every disk knows links
        save_checkpoint(Path(cfg.out_dir) / name, run.model, ema=run.ema.state_dict(), optimizer=run.optimizer.state_dict(), step=step,
                        config=asdict(cfg), tokenizer=run.meta["tokenizer"], data=run.meta["train"].get("sha256"), validation=scores,
                        **provenance())
    if cfg.keep > 1:  # the oldest go; an abandoned run's may have later steps
        for old in sorted(Path(cfg.out_dir).glob("ckpt-" + 8 * "[0-9]" + ".pt"), key=lambda p: (p.stat().st_mtime, p.name))[: -cfg.keep]:
            old.unlink()


def update(cfg, run, objective, batches, step):
    """One optimiser step over the next of `batches` -> (3,): mean loss and bound, gradient norm; where not finite, the optimiser waits."""
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(cfg, step)
    seen, n = [], len(passes_of(cfg, step, run.rank, run.world))
    for i, (x0, *noise) in enumerate(itertools.islice(batches, n)):
        if cfg.dropout:
            torch.manual_seed(keyed_generator("cpu", cfg.seed, "dropout", step, run.rank, i).initial_seed())
        with objective.no_sync() if run.world > 1 and i < n - 1 else contextlib.nullcontext():  # sync once per step
            with autocast(run.device, cfg.dtype):
                loss, bound = objective(x0, *noise)
            (loss / n).backward()
        seen.append(torch.stack([loss.detach(), bound]))
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), cfg.clip)  # the same on every rank: gradients are averaged by now
    run.optimizer.found_inf = 1.0 - norm.isfinite().float()  # the fused kernel reads it and skips the step: the host need not wait
    run.optimizer.step()
    decay = min(cfg.ema, (1 + step) / (10 + step))  # a shorter memory while young, or the average would remember the initialisation
    with torch.no_grad():
        torch._foreach_lerp_(list(run.ema.parameters()), list(run.model.parameters()), 1 - decay)
    run.optimizer.zero_grad()
    loss, bound = torch.stack(seen).unbind(1)
    return torch.stack([loss.mean(), bound.nanmean(), norm])  # a pass without endpoint sequences has no bound


def report(cfg, run, log, bar, seen, step, skipped, clock):
    """Show and log the means, over steps and ranks, of what `update` returned since `clock` -> `skipped`, with the steps among them whose
    gradient was not finite. Only here does the host wait for the device. Raises Problem after more than cfg.skip_nonfinite such steps."""
    seen = torch.stack(seen).float().cpu()
    good, path = seen[:, 2].isfinite(), f"{cfg.out_dir}/ckpt.pt"
    for bad in (step - len(seen) + (~good).nonzero()[:, 0]).tolist():
        skipped += 1
        log.write(bad + 1, skipped=skipped)
        if skipped > cfg.skip_nonfinite:
            lower, again = (f" and --init_from {path}", "--resume ") if Path(path).exists() else ("", "")
            raise Problem(f"loss {seen[bad - step, 0]:.4g} with a gradient that is not finite at step {bad + 1}, samples "
                          f"{bad * cfg.batch_size}-{(bad + 1) * cfg.batch_size - 1} of seed {cfg.seed}: start over in another --out_dir "
                          f"with a lower --lr{lower}, or add {again}--skip_nonfinite 10")
    if not good.any():
        return skipped
    loss, bound = gather(seen[good][:, :2].nanmean(0)[None]).nanmean(0).tolist()
    bound = bits_per_byte(run.meta, "train", bound * cfg.length / cfg.text_length)
    speed = len(seen) * cfg.batch_size * cfg.length / (time.time() - clock)  # after .cpu(), so that all is done
    mfu, memory = speed * flops_per_token(run.model.config, cfg.lookup_share) / (run.ceiling * run.world), memory_in_use(run.device)
    bar.set_postfix(loss=f"{loss:.3f}", bits_per_byte=f"{bound:.3f}", tokens_s=f"{speed:,.0f}", mfu=f"{mfu:.0%}", GiB=f"{memory:.1f}")
    log.write(step, loss=loss, bits_per_byte=bound, lr=learning_rate(cfg, step - 1), tokens_per_s=speed, mfu=mfu, memory_gib=memory)
    return skipped


def show_samples(cfg, run, bar, step):
    """Print two texts drawn from the averaged weights."""
    path = DEFAULT_PATHS[cfg.objective]
    sampling = Sampling(path=path, steps=cfg.length if path == "ar" else 32, length=cfg.length, seed=step, dtype=cfg.dtype)
    *_, state = sample(run.ema, range(2), sampling)
    for ids in state.x.tolist():
        bar.write(f"--- step {step:,} ---\n{printable(tokenizer(run.meta['tokenizer']).decode(ids))}")


def train(cfg, run, log):
    """From the checkpoint's step to max_steps, or to a signal: update, average, and every so often look, evaluate and save."""
    objective, path = wrap(cfg, run), Path(cfg.out_dir) / "ckpt.pt"
    plan = (part for step in range(run.step, cfg.max_steps) for part in passes_of(cfg, step, run.rank, run.world))
    batches = prefetch(lambda part: batch(cfg, part, run.tokens, run.meta, run.device), plan)
    seen, clock, skipped = [], time.time(), 0
    with StopSignal() as stop, tqdm(total=cfg.max_steps, initial=run.step, desc="training", mininterval=1, disable=run.rank > 0) as bar:
        for step in range(run.step, cfg.max_steps):
            seen.append(update(cfg, run, objective, batches, step))
            bar.update()
            done, told = step + 1, stop.agreed()
            last = told or done == cfg.max_steps
            saves, shows = last or done % cfg.save_every == 0, cfg.sample_every and done % cfg.sample_every == 0
            if saves or shows or cfg.evaluates(done) or done % cfg.log_every == 0:  # first: it raises before what is not finite is saved
                skipped = report(cfg, run, log, bar, seen, done, skipped, clock)
                seen = []
            if run.rank == 0 and saves:
                save(cfg, run, done, {})  # before the evaluation, lest that fails
            if cfg.evaluates(done):
                scores = evaluate_now(cfg, run, log, bar.write, done)
                if run.rank == 0 and saves:
                    save(cfg, run, done, scores)
            if run.rank == 0 and shows:
                show_samples(cfg, run, bar, done)
            if not seen:
                clock = time.time()
            if told:
                break
    if run.rank == 0:
        print(f"saved {path} at step {done:,}; " + (f"sample from it with: python sampler.py --ckpt {path}" if done == cfg.max_steps else
                                                    f"stopped by {stop.received or 'a signal'}, go on with: {rerun(run.world)}"))


def evaluate_now(cfg, run, log, say, step):
    with autocast(run.device, cfg.dtype):
        scores = evaluate(cfg, run.ema, run.meta, run.device, run.rank, run.world)
    log.write(step, validation=scores)
    if run.rank == 0:
        say(describe(scores, cfg.eval_windows))
    return scores


def dry_run(cfg, world, say):
    """Print what a run would be and cost; it needs no data, only the size of the vocabulary."""
    try:
        V = load_meta(cfg.dataset, cfg.data_dir)["vocab_size"]
    except Problem:
        V = {"pydocs": 257, "text8": 27}.get(cfg.dataset, 50_257)
        say(f"{cfg.dataset} is not prepared yet: assuming V = {V:,}")
    with torch.device("meta"):
        model = DSL(shape(cfg, V))
    per_pass = len(passes_of(cfg, 0, 0, world)[0])
    flops, step = flops_per_token(model.config, cfg.lookup_share), cfg.batch_size * cfg.length
    say(f"{cfg.objective} on {cfg.dataset}: {sum(p.numel() for p in model.parameters()):,} parameters; {step:,} tokens per step, in passes "
          f"of {per_pass} sequences on {world} process(es)\n{flops:.3g} FLOPs per token, {cfg.max_steps * step:.3g} tokens in all\n"
          f"about {memory_estimate(model.config, per_pass):.1f} GiB per process")


def main(cfg):
    rank, world, device = join_ranks(cfg.device)
    say = print if rank == 0 else lambda *_, **__: None
    if cfg.dry_run:
        return dry_run(cfg, world, say)
    run = start(cfg, rank, world, device)
    say(f"{cfg.objective} on {cfg.dataset} ({run.meta['tokenizer']}, {len(run.tokens):,} tokens): "
        f"{sum(p.numel() for p in run.model.parameters()):,} parameters from {run.begun}, {cfg.batch_size * cfg.length:,} tokens per "
        f"step, steps {run.step:,} to {cfg.max_steps:,}, on {world} x {device}, into {cfg.out_dir}", flush=True)
    with contextlib.closing(Log(cfg, run)) as log:
        if cfg.eval_only or not run.scores and 0 < run.step and (cfg.evaluates(run.step) or run.step >= cfg.max_steps):  # it lacks one
            scores = evaluate_now(cfg, run, log, say, run.step)
            if rank == 0 and not cfg.eval_only:
                save(cfg, run, run.step, scores)
        elif run.step >= cfg.max_steps:
            say(f"{cfg.out_dir}/ckpt.pt has all {run.step:,} steps already: nothing to train")
        if run.step < cfg.max_steps and not cfg.eval_only:
            log.write(run.step, config=asdict(cfg), device=str(device), precision=precision(device, cfg.dtype), processes=world,
                      torch=torch.__version__, **provenance())
            train(cfg, run, log)
    if dist.is_initialized():  # not after an error: it would wait for the others
        dist.destroy_process_group()


if __name__ == "__main__":
    go(lambda: main(CFG))
