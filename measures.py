"""Does the claim hang on its measure? Texts of two samplers at many temperatures, compared by five notions of quality.

    python measures.py --data english --claim results/claim_D128_again --out_dir out/each_again     # after make reproduce SEEDS="3 4 5"

A sampler's divergence from the judge is the judge's NLL of its texts less their entropy rate, which nobody knows: low NLL may be bought
with little variety. reproduce.py reads the NLL where the unigram entropy of a text is that of real text. Nearer to the rate, and below
that, is the entropy of a token given the one before it, or two, of all texts pooled. So here the NLL is read where each of these three is
that of real text; and, which needs no such reading, the 4-gram Jensen-Shannon divergence and MAUVE at the temperature that is best by it.
"""

import math
from dataclasses import asdict, dataclass

from config import Problem, arg, parse, run
from reproduce_config import Config as Claim
from reproduce_config import as_it_was, claim_of, sampling, settings_at


@dataclass(frozen=True)
class Config:
    """Of which claim, which cells, and how many texts."""

    scale: str = arg("cpu", "as in reproduce.py", choices=("cpu", "gpu"))
    data: str = arg("pydocs", "as in reproduce.py")
    data_dir: str = arg("data", "as in reproduce.py")
    out_dir: str = arg("out/reproduce", "as in reproduce.py: its checkpoints are sampled, and its judge reads the texts")
    claim: str = arg("results/claim", "--results of reproduce.py, whose settings are used")
    ours: str = arg("dsl/mend", "model/path")
    at: tuple[int, ...] = arg((8, 16), "T of ours")
    other: str = arg("mdlm_more/mend-recorded", "what it is compared with, model/path")
    calls: tuple[int, ...] = arg((4, 8, 16, 32, 64), "T of the other")
    factors: tuple[float, ...] = arg((0.7, 0.85, 1.0, 1.15, 1.3, 1.6), "of the temperature at which unigram entropy was matched")
    texts: int = arg(170, "texts of each training seed at each temperature")
    results: str = arg("results/measures", "where the table and the figure go: NAME.json, NAME.png")
    workers: int = arg(0, "as in reproduce.py")

    def __post_init__(self):
        if min(self.texts, *self.at, *self.calls) < 2 or min(self.factors) <= 0 or self.workers < 0:
            raise ValueError("--texts, --at and --calls must be at least 2, --factors above 0, and --workers not negative")


CFG = parse(Config, description=__doc__) if __name__ == "__main__" else None  # before torch is imported: a typo should cost nothing

import numpy as np
from tqdm import tqdm

from claim import calls_to_reach, difference
from eval_mauve import matched
from metrics import conditional_entropy, entropy, mauve, ngram_js
from report import pyplot, save_figure, save_json, table
from reproduce import measure, prepare, sample_all

MATCHED = {"entropy": "letters of a text", "entropy_2": "a letter after another", "entropy_3": "a letter after two"}  # of which entropy
LOWEST = {"js_4": "4-gram JS", "not_mauve": "1 - MAUVE"}  # at the best temperature


def numbers(texts, nll, features, real, of_real):
    """A sampler's texts at one temperature, against the first of the real ones, as many -> {measure: float}."""
    n = len(texts)
    return {"nll": float(nll.mean()), "entropy": entropy(texts).mean().item(), "entropy_2": conditional_entropy(texts, 2),
            "entropy_3": conditional_entropy(texts, 3), "js_4": ngram_js(texts, real[:n], 4)[0],
            "not_mauve": 1 - mauve(features, of_real[:n], range(3)).mean().item()}


def of_real_text(real, n):
    """{entropy: what it is of n real texts}: entropies of few texts are too low, so theirs are compared with those of as many."""
    parts = [real[i : i + n] for i in range(0, len(real) - n + 1, n)]
    return {"entropy": entropy(real).mean().item(), **{f"entropy_{k}": float(np.mean([conditional_entropy(part, k) for part in parts]))
                                                       for k in (2, 3)}}


def qualities(points, target):
    """A sampler's `numbers` at each temperature -> {measure: float, lower is better}; nan where the entropy of real text is not reached."""
    read = {what: matched([(p[what], 0, p["nll"], 0) for p in points], (target[what], 0)) for what in MATCHED}
    return {what: at[0] if at else math.nan for what, at in read.items()} | {what: min(p[what] for p in points) for what in LOWEST}


def look(c, shape, real, of_real):
    """A cell's texts, of the `shape` (seeds, temperatures, n) -> {"all": `numbers` at each temperature, "by_seed": as much of each}."""
    index = np.arange(len(c["texts"])).reshape(shape)

    def of(which):
        return numbers([c["texts"][i] for i in which], c["nll"][which], c["features"][which], real, of_real)

    return {"all": [of(which.ravel()) for which in index.swapaxes(0, 1)], "by_seed": [[of(which) for which in seed] for seed in index]}


def ratio(mine, theirs, calls):
    """How many times the `calls` of ours the other needs for what ours is worth -> float. `theirs` is its curve, [(calls, value)]; what it
    never reaches is worth its longest run, what is reached by its shortest that."""
    theirs = [(x, y) for x, y in theirs if not math.isnan(y)]
    return min(calls_to_reach(theirs, mine), max((x for x, _ in theirs), default=math.nan)) / calls


def compare(found, cfg):
    """{(model/path, T): {"nfe", "all": qualities, "by_seed": [qualities]}} -> {measure: {T: {"ratio", "by_seed", "ends", "student"}}}: the
    `ratio`, of all texts and of each seed; its ends, which it cannot pass; its 95% interval by Student's t, nan with a seed at an end."""
    out = {}
    for what in (*MATCHED, *LOWEST):
        for T in cfg.at:
            def times(of, what=what, T=T):
                theirs = [(found[cfg.other, at]["nfe"], of(found[cfg.other, at])[what]) for at in cfg.calls]
                return ratio(of(found[cfg.ours, T])[what], theirs, found[cfg.ours, T]["nfe"])

            each = [times(lambda c, s=s: c["by_seed"][s]) for s in range(len(found[cfg.ours, T]["by_seed"]))]
            low, high = (pick(found[cfg.other, at]["nfe"] for at in cfg.calls) / found[cfg.ours, T]["nfe"] for pick in (min, max))
            middle, half = difference(np.log(each), np.zeros(len(each)), paired=True)
            inside = all(1.01 * low <= x < 0.99 * high for x in each)
            out.setdefault(what, {})[T] = {"ratio": times(lambda c: c["all"]), "by_seed": each, "ends": [low, high],
                                           "student": [math.exp(middle - half), math.exp(middle + half)] if inside else [math.nan] * 2}
    return out


def draw(plt, seen, real, names):
    """NLL against each entropy, a curve of temperatures for each cell."""
    figure, panels = plt.subplots(1, len(MATCHED), figsize=(5 * len(MATCHED), 4.5), sharey=True, layout="constrained")
    for axes, (what, of) in zip(panels, MATCHED.items()):
        for (name, T), points in seen.items():
            x, y = zip(*((p[what], p["nll"]) for p in points["all"]))
            axes.plot(x, y, marker="o", markersize=3, color=f"C{int(math.log2(T)) % 10}", linestyle="-" if name == names[0] else "--",
                      label=f"{name}, T = {T}")
        axes.plot(real[what], real["nll"], "k*", label="real text")
        axes.axvline(real[what], color="grey", linewidth=0.8)
        axes.set(xlabel=f"entropy of {of.replace('letter', 'token')}, nats")
    panels[0].set_ylabel("judge's NLL, nats per token")
    panels[0].legend(fontsize=7)
    return figure


def main(cfg):
    of = Claim(scale=cfg.scale, data=cfg.data, data_dir=cfg.data_dir, out_dir=cfg.out_dir, results=cfg.claim, workers=cfg.workers,
               cell=f"{cfg.ours}/{cfg.at[0]}")
    stored = claim_of(of)
    of, keys = as_it_was(of, stored["config"]), [(cfg.ours, T) for T in cfg.at] + [(cfg.other, T) for T in cfg.calls]
    curves = {curve.name: curve for curve in of.curves if curve.name in stored["tuning"]}
    if cfg.other not in curves:
        raise Problem(f"{cfg.claim}.json has no {cfg.other}: choose --other of {', '.join(curves)}")
    judge, real, of_real, (nll, _), _ = prepare(of)
    if (n := cfg.texts * len(of.training_seeds)) > len(real):
        raise Problem(f"{n} texts at a temperature are compared with as many real ones, of which there are {len(real)}: lower --texts")
    plt, plan, shape = pyplot(), {}, (len(of.training_seeds), len(cfg.factors), cfg.texts)
    for name, T in keys:
        setting, temperature = settings_at(stored["tuning"][name], T)
        plan[name, T] = [[sampling(of, curves[name], seed, T, temperature * factor, setting, cfg.texts, "_measures")
                          for factor in cfg.factors] for seed in of.training_seeds]
    print(f"{len(plan)} cells at {len(cfg.factors)} temperatures, {n} texts of {len(of.training_seeds)} seeds at each; models of "
          f"{cfg.out_dir}, settings of {cfg.claim}.json", flush=True)
    sample_all(of, [task for tasks in plan.values() for task in tasks], "sampling")
    real_all, real_seed = (of_real_text(real, texts) for texts in (n, cfg.texts))
    seen, found = {}, {}
    for key, tasks in tqdm(plan.items(), "comparing with real text", leave=False):
        c = measure(of, sum(tasks, []), judge)
        seen[key] = look(c, shape, real, of_real)
        found[key] = {"nfe": float(c["nfe"].mean()), "all": qualities(seen[key]["all"], real_all),
                      "by_seed": [qualities(points, real_seed) for points in seen[key]["by_seed"]]}
    ratios = compare(found, cfg)
    save_json(f"{cfg.results}.json", config=asdict(cfg), seeds=of.training_seeds, num_samples=n, real={"nll": nll, **real_all},
              cells={f"{name}/{T}": found[name, T] | {"temperatures": seen[name, T]} for name, T in keys}, ratios=ratios)
    what = MATCHED | LOWEST
    print(table(("NLL by the entropy of, or", *(f"{name}/{T}" for name, T in keys), *(f"ratio at {T}" for T in cfg.at)),
                [(what[w], *(found[key]["all"][w] for key in keys), *(ratios[w][T]["ratio"] for T in cfg.at)) for w in what]))
    save_figure(f"{cfg.results}.png", draw(plt, seen, {"nll": nll, **real_all}, (cfg.ours, cfg.other)))


if __name__ == "__main__":
    run(lambda: main(CFG))
