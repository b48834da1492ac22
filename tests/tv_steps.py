"""How fast `sde` approaches the language, with drawn tokens and with posterior means: total variation against steps, on an exact toy.

    python tests/tv_steps.py        # a minute; writes results/sde_tv.json, and results/sde_tv.png where matplotlib is installed
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from toys import ExactDenoiser, total_variation

from config import run
from report import pyplot, save_figure, save_json
from sampler import sample
from sampler_config import parse_args

N, STEPS, TOYS = 6000, (1, 2, 4, 8, 16, 32), (3, 4, 5)
CURVES = {"sde, drawn": dict(path="sde", sde_step="drawn"), "sde, mean": dict(path="sde", sde_step="mean"), "mdlm": dict(path="mdlm")}


def measure(toy, settings, steps):
    """Total variation of N samples after so many network calls."""
    cfg = replace(parse_args(["--top_p", "1"]), length=toy.L, steps=steps, sde_top=8.0, **settings)
    *_, state = sample(toy, range(N), cfg)
    return total_variation(toy, state.x)


def main():
    curves = {name: [[measure(ExactDenoiser(V=3, L=2, seed=seed), settings, T) for seed in TOYS] for T in STEPS]
              for name, settings in CURVES.items()}
    floor = [total_variation(toy, toy.draw(N)) for toy in (ExactDenoiser(V=3, L=2, seed=seed) for seed in TOYS)]
    save_json(ROOT / "results" / "sde_tv.json", vocab_size=3, length=2, num_samples=N, steps=STEPS, toy_seeds=TOYS, sde_top_in_t_c=8.0,
              exact_samples=floor, total_variation=curves)
    for name, rows in curves.items():
        print(f"{name:12}", *(f"T={T}: {sum(row) / len(row):.3f}" for T, row in zip(STEPS, rows)))
    print(f"exact samples themselves: {sum(floor) / len(floor):.3f}")
    figure, axes = pyplot().subplots(figsize=(6, 4), layout="constrained")
    for name, rows in curves.items():
        mean = torch.tensor(rows).mean(1)
        axes.errorbar(STEPS, mean, torch.tensor(rows).std(1), label=name, marker="o", capsize=3)
    axes.axhline(sum(floor) / len(floor), color="grey", linestyle=":", label=f"{N:,} exact samples")
    axes.set(xscale="log", yscale="log", xlabel="network calls T", ylabel="total variation from p(x)", xticks=STEPS, xticklabels=STEPS)
    axes.legend()
    save_figure(ROOT / "results" / "sde_tv.png", figure)


if __name__ == "__main__":
    run(main)
