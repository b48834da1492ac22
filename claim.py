"""From judged texts to the claim: quality against network calls at matched entropy, and the ratio of calls at equal quality.

A cell (model/path, T) holds arrays (S, 2, n): S training seeds, two temperatures, n texts each. Low NLL at low entropy is repetition, so
every cell is read at the entropy of the data, along the line through its two temperatures. Errors are bootstrapped over training seeds
and texts; three seeds are few, so each seed's own value is kept beside them.
"""

import math
import zlib

import numpy as np

from metrics import mauve, ngram_js

REPLICATES = 400
PUBLISHED = "remdm"  # the path with ReMDM's published settings


def at_entropy(nll, entropy, target):
    """Mean NLL of a cell's texts (S, 2, n), moved to the entropy `target` along the line through its two temperatures; nan where the
    two hardly differ in entropy, or where the line would have to be followed far beyond them."""
    step = entropy[:, 1].mean() - entropy[:, 0].mean()
    gap = target - entropy.mean()
    if abs(step) < 0.01 or abs(gap) > 2 * abs(step):
        return math.nan
    return nll.mean() + gap * (nll[:, 1].mean() - nll[:, 0].mean()) / step


def resampled(shape, key, replicate):
    """Indices that draw training seeds, and texts within each, with replacement. Cells of one model share the draw of the seeds."""
    S, _, n = shape
    seeds, texts = (np.random.default_rng([replicate, zlib.crc32(of.encode())]) for of in (key[0].split("/")[0], str(key)))
    seeds, texts = seeds.integers(S, size=S), texts.integers(n, size=shape)
    return seeds[:, None, None], np.array([0, 1])[None, :, None], texts


def spread(draws):
    """The standard deviation of bootstrap draws; nan where most of them could not be matched."""
    draws = draws[~np.isnan(draws)]
    return float(draws.std()) if len(draws) > REPLICATES / 2 else math.nan


def bootstrap(cells, target):
    """{key: {"nll", "entropy", "nfe"}} -> {key: matched NLL in REPLICATES resamples (nan where it cannot be matched)}."""
    out = {}
    for key, c in cells.items():
        draws = [resampled(c["nll"].shape, key, b) for b in range(REPLICATES)]
        out[key] = np.array([at_entropy(c["nll"][at], c["entropy"][at], target) for at in draws])
    return out


def calls_to_reach(curve, value):
    """The fewest network calls at which a curve [(calls, NLL), ...] is at `value` or below, between its points linear in log calls; inf
    where it never is. Below its first point, the first point's calls: nothing is known of fewer."""
    curve = sorted(curve)
    best = np.minimum.accumulate([y for _, y in curve])
    for i, (calls, _) in enumerate(curve):
        if best[i] <= value:
            if i == 0 or best[i - 1] <= best[i]:
                return calls
            share = (best[i - 1] - value) / (best[i - 1] - best[i])
            return math.exp((1 - share) * math.log(curve[i - 1][0]) + share * math.log(calls))
    return math.inf


def envelope(values, nfe, names, steps):
    """The best of several curves at each T -> [(calls, NLL)]; a different path may win at each T, which favours the baseline."""
    rows = [[(values[name, T], nfe[name, T]) for name in names if values[name, T] == values[name, T]] for T in steps]
    return [(calls, y) for y, calls in (min(row) for row in rows if row)]


def ratios(values, nfe, ours, names, at, steps):
    """Calls that the best of `names` needs for what `ours` reaches at each T of `at`, over the calls of `ours`; inf if never."""
    curve = envelope(values, nfe, names, steps)
    return [calls_to_reach(curve, values[ours, T]) / nfe[ours, T] for T in at]


def ratio_report(point, boot, nfe, ours, names, at, steps):
    """The NFE ratio at equal quality at each T, with the 95% bootstrap interval, and its geometric mean over T. Infinity is "more than the
    longest run": it counts as what that run would give, so that the mean is a lower bound, and `censored` says how often that was."""
    longest = max(nfe[name, steps[-1]] for name in names)
    cap = np.array([longest / nfe[ours, T] for T in at])
    draws = np.array([ratios({key: x[b] for key, x in boot.items()}, nfe, ours, names, at, steps) for b in range(REPLICATES)])
    draws = draws[~np.isnan(draws).any(1)]
    value = np.array(ratios(point, nfe, ours, names, at, steps))

    def summary(value, draws, cap):
        low, high = np.percentile(np.minimum(draws, cap), [2.5, 97.5])
        return {"ratio": min(value, cap), "interval": [low, high], "censored": float(np.isinf(draws).mean())}

    each = {T: summary(value[i], draws[:, i], cap[i]) for i, T in enumerate(at)}
    mean = np.exp(np.log(np.minimum(draws, cap)).mean(1))
    low, high = np.percentile(mean, [2.5, 97.5])
    return {"at": each, "geometric_mean": math.exp(np.log(np.minimum(value, cap)).mean()), "interval": [low, high]}


def describe(c, target, references, of_references):
    """The numbers of one cell -> dict. [value, error]: of nll by bootstrap, of mauve over k-means seeds, of js_4 by jackknife."""
    own = [at_entropy(c["nll"][s : s + 1], c["entropy"][s : s + 1], target) for s in range(len(c["nll"]))]
    areas = mauve(c["features"], of_references, range(3))
    return {"num_samples": c["nll"].size, "nfe": float(c["nfe"].mean()), "nll_by_seed": own,
            "raw_nll": [float(c["nll"].mean()), float(c["nll"].std() / c["nll"].size ** 0.5)],
            "entropy": [float(c["entropy"].mean()), float(c["entropy"].std() / c["entropy"].size ** 0.5)],
            "mauve": [areas.mean().item(), areas.std().item()], "js_4": list(ngram_js(c["texts"], references, 4))}


def duel(table, boot, ours, other):
    """One cell against another -> differences (negative: ours is better) of NLL with its error, of 4-gram JS, and of MAUVE (positive:
    better), and whether every training seed of ours beats every one of the other's."""
    a, b = table[ours], table[other]
    return {"ours": f"{ours[0]}/{ours[1]}", "other": f"{other[0]}/{other[1]}", "nfe": [a["nfe"], b["nfe"]],
            "nll": [a["nll"][0] - b["nll"][0], spread(boot[ours] - boot[other])],
            "every_seed": bool(max(a["nll_by_seed"]) < min(b["nll_by_seed"])),
            "js_4": [a["js_4"][0] - b["js_4"][0], math.hypot(a["js_4"][1], b["js_4"][1])],
            "mauve": [a["mauve"][0] - b["mauve"][0], math.hypot(a["mauve"][1], b["mauve"][1])],
            "num_samples": [a["num_samples"], b["num_samples"]]}


def of_model(cells, model):
    return list(dict.fromkeys(name for name, _ in cells if name.startswith(f"{model}/")))


def opponents(point, steps, length):
    """The cells of target (a): the best DSL path at T <= length / 4 against the best sampler of the continued MDLM at 4 T, and against
    ReMDM's published settings at 8 T -> [(ours, other)]. `point` is {(model/path, T): matched NLL}."""
    at = [T for T in steps if T <= length / 4]

    def value(*key):
        return np.nan_to_num(point.get(key, math.nan), nan=np.inf)

    ours = min(of_model(point, "dsl"), key=lambda name: np.mean([value(name, T) for T in at]))
    best = [((ours, T), (min(of_model(point, "mdlm_more"), key=lambda name: value(name, 4 * T)), 4 * T)) for T in at if 4 * T in steps]
    return best + [((ours, T), (f"mdlm_more/{PUBLISHED}", 8 * T)) for T in at if 8 * T in steps]


def compare_all(cells, steps, length, target, references, of_references):
    """All cells {(model/path, T): {"nll", "entropy", "nfe": (S, 2, n), "features", "texts"}} -> {"cells", "against_best",
    "against_published", "same_rule", "duels"}. `references` are at least as many real texts as a cell has, `of_references` their
    features."""
    boot, table = bootstrap(cells, target), {}
    for key, c in cells.items():
        n = c["nll"].size
        table[key] = {"nll": [at_entropy(c["nll"], c["entropy"], target), spread(boot[key])],
                      **describe(c, target, references[:n], of_references[:n])}
    point, nfe = {key: row["nll"][0] for key, row in table.items()}, {key: row["nfe"] for key, row in table.items()}
    pairs, at, baselines = opponents(point, steps, length), [T for T in steps if T <= length / 4], of_model(cells, "mdlm_more")
    ours = pairs[0][0][0]
    same = {name.split("/")[1]: {T: [point[ours_, T] - point[name, T], spread(boot[ours_, T] - boot[name, T])] for T in steps}
            for name in baselines for ours_ in [name.replace("mdlm_more", "dsl")]}
    return {"best_path": ours, "against_best": ratio_report(point, boot, nfe, ours, baselines, at, steps),
            "against_published": ratio_report(point, boot, nfe, ours, [f"mdlm_more/{PUBLISHED}"], at, steps),
            "same_rule": same, "duels": [duel(table, boot, *pair) for pair in pairs],
            "cells": {f"{name}/{T}": row for (name, T), row in table.items()}}


# ---- what a reader sees ------------------------------------------------------------------------------------------------------


def claim_table(found, steps):
    """Matched NLL, a row for each curve and a column for each T."""
    names = list(dict.fromkeys(name.rsplit("/", 1)[0] for name in found["cells"]))
    rows = [(name, *(found["cells"].get(f"{name}/{T}", {}).get("nll") for T in steps)) for name in names]
    return ("NLL at the data's entropy", *steps), rows


def claim_figure(plt, found, of_data):
    """NLL at the data's entropy against network calls: MDLM's samplers on the left, DSL's on the right; DSL's best on both."""
    calls = [row["nfe"] for row in found["cells"].values()]
    figure, panels = plt.subplots(1, 2, figsize=(12, 5), sharex=True, sharey=True, layout="constrained")
    for axes, model, title in zip(panels, ("mdlm_more", "dsl"), ("MDLM, continued", "DSL, fine-tuned")):
        keys = [tuple(key.rsplit("/", 1)) for key in found["cells"]]
        for i, name in enumerate(of_model(keys, model) + (of_model(keys, "mdlm") if model == "mdlm_more" else [])):
            rows = [row for key, row in found["cells"].items() if key.startswith(f"{name}/")]
            x, y, error = zip(*((row["nfe"], *row["nll"]) for row in rows))
            best = dict(linewidth=2.5, zorder=3) if name == found["best_path"] else {}
            axes.errorbar(x, y, error, marker="o", markersize=3, capsize=2, color=f"C{i % 10}", linestyle="-" if i < 10 else "--",
                          label=name.split("/")[1] + (", not continued" if name.startswith("mdlm/") else ""), **best)
            for other in panels[panels != axes] if name == found["best_path"] else ():
                other.plot(x, y, color="black", linewidth=1, linestyle=":", label=f"DSL, {name.split('/')[1]}")
        for key, row in found["cells"].items():
            if key.startswith("ar/"):
                axes.plot(row["nfe"], row["nll"][0], "k^", label="AR")
        axes.axhline(of_data, color="grey", linewidth=0.8, label="data")
        axes.set(xscale="log", xlim=(0.8 * min(calls), 1.25 * max(calls)), xlabel="network calls per text", title=title)
        axes.legend(fontsize=7, ncols=2)
    panels[0].set_ylabel("judge's NLL at the data's entropy, nats per token")
    return figure
