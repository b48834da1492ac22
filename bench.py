"""Measure what is fast against the obvious way to do it, side by side in one run.

    python bench.py sample                       # a sampling step outside the backbone: head, nucleus, draw
    python bench.py sample --out results/bench_sample.json

The obvious way is that of the public MDLM and ReMDM code: logits of every position, softmax, a full sort for the nucleus, float64 Gumbel
noise over the whole vocabulary, at every step. Ours draws only at the positions that the step reveals.
"""

import platform
import time
from dataclasses import dataclass

from config import arg, parse, run


@dataclass(frozen=True)
class Config:
    """What to measure, at the shape of OpenWebText's model."""

    what: str = arg("sample", "what to measure", choices=("sample",), positional=True)
    vocab_size: int = arg(50_257, "V")
    length: int = arg(1024, "L")
    d_model: int = arg(768, "C")
    steps: int = arg(256, "T: a step reveals L / T tokens on average")
    batch_size: int = arg(1, "texts at a time")
    top_p: float = arg(0.9, "nucleus")
    repeats: int = arg(7, "timed repeats after one warm-up; the median counts, the quartiles are its spread")
    out: str = arg("", "write the numbers to this json")
    device: str = arg("", "cpu, cuda, mps; empty picks the best there is")

    def __post_init__(self):
        if min(self.vocab_size, self.length, self.d_model, self.steps, self.batch_size, self.repeats) < 1:
            raise ValueError("sizes and counts must be at least 1")


def parse_args(argv=None):
    return parse(Config, argv, description=__doc__)


CFG = parse_args() if __name__ == "__main__" else None  # before torch is imported: a typo should cost nothing

import torch

from model import pick_device
from paths import PATHS
from report import save_json
from sampler_config import parse_args as sampling_args
from state import State


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


def obvious_draw(model, h, top_p):
    """Tokens at all positions of features h (N, C): softmax, sort, nucleus, float64 Gumbel noise over the vocabulary."""
    probs = model.head(h).softmax(-1)
    ranked, order = probs.sort(-1, descending=True)
    keep = ranked.cumsum(-1) - ranked < top_p
    nucleus = torch.zeros_like(probs).scatter_(-1, order, ranked * keep)
    gumbel = -(-torch.rand(probs.shape, dtype=torch.float64, device=probs.device).log()).log()
    return (nucleus.double().log() + gumbel).argmax(-1)


def timed(step, repeats, device):
    """Seconds of step(i) for i = 0, 1, ...: median and quartiles over `repeats`, after one warm-up, the device being waited for."""
    seconds = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        step(i)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    seconds = sorted(seconds[1:])
    return {"median_s": seconds[len(seconds) // 2], "quartiles_s": [seconds[len(seconds) // 4], seconds[3 * len(seconds) // 4]]}


@torch.no_grad()
def sample(cfg, device):
    """Head, nucleus and draw of one step, with the choice of where to draw. `posterior` also reads the head at the revealed half."""
    model = Head(cfg, device)
    sampling = sampling_args(["--path", "mdlm", "--top_p", str(cfg.top_p), "--steps", str(cfg.steps)])
    given = torch.full((cfg.batch_size, cfg.length), model.mask_id, device=device)

    def ours(i):
        state = State(model, range(cfg.batch_size), sampling, given)
        state.step = i
        up = state.uniform("jump") < 1 / cfg.steps
        state.observe(up, torch.full_like(state.snr, torch.inf))

    def posterior(i):
        state = State(model, range(cfg.batch_size), sampling, given)
        state.step = i
        half = state.uniform("half") < 0.5
        state.x[half] = 0
        state.move(half, torch.full_like(state.snr, torch.inf))
        target = PATHS["posterior"](state, cfg.steps // 2, cfg.steps)
        state.observe(target > state.snr, target)

    def obvious(i):
        obvious_draw(model, model.features.flatten(0, 1), cfg.top_p)

    return {"ours": timed(ours, 3 * cfg.repeats, device), "posterior": timed(posterior, cfg.repeats, device),
            "obvious": timed(obvious, cfg.repeats, device)}


def main(cfg):
    device = pick_device(cfg.device)
    print(f"one step of {cfg.batch_size} x {cfg.length} tokens, V = {cfg.vocab_size:,}, T = {cfg.steps}, on {device}", flush=True)
    result = sample(cfg, device)
    ratio = {name: result["obvious"]["median_s"] / result[name]["median_s"] for name in ("ours", "posterior")}
    for name, times in result.items():
        low, high = times["quartiles_s"]
        print(f"{name:10} {1000 * times['median_s']:10.2f} ms   quartiles {1000 * low:.2f} to {1000 * high:.2f}")
    print(f"obvious / ours {ratio['ours']:.1f}, obvious / posterior {ratio['posterior']:.1f}")
    if cfg.out:
        about = {"processor": platform.processor() or platform.machine(), "device": str(device), "threads": torch.get_num_threads(),
                 "torch": torch.__version__}
        save_json(cfg.out, **about, **cfg.__dict__, **result, ratio=ratio)


if __name__ == "__main__":
    run(lambda: main(CFG))
