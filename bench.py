"""Measure what is fast against the obvious way to do it, side by side in one run.

    python bench.py sample                       # a sampling step outside the backbone: head, nucleus, draw
    python bench.py sample --whole               # with the backbone
    python bench.py train --preset demo          # forward and backward of the losses, and their memory
    python bench.py train --vs compile attention=math   # the same, and the same with other flags, taking turns
    python bench.py head                         # the cross-entropy of features alone, also by torch's own linear_cross_entropy
    python bench.py prepare                      # tokenisation
    make bench                                   # all of them, as in README.md

The obvious way is that of the public MDLM and ReMDM code. Sampling: logits of every position, softmax, a full sort for the nucleus, float64
Gumbel noise over the whole vocabulary, at every step; ours draws only at the positions that the step reveals. Training: float32 logits
of the whole batch, and the view of every noisy token, all kept for the backward pass; ours computes them again, a piece at a time.
Preparation: a document after another; ours gives batches to workers.
"""

import atexit
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from functools import partial

from bench_config import parse_args
from config import Problem, run

CFG = parse_args(description=__doc__) if __name__ == "__main__" else None  # before torch is imported: a typo should cost nothing

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import dsl_loss as losses
import model as network
import prepare_owt
from data import tokenizer
from dsl_loss import SNRMix, add_noise, critical_snr, draw_corruption, dsl_loss, feature_ce, keyed_draws, mdlm_loss, stratified, to_device
from model import DSL, ModelConfig
from paths import PATHS
from report import save_json, table
from runtime import SHAPES, autocast, flops_per_token, join_ranks, memory_in_use
from sampler_config import parse_args as sampling_args
from state import State
from stopwatch import Step, ceiling, profile, timed


class Head:
    """A network whose backbone costs nothing: fixed features, and a real head. Its logits are as peaked as a trained model's."""

    def __init__(self, cfg, device):
        g = torch.Generator(device).manual_seed(0)
        self.features = torch.randn(cfg.batch_size, cfg.length, cfg.d_model, generator=g, device=device)
        self.weight = torch.randn(cfg.vocab_size, cfg.d_model, generator=g, device=device) * 3 / cfg.d_model**0.5
        self.E, self.mask_id = torch.zeros(cfg.vocab_size, 2, device=device), cfg.vocab_size

    def embed_ids(self, x):
        return self.features[: len(x)]

    def hidden(self, h):
        return h

    def head(self, h):
        return h @ self.weight.T


def whole_network(cfg, device):
    """The real network, with random weights: a head as peaked as a trained one's, and open gates, as products of zeros are cheap."""
    torch.manual_seed(0)
    net = DSL(ModelConfig(cfg.vocab_size, cfg.length, cfg.n_layer, cfg.n_head, cfg.d_model, cfg.d_embed)).to(device).eval()
    torch.nn.init.normal_(net.out.weight, std=3 / cfg.d_model**0.5)
    for block in net.blocks:
        torch.nn.init.normal_(block.attn_gate, std=0.3)
        torch.nn.init.normal_(block.mlp_gate, std=0.3)
    return net


def obvious_draw(model, h, top_p):
    """Tokens at all positions of a text's features h (L, C): softmax, sort, nucleus, float64 Gumbel noise over the vocabulary."""
    probs = model.head(h).softmax(-1)
    ranked, order = probs.sort(-1, descending=True)
    keep = ranked.cumsum(-1) - ranked < top_p
    nucleus = torch.zeros_like(probs).scatter_(-1, order, ranked * keep)
    gumbel = -(-torch.rand(probs.shape, dtype=torch.float64, device=probs.device).log()).log()
    return (nucleus.double().log() + gumbel).argmax(-1)


def attending(run, name):
    """`run` with the attention of that name."""
    return run if name == "auto" else sdpa_kernel(getattr(SDPBackend, name.upper()))(run)


def sample(cfg, device):
    """Head, nucleus and draw of one step, with the choice of where to draw, and the backbone if `whole` -> {name: Step}. `ours` is `mdlm`'s
    first step; the other paths stand halfway: `remdm-cap` makes up for what it forgets, `posterior` also reads the revealed half.
    Tokens are those of a finished text over its steps; MFU counts the backbone for all texts, sent or not."""
    model = whole_network(cfg, device) if cfg.whole else Head(cfg, device)
    flags = ["--path", "mdlm", "--top_p", str(cfg.top_p), "--steps", str(cfg.steps), "--dtype", cfg.dtype, *["--static"] * cfg.static]
    sampling = sampling_args(flags)
    given, plain = torch.full((cfg.batch_size, cfg.length), model.mask_id, device=device), model.hidden
    if cfg.compile and cfg.whole:
        model.hidden = torch.compile(plain, **SHAPES[cfg.static])  # as sampler.py

    def ours(path, j, i):  # step j, of texts of which so much is revealed
        state = State(model, range(cfg.batch_size), sampling, given)
        state.step = i
        done = state.uniform("done") < j / cfg.steps
        state.x[done] = 0
        state.move(done, torch.full_like(state.snr, torch.inf))
        target = PATHS[path](state, j, cfg.steps)
        state.observe(target > state.snr, target)

    def obvious(i):
        with autocast(device, cfg.dtype):
            h = plain(model.embed_ids(given)).to(model.E.dtype)
        for text in h:  # one at a time, or 64 of them would not fit a GPU
            obvious_draw(model, text, cfg.top_p)

    halfway = {path: partial(ours, path, cfg.steps // 2) for path in ("remdm-cap", "posterior")}
    steps = {"ours": partial(ours, "mdlm", 0), **halfway, "obvious": obvious}
    tokens, most = cfg.batch_size * cfg.length, ceiling(device, cfg.dtype) if cfg.whole else 1.0
    flops = tokens * flops_per_token(replace(model.config, vocab_size=0)) / 3 if cfg.whole else 0.0  # forward alone
    return {name: Step(torch.no_grad()(step), tokens / cfg.steps, flops, most) for name, step in steps.items()}


# ---- training ----------------------------------------------------------------------------------------------------------------


def plainly(loss):
    """`loss` the obvious way: everything of (tokens, V) at once, kept, and as wide as it is."""
    def whole(*args):
        kept = network.WIDE, network.pads, losses.pads
        network.WIDE, network.pads, losses.pads = 2**62, lambda x: False, lambda x: False
        try:
            return loss(*args)
        finally:
            network.WIDE, network.pads, losses.pads = kept
    return whole


def dense_dsl_loss(model, x0, snr, eps):
    """`dsl_loss` with the view computed for every token: [MASK] is evidence at SNR 0, a clean token evidence at a very large one."""
    eps = F.pad(eps, (0, 0, 0, 0, len(x0) - len(eps), 0))
    h = model.embed_noisy(add_noise(F.embedding(x0, model.E), snr.clamp(max=1e6), eps))
    return feature_ce(model, model.hidden(h), x0).mean(),


def train(cfg, device):
    """Forward and backward of a batch, without the optimiser: the MDLM and the DSL loss, and DSL the obvious way -> {name: Step}."""
    net, t_c, mix = whole_network(cfg, device), critical_snr(cfg.vocab_size), SNRMix(cfg.endpoint)
    n_end = round(cfg.batch_size * cfg.endpoint)
    ways = {"mdlm": mdlm_loss, "dsl": dsl_loss, "dsl, obvious": plainly(dense_dsl_loss)}
    if cfg.compile:
        ways = {name: torch.compile(loss) for name, loss in ways.items() if "obvious" not in name}

    def step(name, loss):
        def once(i):
            samples = list(range(i * cfg.batch_size, (i + 1) * cfg.batch_size))
            x0 = torch.randint(cfg.vocab_size, (cfg.batch_size, cfg.length), device=device)
            if name == "mdlm":
                t = to_device(stratified(0, samples).float().clamp(min=1e-3), device)
                noise = t, keyed_draws(0, samples, cfg.length, None, device)[0]
            else:  # endpoint sequences first, n_end of them whatever the batch
                parts = [draw_corruption(0, rows, cfg.length, cfg.d_embed, t_c, mix._replace(endpoint=share), device)
                         for rows, share in ((samples[:n_end], 1.0), (samples[n_end:], 0.0)) if rows]
                noise = torch.cat([snr for snr, _ in parts]), torch.cat([eps for _, eps in parts])
            with autocast(device, cfg.dtype):
                loss(net, x0, *noise)[0].backward()
            net.zero_grad()
        return once

    most, tokens = ceiling(device, cfg.dtype), cfg.batch_size * cfg.length
    flops = {name: tokens * flops_per_token(net.config, 1.0 if name == "mdlm" else n_end / cfg.batch_size) for name in ways}
    return {name: Step(step(name, loss), tokens, flops[name], most) for name, loss in ways.items()}


def torch_ce(net, h, x0):
    """As feature_ce, by torch's own function, in pieces of its choice: it computes the gradients in the forward pass, outside the graph."""
    options, out = torch.nn.LinearCrossEntropyOptions(), net.out
    return F.linear_cross_entropy(h.flatten(0, 1), out.weight, x0.flatten(), linear_bias=out.bias, reduction="none", options=options)


WAYS = {"ours": feature_ce, "obvious": plainly(feature_ce)}
if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # torch 2.13
    WAYS["torch"] = torch_ce


def head(cfg, device):
    """Forward and backward of the cross-entropy of features (B, L, C), in each of the WAYS -> {name: Step}."""
    h = torch.randn(cfg.batch_size, cfg.length, cfg.d_model, device=device, requires_grad=True)
    x0 = torch.randint(cfg.vocab_size, h.shape[:2], device=device)
    net = DSL(ModelConfig(cfg.vocab_size, 1, 1, cfg.n_head, cfg.d_model, cfg.d_embed)).to(device)

    def step(loss):
        def once(i=0):
            with autocast(device, cfg.dtype):
                loss(net, h, x0).mean().backward()
            net.zero_grad()
        return once

    return {name: Step(step(loss)) for name, loss in WAYS.items()}


def memory(cfg, device):
    """Peak GiB that the cross-entropy of features (B, L, C), or with --loss DSL's whole loss with one block, and its gradients add to what
    is there before."""
    if cfg.loss:
        once = train(replace(cfg, n_layer=1), device)["dsl, obvious" if cfg.way == "obvious" else "dsl"].run
    else:
        once = head(cfg, device)[cfg.way].run
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # of what was measured on the way here
    before = memory_in_use(device)
    once(0)
    return memory_in_use(device) - before


# ---- preparation -------------------------------------------------------------------------------------------------------------


def prepare(cfg, device):
    """Tokenise this Python's documentation some times over -> {name: Step}. Ours is the whole script: it starts, reads, writes files."""
    documents, folder = list(prepare_owt.pydocs(None)[3]) * cfg.copies, tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    tok, workers = tokenizer(cfg.tokenizer), cfg.workers or os.cpu_count()
    with open(f"{folder}/text.jsonl", "w") as f:
        f.writelines(json.dumps({"text": text}) + "\n" for text in documents)
    script = [sys.executable, prepare_owt.__file__, "--text", f"{folder}/text.jsonl", "--out_dir", folder, "--tokenizer", cfg.tokenizer,
              "--workers", str(workers)]

    def ours(i):
        done = subprocess.run([*script, "--name", str(i)], check=False, capture_output=True, text=True)
        if done.returncode:
            raise Problem(f"prepare_owt.py failed: {(done.stderr.strip() or f'exit status {done.returncode}').splitlines()[-1]}")

    def tiktoken(i):
        return [np.array(ids, np.uint16) for ids in tok.encode_ordinary_batch(documents, num_threads=workers)]

    def obvious(i):
        return [np.array(tok.encode_ordinary(text), np.uint16) for text in documents]

    tokens = sum(map(len, obvious(0)))
    return {name: Step(step, tokens) for name, step in (("ours", ours), ("tiktoken's batch", tiktoken), ("obvious", obvious))}


# ---- the command line --------------------------------------------------------------------------------------------------------


def peaks(cfg):
    """`memory` at 8 x L tokens, of DSL's loss for `train` and of the cross-entropy in all WAYS for `head`, each in a process of its own, as
    a peak never falls -> {name: GiB, nan where that took more than there is}."""
    flags = [f"--{name}={getattr(cfg, name)}" for name in ("vocab_size", "length", "d_model", "n_head", "d_embed", "endpoint", "dtype",
                                                            "device")]
    command = [sys.executable, __file__, "memory", "--batch_size", "8", *flags, *["--loss"] * (cfg.what == "train")]
    done = {way: subprocess.run([*command, "--way", way], capture_output=True, text=True)
            for way in (WAYS if cfg.what == "head" else ("ours", "obvious"))}
    for way, child in done.items():
        if child.returncode:
            print(f"{way}: no peak, {(child.stderr.splitlines() or ['killed, by the system if memory ran out'])[-1]}", flush=True)
    return {way: math.nan if child.returncode else float(child.stdout.split()[-1]) for way, child in done.items()}


def show(cfg, times, ratio, held, shares):
    """Print what was measured."""
    rows = [[name, f"{1000 * t['median_s']:.2f}", " to ".join(f"{1000 * q:.2f}" for q in t["quartiles_s"]), f"{ratio[name]:.2f}",
             f"{t['tokens_per_s']:,.0f}" if "tokens_per_s" in t else "-", f"{t['mfu']:.1%}" if "mfu" in t else "-",
             f"{t['peak_gib']:.1f}" if "peak_gib" in t else "-"] for name, t in times.items()]
    print(table(["", "ms", "quartiles", "this / mdlm" if cfg.what == "train" else "obvious / this", "tokens/s", "MFU", "GiB"], rows))
    if held:
        of = "DSL's loss" if cfg.what == "train" else "cross-entropy"
        print(f"{of} of 8 x L tokens, peak GiB: " + ", ".join(f"{name} {gib:.2f}" for name, gib in held.items()))
    for name, share in shares.items():
        print(f"{name}: " + ", ".join(f"{operation} {part:.0%}" for operation, part in share.items()))


def main(cfg, argv):
    *_, device = join_ranks(cfg.device)  # as train.py
    if cfg.what == "memory":
        return print(memory(cfg, device))
    variants = {"": cfg, **{f", {flag}": parse_args([*argv, *shlex.split(f"--{flag}")]) for flag in cfg.vs}}
    if len({variant.attention for variant in variants.values() if variant.compile}) > 1:
        raise Problem("attention is settled when a graph is compiled, once for all: compile with one --attention at a time")
    shape = "" if cfg.what == "prepare" else f"{cfg.batch_size} x {cfg.length} tokens, V = {cfg.vocab_size:,}, C = {cfg.d_model}, "
    print(f"{cfg.what}: {shape}on {device}, {torch.get_num_threads()} threads", flush=True)
    held = peaks(cfg) if cfg.what in ("train", "head") else {}  # first: a child process starts from its parent's peak
    steps, base_of = {}, {}
    for flag, variant in variants.items():
        for name, step in {"sample": sample, "train": train, "head": head, "prepare": prepare}[cfg.what](variant, device).items():
            steps[name + flag] = step._replace(run=attending(step.run, variant.attention))
            base_of[name + flag] = ("mdlm" if cfg.what == "train" else "obvious") + flag
    times = timed(steps, cfg.repeats, device)
    second = {name: t["median_s"] for name, t in times.items()}
    ratio = {name: (s / second.get(base_of[name], math.nan)) ** (1 if cfg.what == "train" else -1) for name, s in second.items()}
    shares = {name: profile(steps[name], device) for name in times} if cfg.profile else {}
    show(cfg, times, ratio, held, shares)
    if cfg.out:
        cpu = getattr(torch.cpu, "get_capabilities", dict)()
        processor = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu.get("cpu_name", platform.machine())
        about = {"processor": processor, "amx": cpu.get("amx_bf16"), "avx512_bf16": cpu.get("avx512_bf16"), "device_used": str(device),
                 "threads": torch.get_num_threads(), "torch": torch.__version__}
        save_json(cfg.out, **about, **asdict(cfg), times=times, ratio=ratio, memory_gib=held, shares=shares)


if __name__ == "__main__":
    run(lambda: main(CFG, sys.argv[1:]))
