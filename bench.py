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
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import NamedTuple

from config import arg, parse, run

PRESETS = {"owt": {}, "demo": dict(vocab_size=257, length=128, n_layer=4, n_head=4, d_model=128, d_embed=32, batch_size=16)}
ATTENTION = ("flash_attention", "efficient_attention", "cudnn_attention", "math")  # of torch.nn.attention.SDPBackend


@dataclass(frozen=True)
class Config:
    """What to measure, and at which shape."""

    what: str = arg("sample", "what to measure", choices=("sample", "train", "head", "prepare", "memory"), positional=True)
    vs: tuple[str, ...] = arg((), "measure the same with each of these flags, too: compile, dtype=float32, ...")
    preset: str = arg("owt", "the shape, which other flags override: OpenWebText's model, or the demo's", choices=tuple(PRESETS))
    vocab_size: int = arg(50_257, "V")
    length: int = arg(1024, "L")
    n_layer: int = arg(12, "transformer blocks")
    n_head: int = arg(12, "attention heads")
    d_model: int = arg(768, "C")
    d_embed: int = arg(64, "D")
    endpoint: float = arg(0.5, "train: share of sequences made of clean and masked tokens only")
    steps: int = arg(256, "sample: T, a step reveals L / T tokens on average")
    batch_size: int = arg(1, "texts at a time")
    top_p: float = arg(0.9, "sample: nucleus")
    whole: bool = arg(False, "sample: with the whole network, not its head alone")
    repeats: int = arg(7, "timed repeats after one warm-up; the median counts, the quartiles are its spread")
    compile: bool = arg(False, "train: torch.compile the losses; sample --whole: the network, but not that of the obvious way")
    static: bool = arg(False, "sample --whole: as sampler.py --static")
    attention: str = arg("auto", "torch's scaled_dot_product_attention, of its choice or this one; not with --compile",
                         choices=("auto", *ATTENTION))
    way: str = arg("ours", "memory: of which cross-entropy", choices=("ours", "obvious", "torch"))
    tokenizer: str = arg("gpt2", "prepare: gpt2, bytes")
    workers: int = arg(0, "prepare: processes that tokenise; 0: one for each core")
    dtype: str = arg("auto", "precision of matrix products; sample: of the backbone alone", choices=("auto", "float32", "bfloat16"))
    out: str = arg("", "write the numbers to this json")
    device: str = arg("", "cpu, cuda, mps; empty picks the best there is")

    def __post_init__(self):
        if min(self.vocab_size, self.length, self.d_model, self.steps, self.batch_size, self.repeats, self.n_layer, self.d_embed) < 1:
            raise ValueError("sizes and counts must be at least 1")
        if self.compile and self.what == "sample" and not self.whole:
            raise ValueError("--compile is of the network: sample --whole, or train")
        if self.compile and self.attention != "auto":
            raise ValueError("--attention is settled when a graph is compiled, once for all variants: leave out --compile")
        if not 0 <= self.endpoint <= 1 or self.d_model % (2 * self.n_head):
            raise ValueError("--endpoint must be between 0 and 1, --d_model an even multiple of --n_head")


def parse_args(argv=None):
    return parse(Config, argv, PRESETS, __doc__)


CFG = parse_args() if __name__ == "__main__" else None  # before torch is imported: a typo should cost nothing

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import model as network
import prepare_owt
from data import tokenizer
from dsl_loss import SNRMix, critical_snr, draw_corruption, dsl_loss, feature_ce, keyed_draws, mdlm_loss, stratified
from model import DSL, ModelConfig, autocast
from paths import PATHS
from report import save_json, table
from runtime import SHAPES, flops_per_token, join_ranks, matmul_ceiling, memory_in_use
from sampler_config import parse_args as sampling_args
from state import State


class Step(NamedTuple):
    """What is timed: run(i) for i = 0, 1, ..., its tokens, its floating-point operations, and how many a second a matrix product does."""

    run: object
    tokens: int = 0
    flops: float = 0.0
    ceiling: float = 1.0


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
    """The real network, with weights that are random but for a head as peaked as a trained one's."""
    torch.manual_seed(0)
    net = DSL(ModelConfig(cfg.vocab_size, cfg.length, cfg.n_layer, cfg.n_head, cfg.d_model, cfg.d_embed)).to(device).eval()
    torch.nn.init.normal_(net.out.weight, std=3 / cfg.d_model**0.5)
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


def timed(steps, repeats, device):
    """Seconds of each Step of a dict: median and quartiles over `repeats`, after one warm-up, the device being waited for; tokens a second
    and MFU where they are counted. The steps take turns, so that a machine that slows down for a while slows all of them down."""
    seconds, peak = {name: [] for name in steps}, {}
    for i in range(repeats + 1):
        for name, step in steps.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            start = time.perf_counter()
            step.run(i)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                peak[name] = {"peak_gib": memory_in_use(device)}  # of one step and the weights; a CPU's peak is its process's, see `peaks`
            seconds[name].append(time.perf_counter() - start)
    ranked = {name: sorted(all_but_warm_up[1:]) for name, all_but_warm_up in seconds.items()}
    found = {name: {"median_s": s[len(s) // 2], "quartiles_s": [s[len(s) // 4], s[3 * len(s) // 4]], **peak.get(name, {})}
             for name, s in ranked.items()}
    for name, step in steps.items():
        if step.tokens:
            found[name]["tokens_per_s"] = step.tokens / found[name]["median_s"]
        if step.flops:
            found[name] |= {"mfu": step.flops / found[name]["median_s"] / step.ceiling, "flops": step.flops, "ceiling": step.ceiling}
    return found


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
    tokens, ceiling = cfg.batch_size * cfg.length, matmul_ceiling(device, autocast(device, cfg.dtype)) if cfg.whole else 1.0
    flops = tokens * flops_per_token(replace(model.config, vocab_size=0)) / 3 if cfg.whole else 0.0  # forward alone
    return {name: Step(torch.no_grad()(step), tokens / cfg.steps, flops, ceiling) for name, step in steps.items()}


# ---- training ----------------------------------------------------------------------------------------------------------------


def plainly(loss):
    """`loss` the obvious way: everything of (tokens, V) at once, and kept."""
    def whole(*args):
        pieces, network.WIDE = network.WIDE, 2**62
        try:
            return loss(*args)
        finally:
            network.WIDE = pieces
    return whole


def train(cfg, device):
    """Forward and backward of a batch, without the optimiser: the MDLM and the DSL loss, and DSL the obvious way -> {name: Step}."""
    net, t_c, mix = whole_network(cfg, device), critical_snr(cfg.vocab_size), SNRMix(cfg.endpoint)
    n_end = round(cfg.batch_size * cfg.endpoint)
    losses = {"mdlm": mdlm_loss, "dsl": dsl_loss, "dsl, obvious": plainly(dsl_loss)}
    if cfg.compile:
        losses = {name: torch.compile(loss) for name, loss in losses.items() if "obvious" not in name}

    def step(name, loss):
        def once(i):
            samples = list(range(i * cfg.batch_size, (i + 1) * cfg.batch_size))
            x0 = torch.randint(cfg.vocab_size, (cfg.batch_size, cfg.length), device=device)
            if name == "mdlm":
                noise = stratified(0, samples).float().clamp(min=1e-3).to(device), keyed_draws(0, samples, cfg.length, None, device)[0]
            else:  # endpoint sequences first, n_end of them whatever the batch
                parts = [draw_corruption(0, rows, cfg.length, cfg.d_embed, t_c, mix._replace(endpoint=share), device)
                         for rows, share in ((samples[:n_end], 1.0), (samples[n_end:], 0.0)) if rows]
                noise = torch.cat([snr for snr, _ in parts]), torch.cat([eps for _, eps in parts])
            with autocast(device, cfg.dtype):
                loss(net, x0, *noise)[0].backward()
            net.zero_grad()
        return once

    ceiling, tokens = matmul_ceiling(device, autocast(device, cfg.dtype)), cfg.batch_size * cfg.length
    flops = {name: tokens * flops_per_token(net.config, 1.0 if name == "mdlm" else n_end / cfg.batch_size) for name in losses}
    return {name: Step(step(name, loss), tokens, flops[name], ceiling) for name, loss in losses.items()}


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
    """Peak GiB that the cross-entropy of features (B, L, C) and its gradients add to what is there before."""
    once, before = head(cfg, device)[cfg.way].run, memory_in_use(device)
    once()
    return memory_in_use(device) - before


# ---- preparation -------------------------------------------------------------------------------------------------------------


def prepare(cfg, device):
    """Tokenise this Python's documentation ten times over -> {name: Step}. Ours is the whole script: it starts, reads and writes files."""
    documents, folder = list(prepare_owt.pydocs(None)[3]) * 10, tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    tok, workers = tokenizer(cfg.tokenizer), cfg.workers or os.cpu_count()
    with open(f"{folder}/text.jsonl", "w") as f:
        f.writelines(json.dumps({"text": text}) + "\n" for text in documents)
    script = [sys.executable, prepare_owt.__file__, "--text", f"{folder}/text.jsonl", "--out_dir", folder, "--tokenizer", cfg.tokenizer,
              "--workers", str(workers)]

    def ours(i):
        subprocess.run([*script, "--name", str(i)], check=True, capture_output=True)

    def tiktoken(i):
        return [np.array(ids, np.uint16) for ids in tok.encode_ordinary_batch(documents, num_threads=workers)]

    def obvious(i):
        return [np.array(tok.encode_ordinary(text), np.uint16) for text in documents]

    tokens = sum(map(len, obvious(0)))
    return {name: Step(step, tokens) for name, step in (("ours", ours), ("tiktoken's batch", tiktoken), ("obvious", obvious))}


# ---- the command line --------------------------------------------------------------------------------------------------------


def peaks(cfg):
    """`memory` of the WAYS at 8 x L tokens, each in a process of its own, as a peak never falls -> {name: GiB}."""
    flags = [f"--{name}={getattr(cfg, name)}" for name in ("vocab_size", "length", "d_model", "n_head", "dtype", "device")]
    command = [sys.executable, __file__, "memory", "--batch_size", "8", *flags]
    return {way: float(subprocess.run([*command, "--way", way], check=True, capture_output=True, text=True).stdout.split()[-1])
            for way in (WAYS if cfg.what == "head" else ("ours", "obvious"))}


def main(cfg, argv):
    *_, device = join_ranks(cfg.device)  # as train.py
    if cfg.what == "memory":
        return print(memory(cfg, device))
    shape = "" if cfg.what == "prepare" else f"{cfg.batch_size} x {cfg.length} tokens, V = {cfg.vocab_size:,}, C = {cfg.d_model}, "
    print(f"{cfg.what}: {shape}on {device}, {torch.get_num_threads()} threads", flush=True)
    held = peaks(cfg) if cfg.what in ("train", "head") else {}  # first: a child process starts from its parent's peak
    variants = {"": cfg, **{f", {flag}": parse_args([*argv, *shlex.split(f"--{flag}")]) for flag in cfg.vs}}
    steps = {name + flag: step._replace(run=attending(step.run, variant.attention)) for flag, variant in variants.items()
             for name, step in {"sample": sample, "train": train, "head": head, "prepare": prepare}[cfg.what](variant, device).items()}
    times = timed(steps, cfg.repeats, device)
    base, ratio_of = ("mdlm", "this / mdlm") if cfg.what == "train" else ("obvious", "obvious / this")
    ratio = {name: (t["median_s"] / times[base]["median_s"]) ** (1 if cfg.what == "train" else -1) for name, t in times.items()}
    rows = [[name, f"{1000 * t['median_s']:.2f}", " to ".join(f"{1000 * q:.2f}" for q in t["quartiles_s"]), f"{ratio[name]:.2f}",
             f"{t['tokens_per_s']:,.0f}" if "tokens_per_s" in t else "-", f"{t['mfu']:.1%}" if "mfu" in t else "-"]
            for name, t in times.items()]
    print(table(["", "ms", "quartiles", ratio_of, "tokens/s", "MFU"], rows))
    if held:
        print("cross-entropy of 8 x L tokens, peak GiB: " + ", ".join(f"{name} {gib:.2f}" for name, gib in held.items()))
    if cfg.out:
        processor = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", platform.machine())
        about = {"processor": processor, "device_used": str(device), "threads": torch.get_num_threads(), "torch": torch.__version__}
        save_json(cfg.out, **about, **asdict(cfg), times=times, ratio=ratio, loss_memory_gib=held)


if __name__ == "__main__":
    run(lambda: main(CFG, sys.argv[1:]))
