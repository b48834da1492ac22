"""From judged texts to the claim: quality against network calls at matched entropy, and the ratio of calls at equal quality.

A cell (model/path, T) holds arrays (S, 2, n): S training seeds, two temperatures, n texts each. Low NLL at low entropy is repetition, so
every cell is read at the entropy of the data, along the line through its two temperatures. Errors are bootstrapped over training seeds
and texts within them, which sees the texts' noise twice and S seeds as too alike: it is sqrt(2 - 1/S) of the true error where only texts
differ, sqrt(1 - 1/S) where only seeds do. So each seed's own value, and the error by texts alone, are kept beside it. Where models of
one seed have more in common than their number, an MDLM from which they go on or, from scratch, weights that they start with and the texts
of every step, they are `paired`: a resample draws the same seeds of all.
"""

import itertools
import math
import zlib

import numpy as np
from tqdm import tqdm

from eval_mauve import distances
from metrics import mauve, ngram_js

REPLICATES = 400
T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}  # number of values -> Student's t
PUBLISHED = "remdm"  # the path with ReMDM's published settings
BASELINE, CONTROL = "mdlm_more", "masked"  # what DSL is compared with: MDLM; and DSL's unweighted loss on masked texts alone


def at_entropy(nll, entropy, target):
    """Mean NLL of a cell's texts (S, 2, n), moved to the entropy `target` along the line through its two temperatures; nan where the
    hotter is hardly more varied than the colder, or where the line would have to be followed far beyond them."""
    step = entropy[:, 1].mean() - entropy[:, 0].mean()
    gap = target - entropy.mean()
    if step < 0.01 or abs(gap) > 2 * step:
        return math.nan
    return nll.mean() + gap * (nll[:, 1].mean() - nll[:, 0].mean()) / step


def place(entropy, target):
    """Where the entropy `target` lies between a cell's two temperatures: 0 is the colder's, 1 the hotter's; nan if they hardly differ."""
    low, high = entropy.mean((0, 2))
    return float((target - low) / (high - low)) if high - low >= 0.01 else math.nan


def by_seed(c, target):
    """`at_entropy` of each training seed's texts alone -> list of S."""
    return [at_entropy(c["nll"][s : s + 1], c["entropy"][s : s + 1], target) for s in range(len(c["nll"]))]


def resampled(shape, key, replicate, seeds=True, paired=False):
    """Indices that draw training seeds, or keep them all, and texts within each, with replacement: the same texts of both temperatures,
    which were drawn with the same random numbers. Cells of one model, or of all if `paired`, share the draw of the seeds."""
    S, _, n = shape
    alike = "" if paired else key[0].split("/")[0]
    by_model, by_cell = (np.random.default_rng([replicate, zlib.crc32(of.encode())]) for of in (alike, str(key)))
    drawn = by_model.integers(S, size=S) if seeds else np.arange(S)
    return drawn[:, None, None], np.array([0, 1])[None, :, None], by_cell.integers(n, size=(S, 1, n))


def spread(draws):
    """The standard deviation of bootstrap draws; nan where most of them could not be matched."""
    draws = draws[~np.isnan(draws)]
    return float(draws.std()) if len(draws) > REPLICATES / 2 else math.nan


def bootstrap(cells, target, seeds=True, paired=False):
    """{key: {"nll", "entropy", "nfe"}} -> {key: matched NLL in REPLICATES resamples (nan where it cannot be matched)} of training seeds and
    texts or, without `seeds`, of texts alone."""
    out = {}
    for key, c in tqdm(cells.items(), "bootstrap", leave=False):
        draws = [resampled(c["nll"].shape, key, b, seeds, paired) for b in range(REPLICATES)]
        out[key] = np.array([at_entropy(c["nll"][at], c["entropy"][at], target) for at in draws])
    return out


def calls_to_reach(curve, value):
    """The fewest network calls at which a curve [(calls, NLL), ...] is at `value` or below, between its points linear in log calls, where a
    point that is worse than one before it counts as that one; inf where it never is, nan where there is nothing to compare. Below its
    first point, the first point's calls: nothing is known of fewer."""
    if not curve or math.isnan(value):
        return math.nan
    curve = sorted(curve)
    best = np.minimum.accumulate([y for _, y in curve])
    for i, (calls, _) in enumerate(curve):
        if best[i] <= value:
            if i == 0:
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


def known_calls(values, nfe, names, steps):
    """The calls of the shortest run whose NLL is known, and of the longest of the one of `names` that gets lowest; nan where none is."""
    known = [(values[name, T], name, nfe[name, T]) for name in names for T in steps if not math.isnan(values[name, T])]
    _, best, _ = min(known, default=(math.nan, "", math.nan))
    shortest = next((calls for calls, _ in envelope(values, nfe, names, steps)), math.nan)
    return shortest, max((calls for _, name, calls in known if name == best), default=math.nan)


def of_seeds(seeds, nfe, ours, names, T, steps):
    """What `ratio_report` says of the ratio at T seed by seed. Cells that are not known between those that are, are passed over."""
    found = []
    for values in seeds:
        ratio, (shortest, longest) = ratios(values, nfe, ours, names, [T], steps)[0], known_calls(values, nfe, names, steps)
        bound = ">" if math.isinf(ratio) else "<" if ratio < 1.01 * shortest / nfe[ours, T] else ""
        found.append((longest / nfe[ours, T] if bound == ">" else ratio, bound))
    ratio, bounds = zip(*found)
    return {"by_seed": list(ratio), "bounds": list(bounds), "student": student(found)}


def ratio_report(point, boot, nfe, ours, names, at, steps, seeds=()):
    """The NFE ratio at equal quality at each T, with the 95% bootstrap interval, and its geometric mean over T but the first, at which it
    cannot fall below 1. Infinity is "more than the longest run that is known of the best of `names`": it counts as what that would give,
    and `censored` says how often that was; `floored` how often the baseline's shortest run was good enough already, so that it might
    have needed fewer calls, or was better than ours; `bound` is ">" or "<" where the ratio itself is such a limit, else "". nan where ours
    could not be matched in entropy; `unmatched` are all such cells, which the baseline's curve lacks.
    With `seeds`, [{(model/path, T): NLL}], also the ratio `by_seed`, its `bounds`, by what is known of that seed's runs, and, if there are
    none, its interval by Student's t: that of the bootstrap is hardly wider than the range of a few seeds. `unmatched_by_seed` are the
    cells that each seed's curves lack, which may make the baseline's worse than it is."""
    shortest, longest = known_calls(point, nfe, names, steps)
    cap, floor = (np.array([calls / nfe[ours, T] for T in at]) for calls in (longest, shortest))
    draws = np.array([ratios({key: x[b] for key, x in boot.items()}, nfe, ours, names, at, steps) for b in range(REPLICATES)])
    value = np.array(ratios(point, nfe, ours, names, at, steps))
    seen = [i for i, T in enumerate(at) if T > min(steps)] or list(range(len(at)))
    whole = draws[~np.isnan(draws[:, seen]).any(1)][:, seen]

    def summary(value, draws, cap, floor):
        draws, bound = draws[~np.isnan(draws)], ">" if math.isinf(value) else "<" if value < 1.01 * floor else ""
        interval = censored = floored = math.nan
        if known := len(draws) > REPLICATES / 2:
            interval = np.percentile(np.minimum(draws, cap), [2.5, 97.5])
            censored, floored = float(np.isinf(draws).mean()), float((draws < 1.01 * floor).mean())
        return {"ratio": np.minimum(value, cap), "bound": bound, "interval": [*interval] if known else [math.nan] * 2,
                "censored": censored, "floored": floored}

    each = {T: summary(value[i], draws[:, i], cap[i], floor[i]) for i, T in enumerate(at)}
    for T in at if seeds else ():
        each[T] |= of_seeds(seeds, nfe, ours, names, T, steps)
    means = np.exp(np.log(np.minimum(whole, cap[seen])).mean(1)) if len(whole) > REPLICATES / 2 else [math.nan]
    low, high = np.percentile(means, [2.5, 97.5])
    asked = [*((ours, T) for T in at), *itertools.product(names, steps)]
    missing, *each_missing = ([f"{name}/{T}" for name, T in asked if math.isnan(values[name, T])] for values in (point, *seeds))
    return {"at": each, "geometric_mean": math.exp(np.log(np.minimum(value, cap)[seen]).mean()), "interval": [low, high],
            "matched": len(whole) / REPLICATES, "unmatched": missing} | ({"unmatched_by_seed": each_missing} if seeds else {})


def describe(c, target, references, of_references):
    """The numbers of one cell -> dict, every column of eval_mauve.py's table among them. Where `place` is outside of 0 to 1 its NLL is
    extrapolated. [value, error]: of mauve over k-means seeds, of n-gram JS by jackknife, else over texts, up to 1.4 times
    too small, as those of an index share random numbers at both temperatures and are taken for independent. All but nll_by_seed are of all
    its texts as they are, at a mean entropy that is near the target and stands beside them."""
    areas, perplexity = mauve(c["features"], of_references, range(3)), math.exp(c["nll"].mean())
    return {"num_samples": c["nll"].size, "nfe": float(c["nfe"].mean()), "nll_by_seed": by_seed(c, target),
            "place": place(c["entropy"], target), "gen_ppl": [perplexity, perplexity * float(c["nll"].std() / c["nll"].size ** 0.5)],
            "mauve": [areas.mean().item(), areas.std().item()], **distances(c["texts"], references)}


def difference(a, b, paired=False):
    """Mean difference of values, one of each training seed and independent but if `paired`, and the half-width of its 95% interval by
    Student's t with S - 1 degrees of freedom: with six seeds 2.6 standard errors, with three 4.3."""
    a, b = np.array(a), np.array(b)
    variance = (a - b).var(ddof=1) if paired else a.var(ddof=1) + b.var(ddof=1)
    return [float(a.mean() - b.mean()), T_95[len(a)] * float((variance / len(a)) ** 0.5)]


def student(by_seed):
    """The 95% interval of the seeds' ratios [(ratio, bound)], Student's t of their logarithms; nan where one of them is only a bound."""
    middle, half = difference(np.log([ratio for ratio, _ in by_seed]), np.zeros(len(by_seed)), paired=True)
    return [math.nan if any(bound for _, bound in by_seed) else math.exp(middle + x) for x in (-half, half)]


def duel(table, cells, pair, references, of_references, paired=False):
    """One cell against another -> differences (ours - other) of NLL at the data's entropy, of 4-gram JS (of both less is better) and of
    MAUVE, each with the half-width of its 95% interval over training seeds; and whether each seed of ours beats all of the other's or, if
    `paired`, its own (None where one of them could not be matched)."""
    a, b = (table[key] for key in pair)

    def each(key):
        c, n = cells[key], cells[key]["nll"][0].size  # texts of a seed
        parts = [slice(i, i + n) for i in range(0, c["nll"].size, n)]
        return {"mauve": [mauve(c["features"][part], of_references[:n], range(1)).mean().item() for part in parts],
                "js_4": [ngram_js(c["texts"][part], references[:n], 4)[0] for part in parts]}

    mine, theirs = map(each, pair)
    gaps = np.subtract(a["nll_by_seed"], b["nll_by_seed"]) if paired else np.subtract.outer(a["nll_by_seed"], b["nll_by_seed"])
    return {"ours": f"{pair[0][0]}/{pair[0][1]}", "other": f"{pair[1][0]}/{pair[1][1]}", "nfe": [a["nfe"], b["nfe"]],
            "nll": difference(a["nll_by_seed"], b["nll_by_seed"], paired), "entropy": [a["entropy"][0], b["entropy"][0]],
            "every_seed": None if np.isnan(gaps).any() else bool((gaps < 0).all()),
            **{what: difference(mine[what], theirs[what], paired) for what in mine}, "num_samples": [a["num_samples"], b["num_samples"]]}


def of_model(cells, model):
    return list(dict.fromkeys(name for name, _ in cells if name.startswith(f"{model}/")))


def opponents(point, ours, steps, length):
    """The cells of target (a): DSL's path `ours` at T <= length / 4 against the best sampler of the BASELINE at 4 T, and against
    ReMDM's published settings at 8 T -> [(ours, other)]. `point` is {(model/path, T): matched NLL}."""
    at = [T for T in steps if T <= length / 4]

    def value(*key):
        return np.nan_to_num(point[key], nan=np.inf)

    best = [((ours, T), (min(of_model(point, BASELINE), key=lambda name: value(name, 4 * T)), 4 * T)) for T in at if 4 * T in steps]
    return best + [((ours, T), (f"{BASELINE}/{PUBLISHED}", 8 * T)) for T in at if 8 * T in steps]


def compare_all(cells, pairs, steps, length, target, references, of_references, paired=False):
    """All cells {(model/path, T): {"nll", "entropy", "nfe": (S, 2, n), "features", "texts"}} and the `pairs` of `opponents` -> {"cells",
    "against_best", "against_published", "published_against_published" (the paper's literal claim), "same_rule", "controls" (these four
    against another model), "duels"}. `references` are at least as many real texts as a cell has, `of_references` their features."""
    boot, by_texts, table = bootstrap(cells, target, paired=paired), bootstrap(cells, target, seeds=False), {}
    for key, c in tqdm(cells.items(), "comparing with the data", leave=False):
        n = c["nll"].size
        table[key] = {"nll": [at_entropy(c["nll"], c["entropy"], target), spread(boot[key])], "text_stderr": spread(by_texts[key]),
                      **describe(c, target, references[:n], of_references[:n])}
    point, nfe = {key: row["nll"][0] for key, row in table.items()}, {key: row["nfe"] for key, row in table.items()}
    at, ours = [T for T in steps if T <= length / 4], pairs[0][0][0]
    seeds = [dict(zip(table, values)) for values in zip(*(row["nll_by_seed"] for row in table.values()))] if paired else ()

    def against(model):
        names = of_model(cells, model)
        same = {name.split("/")[1]: {T: [point[mine, T] - point[name, T], spread(boot[mine, T] - boot[name, T])] for T in steps}
                for name in names for mine in [name.replace(model, "dsl")] if (mine, steps[0]) in point}
        asked = {"against_best": (ours, names), "against_published": (ours, [f"{model}/{PUBLISHED}"]),
                 "published_against_published": (f"dsl/{PUBLISHED}", [f"{model}/{PUBLISHED}"])}
        return {what: ratio_report(point, boot, nfe, *who, at, steps, seeds) for what, who in asked.items()} | {"same_rule": same}

    return {"best_path": ours, **against(BASELINE), "controls": {CONTROL: against(CONTROL)},
            "duels": [duel(table, cells, pair, references, of_references, paired) for pair in pairs],
            "cells": {f"{name}/{T}": row for (name, T), row in table.items()}}


# ---- what a reader sees ------------------------------------------------------------------------------------------------------


def claim_table(found, steps):
    """Matched NLL, a row for each curve and a column for each T."""
    names = list(dict.fromkeys(name.rsplit("/", 1)[0] for name in found["cells"]))
    rows = [(name, *(found["cells"].get(f"{name}/{T}", {}).get("nll") for T in steps)) for name in names]
    return ("NLL at the data's entropy", *steps), rows


def ratio_lines(found):
    """A line for each comparison: the ratio of calls at each T and its interval by bootstrap and, if known, by Student's t over the seeds;
    ">" and "<" where what a number would be is cut off, by the longest run that was asked or by the shortest."""
    for model, of in {BASELINE: found, **found["controls"]}.items():
        for name in ("against_best", "against_published", "published_against_published"):
            each = []
            for T, at in of[name]["at"].items():
                (low, high), never, soon = at["interval"], at["censored"], at["floored"]
                middle = f"{at['bound']}{at['ratio']:.1f}"
                ends = f"{'>' * (never > 0.975) or '<' * (soon > 0.025)}{low:.1f} to {'>' * (never > 0.025)}{high:.1f}"
                t = at.get("student", [math.nan])
                each.append(f"{T}: {middle} ({ends}" + (")" if math.isnan(t[0]) else "; Student's t {:.1f} to {:.1f})".format(*t)))
            who = "DSL" if name.startswith("published") else found["best_path"]
            yield f"NFE ratio at equal quality, {who} {name.replace('_', ' ')} of {model}, at T = {'; '.join(each)}"


def claim_figure(plt, found, of_data):
    """NLL at the data's entropy against network calls: a panel for the samplers of each model; DSL's best in all of them."""
    calls = [row["nfe"] for row in found["cells"].values()]
    keys = [tuple(key.rsplit("/", 1)) for key in found["cells"]]
    go_on = bool(of_model(keys, "mdlm"))  # else all are from scratch
    titles = {BASELINE: "MDLM" + go_on * ", continued", "masked": "DSL's loss on masked texts alone", "dsl": "DSL" + go_on * ", fine-tuned"}
    shown = [model for model in titles if of_model(keys, model)]
    figure, panels = plt.subplots(1, len(shown), figsize=(6 * len(shown), 5), sharex=True, sharey=True, layout="constrained")
    for axes, model in zip(panels, shown):
        for i, name in enumerate(of_model(keys, model) + (of_model(keys, "mdlm") if model == BASELINE else [])):
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
        axes.set(xscale="log", xlim=(0.8 * min(calls), 1.25 * max(calls)), xlabel="network calls per text", title=titles[model])
    for axes in panels:  # now that both are drawn
        axes.legend(fontsize=7, ncols=2)
    panels[0].set_ylabel("judge's NLL at the data's entropy, nats per token")
    return figure
