"""Does the claim hang on its measure? Two samplers' texts at many temperatures, compared by five notions of quality.

    python measures.py                                                                          # after make reproduce TEXT=prose.txt
    python measures.py --claim results/claim_D128_again --out_dir out/each_again                # with SEEDS="3 4 5"
    python measures.py --claim results/claim_D128_again --out_dir out/each_again --tune 256     # at settings that 4-grams chose

A sampler's divergence from the judge is the judge's NLL of its texts less their entropy rate, which nobody knows, so low NLL may be bought
with little variety. reproduce.py reads the NLL where the unigram entropy of a text is that of real text. The entropy of a token given the
one before it, of all texts pooled, is lower, and nearer to the rate. Here the NLL is read where either is that of real text; and, where
nothing need be matched, 4-gram Jensen-Shannon divergence, which likes cold texts, its unbiased counterpart (metrics.ngram_mmd) and MAUVE
are taken at the temperature that is best by them. Settings are those of the claim, which the NLL chose; with --tune 4-grams choose among
what its tuning tried, on models of the thrown-away seed.
"""

import math
import os
import re
import shlex
from dataclasses import asdict, dataclass

from config import Problem, arg, parse, run
from reproduce_config import Config as Claim
from reproduce_config import ALONE, THROWN_AWAY, as_it_was, claim_of, mdlm_of, sampling, settings_at, trainings
from sampler_config import parse_args as sampler_args

# flags of sampler.py that --sampler may give: they change how a cell is drawn, not which cell it is
KNOBS = "exact_doubt", "gamma", "draft", "remask_budget", "eta", "order", "top_p", "nucleus", "cooling", "soft_snr", "clean_snr"


@dataclass(frozen=True)
class Config:
    """Of which claim, which cells, and how many texts."""

    scale: str = arg("cpu", "as in reproduce.py", choices=("cpu", "gpu"))
    data: str = arg("english", "as in reproduce.py")
    data_dir: str = arg("data", "as in reproduce.py")
    out_dir: str = arg("out/each", "as in reproduce.py: its checkpoints are sampled, and its judge reads the texts")
    claim: str = arg("results/claim_D128", "--results of reproduce.py, whose settings are used")
    ours: str = arg("dsl/mend", "model/path")
    at: tuple[int, ...] = arg((8, 16), "T of ours")
    other: str = arg("mdlm_more/mend-recorded", "what it is compared with, model/path")
    calls: tuple[int, ...] = arg((4, 8, 16, 32, 64), "T of the other")
    factors: tuple[float, ...] = arg((0.4, 0.55, 0.7, 0.85, 1.0, 1.15, 1.3, 1.6), "of the temperature that the claim's tuning found")
    texts: int = arg(170, "texts of each training seed at each temperature")
    tune: int = arg(0, "choose settings anew, by 4-gram JS of so many texts of the thrown-away seed, trained if need be. 0: as --claim")
    sampler: str = arg("", "more flags of sampler.py, for both, '--exact_doubt', say; name other --results")
    results: str = arg("", "where the table and the figure go: NAME.json, NAME.png; empty: --claim with _measures, or _measures_tuned")
    workers: int = arg(0, "as in reproduce.py")

    def __post_init__(self):
        if (min(self.texts, *self.at, *self.calls) < 2 or min(self.factors) <= 0 or len(set(self.factors)) < 2
                or self.workers < 0 or self.tune != 0 and self.tune < 2):
            raise ValueError("--texts, --at, --calls and, if any, --tune are at least 2, --factors two or more above 0, --workers not "
                             "negative")
        if self.sampler and (self.tune or not self.results):
            raise ValueError("--sampler is for other texts: name other --results, and leave out --tune")
        sampler_args(shlex.split(self.sampler))  # a usage error of its own
        if other := set(re.findall(r"--(?:no-)?(\w+)", self.sampler)) - set(KNOBS):
            raise ValueError(f"--sampler takes --{', --'.join(KNOBS)}, not --{min(other)}")
        if self.results and os.path.abspath(self.results) == os.path.abspath(self.claim):
            raise ValueError("--claim would be overwritten: name other --results")


def parse_args(argv=None):
    return parse(Config, argv, description=__doc__)


CFG = parse_args() if __name__ == "__main__" else None  # before torch is imported: a typo should cost nothing

import numpy as np
from tqdm import tqdm

from claim import calls_to_reach, student
from data import load_tokens
from eval_mauve import matched
from metrics import conditional_entropy, entropy, mauve, ngram_js, ngram_mmd, ngram_shares
from report import pyplot, save_figure, save_json, table
from reproduce import measure, prepare, sample_all, train_all

MATCHED = {"entropy": "a text's tokens", "entropy_2": "a token given the one before"}  # of what; given two, it would take more texts
# at the best of several temperatures, so a little too low, of all samplers alike
LOWEST = {"js_4": "4-gram JS", "mmd_4": "4-gram MMD", "one_minus_mauve": "1 - MAUVE"}


def numbers(texts, nll, features, real, of_real, corpus):
    """A sampler's texts at one temperature, against the first of the real ones, as many, but for the MMD, which wants no equal numbers,
    against all; `corpus`: the `ngram_shares` of its 4-grams -> {measure: float}."""
    n = len(texts)
    return {"nll": float(nll.mean()), "entropy": entropy(texts).mean().item(), "entropy_2": conditional_entropy(texts, 2),
            "js_4": ngram_js(texts, real[:n], 4)[0], "mmd_4": ngram_mmd(texts, real, corpus, 4),
            "one_minus_mauve": 1 - mauve(features, of_real[:n], range(3)).mean().item()}


def of_real_text(real, of_real, n, corpus):
    """{measure: what it is of n real texts}: the entropy of few texts pooled is too low, so a sampler's is compared with that of as many;
    and, where there are twice as many, how far n of them are from n others. That is no floor: what leaves out rare 4-grams, as cold text
    does, can be nearer to few real texts than real ones are."""
    parts = [real[i : i + n] for i in range(0, len(real) - n + 1, n)]
    found = {"entropy": entropy(real).mean().item(), "entropy_2": float(np.mean([conditional_entropy(part, 2) for part in parts]))}
    if len(parts) > 1:
        found["js_4"], found["mmd_4"] = ngram_js(parts[1], parts[0], 4)[0], ngram_mmd(parts[1], parts[0], corpus, 4)
        found["one_minus_mauve"] = 1 - mauve(of_real[n : 2 * n], of_real[:n], range(3)).mean().item()
    return found


def qualities(points, target):
    """A sampler's `numbers` at rising temperatures -> {measure: float, lower is better}; nan where the entropy of real text is not reached
    before it falls again, or where the first or the last temperature is the best."""
    found = {}
    for what in MATCHED:
        rising = points[: 1 + max(range(len(points)), key=lambda i: points[i][what])]
        at = matched([(p[what], 0, p["nll"], 0) for p in rising], (target[what], 0))
        found[what] = at[0] if at else math.nan
    for what in LOWEST:
        values = [p[what] for p in points]
        found[what] = min(values) if values.index(min(values)) not in (0, len(points) - 1) else math.nan
    return found


def look(c, shape, real, of_real, corpus):
    """A cell's texts, of the `shape` (seeds, temperatures, n) -> {"all": `numbers` at each temperature, "by_seed": the same of each}. Of
    "all" distances are means over seeds: the texts of several models pooled are nearer to real text than those of any of them."""
    index = np.arange(len(c["texts"])).reshape(shape)

    def ask(which):
        return numbers([c["texts"][i] for i in which], c["nll"][which], c["features"][which], real, of_real, corpus)

    by_seed = [[ask(which) for which in seed] for seed in index]
    means = [{what: float(np.mean([p[what] for p in points])) for what in LOWEST} for points in zip(*by_seed)]
    return {"all": [ask(which.ravel()) | mean for which, mean in zip(index.swapaxes(0, 1), means)], "by_seed": by_seed}


def ratio(mine, theirs):
    """How many times the calls of ours the other needs for its quality, of `mine` (calls, value) and the other's curve `theirs`
    [(calls, value)] -> float, "" or where that is only a bound: "<", reached by its shortest run whose value is known, or where that of a
    shorter one is not, or ">", not reached by its longest."""
    known, unknown = [(x, y) for x, y in theirs if not math.isnan(y)], [x for x, y in theirs if math.isnan(y)]
    calls, value = mine
    needed = calls_to_reach(known, value)
    if math.isinf(needed):
        return max(x for x, _ in known) / calls, ">"
    reached = min((x for x, y in known if y <= value), default=math.nan)  # nan: nothing to compare
    if reached == min((x for x, _ in known), default=0) or any(x < reached for x in unknown):
        return reached / calls, "<"
    return needed / calls, ""


def compare(found, cfg):
    """{(model/path, T): {"nfe", "all": qualities, "by_seed": [qualities]}} -> {measure: {T: {"ratio": of all texts, "by_seed": [`ratio`],
    "student": its 95% interval by Student's t, nan where that of a seed is only a bound}}}."""
    out = {}
    for what in (*MATCHED, *LOWEST):
        for T in cfg.at:
            mine, theirs = found[cfg.ours, T], [found[cfg.other, at] for at in cfg.calls]
            each = [ratio((mine["nfe"], of[what]), [(c["nfe"], c["by_seed"][s][what]) for c in theirs])
                    for s, of in enumerate(mine["by_seed"])]
            out.setdefault(what, {})[T] = {"ratio": ratio((mine["nfe"], mine["all"][what]), [(c["nfe"], c["all"][what]) for c in theirs]),
                                           "by_seed": each, "student": student(each)}
    return out


def draw(plt, seen, real, ours):
    """NLL against each entropy, a curve of temperatures for each cell."""
    figure, panels = plt.subplots(1, len(MATCHED), figsize=(6 * len(MATCHED), 5), sharey=True, layout="constrained")
    for axes, what in zip(panels, MATCHED):
        for (name, T), points in seen.items():
            x, y = zip(*((p[what], p["nll"]) for p in points["all"]))
            axes.plot(x, y, marker="o", markersize=3, color=f"C{int(math.log2(T)) % 10}", linestyle="-" if name == ours else "--",
                      label=f"{name}, T = {T}")
        axes.plot(real[what], real["nll"], "k*", label="real text")
        axes.axvline(real[what], color="grey", linewidth=0.8)
        axes.set(xlabel=f"entropy of {MATCHED[what]}, nats")
    panels[0].set_ylabel("judge's NLL, nats per token")
    panels[0].legend(fontsize=7)
    return figure


def claimed(cfg):
    """The json of the claim, and the Config that it had. Raises Problem where it is missing, of other data, or lacks one of the two."""
    asked = Claim(scale=cfg.scale, data=cfg.data, data_dir=cfg.data_dir, out_dir=cfg.out_dir, results=cfg.claim, workers=cfg.workers)
    asked = as_it_was(asked, (stored := claim_of(cfg.claim))["config"])
    names = [curve.name for curve in asked.curves if curve.name in stored["tuning"] and curve.path != "ar"]
    for flag, name in (("ours", cfg.ours), ("other", cfg.other)):
        if name not in names:
            raise Problem(f"{cfg.claim}.json has no {name}: choose --{flag} of {', '.join(names)}")
    return stored, asked


COARSE, MOST = (0.5, 2.0, 8.0), 32  # of what the claim's tuning tried: every second gamma, and up to so many steps
COLDER = (0.6, 0.75, 0.9)  # factors of a setting's temperature: 4-grams like colder texts [measured]


def nearest(tried, T):
    """The T of the entries of a tuning that is nearest to T."""
    return min({e["T"] for e in tried}, key=lambda at: abs(math.log(at / T)))


def tune(cfg, asked, stored, judge, real):
    """What the claim's tuning tried with a COARSE gamma, or none, at the T nearest to those asked for, each with its lowest 4-gram JS at
    COLDER temperatures: of texts of the thrown-away seed, to as many real ones -> {model/path: [entry | {"js_4"}]}."""
    plan, names, curves, rates = {}, set(), {curve.name: curve for curve in asked.curves}, stored["learning_rates"]
    for name, wanted in ((cfg.ours, cfg.at), (cfg.other, cfg.calls)):
        some = [e for e in stored["tuning"][name] if e["T"] <= MOST and e["setting"].get("gamma", 2.0) in COARSE]
        if not some:
            raise Problem(f"{cfg.claim}.json tried no setting of {name} with gamma in {COARSE} and T to {MOST}: leave out --tune")
        model, near = name.split("/")[0], {nearest(some, T) for T in wanted}
        seed = THROWN_AWAY if model in ALONE else f"lr{rates[model]}"
        names |= {mdlm_of(asked, THROWN_AWAY), f"{model}-{seed}"}
        plan |= {(name, i): (e, [sampling(asked, curves[name], seed, e["T"], e["temperature"] * factor, e["setting"], cfg.tune, "_measures")
                                 for factor in COLDER]) for i, e in enumerate(some) if e["T"] in near}
    train_all(asked, {name: argv for name, argv in trainings(asked).items() if name in names})
    print(f"tuning: {len(plan)} settings at {len(COLDER)} temperatures, {cfg.tune} texts each", flush=True)
    sample_all(asked, [tasks for _, tasks in plan.values()], "tuning")
    found = {}
    for (name, _), (entry, tasks) in plan.items():
        js = [ngram_js(measure(asked, [task], judge)["texts"], real[: cfg.tune], 4)[0] for task in tasks]
        found.setdefault(name, []).append(entry | {"js_4": min(js)})
    return found


def chosen(tried, known, T):
    """The setting that `tune` found best at the nearest T, and the temperature that the claim's tuning, `known`, has for it."""
    best = min((e for e in tried if e["T"] == nearest(tried, T)), key=lambda e: e["js_4"])
    return settings_at([e for e in known if e["setting"] == best["setting"]], T)


def main(cfg):
    stored, asked = claimed(cfg)
    judge, real, of_real, (nll, _), _ = prepare(asked)
    seeds, factors = asked.training_seeds, sorted(set(cfg.factors))
    if judge.key != stored["judge"]:
        raise Problem(f"the judge in {cfg.out_dir} is not that of {cfg.claim}.json: name the --out_dir of that run")
    if max(n := cfg.texts * len(seeds), cfg.tune) > len(real):
        raise Problem(f"{max(n, cfg.tune)} texts at a temperature are compared with as many real ones, of which there are {len(real)}: "
                      "lower --texts or --tune")
    plt, plan, curves = pyplot(), {}, {curve.name: curve for curve in asked.curves}
    tag = f"_measures{re.sub(r'[^a-z0-9.]+', '-', cfg.sampler)}"  # the texts' folder
    tuning = tune(cfg, asked, stored, judge, real) if cfg.tune else {}
    for name, T in [(cfg.ours, T) for T in cfg.at] + [(cfg.other, T) for T in cfg.calls]:
        known = stored["tuning"][name]
        setting, temperature = chosen(tuning[name], known, T) if cfg.tune else settings_at(known, T)
        plan[name, T] = [[sampling(asked, curves[name], seed, T, temperature * factor, setting, cfg.texts, tag) + shlex.split(cfg.sampler)
                          for factor in factors] for seed in seeds]
    print(f"{len(plan)} cells at {len(factors)} temperatures, {n} texts of {len(seeds)} seeds at each; models of {cfg.out_dir}, settings "
          f"{'chosen by 4-grams' if cfg.tune else f'of {cfg.claim}.json'}", flush=True)
    sample_all(asked, [task for tasks in plan.values() for task in tasks], "sampling")
    corpus = ngram_shares(load_tokens(cfg.data, "train", cfg.data_dir)[: 2**24], 4)
    of_all, of_seed = (of_real_text(real, of_real, texts, corpus) for texts in (n, cfg.texts))
    of_all |= {what: of_seed[what] for what in LOWEST if what in of_seed}
    seen, found = {}, {}
    for key, tasks in tqdm(plan.items(), "comparing with real text", leave=False):
        c = measure(asked, sum(tasks, []), judge)
        seen[key] = look(c, (len(seeds), len(factors), cfg.texts), real, of_real, corpus)
        found[key] = {"nfe": float(c["nfe"].mean()), "all": qualities(seen[key]["all"], of_all),
                      "by_seed": [qualities(points, of_seed) for points in seen[key]["by_seed"]]}
    ratios, where = compare(found, cfg), cfg.results or f"{cfg.claim}_measures{'_tuned' * bool(cfg.tune)}"
    save_json(f"{where}.json", config=asdict(cfg), judge=judge.key, num_samples=n, factors=factors, real={"nll": nll, **of_all},
              real_by_seed=of_seed, ratios=ratios, tuning=tuning,
              cells={f"{name}/{T}": found[name, T] | {"temperatures": seen[name, T]} for name, T in found})
    columns = [f"{name}/{T}" for name, T in found], [f"ratio at {T}, by seed" for T in cfg.at]
    shown = [(label, *(of["all"][what] for of in found.values()), *(" ".join(f"{bound}{value:.2f}" for value, bound in ratios[what][T][
        "by_seed"]) for T in cfg.at)) for what, label in (MATCHED | LOWEST).items()]
    print(table(("NLL by the entropy of, or", *columns[0], *columns[1]), shown))
    save_figure(f"{where}.png", draw(plt, seen, {"nll": nll, **of_all}, cfg.ours))


if __name__ == "__main__":
    run(lambda: main(CFG))
