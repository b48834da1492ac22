"""What reproduce.py runs: the scales, the trainings, the curves with the settings to choose from, and every cell's command line."""

import itertools
import json
import math
import os
import re
import shutil
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from config import Problem, arg, parse
from train_config import parse_args as train_args

WHICH_MODELS = ("mdlm_per_seed", "from_scratch", "fine_tune_steps", "rates")  # flags of the Config that make other models


@dataclass(frozen=True)
class Config:
    """Where things are, and how much of them."""

    scale: str = arg("cpu", "size of models, trainings and samples", choices=("cpu", "gpu"))
    data: str = arg("pydocs", "name of a folder that prepare_owt.py wrote")
    data_dir: str = arg("data", "where datasets live")
    out_dir: str = arg("out/reproduce", "checkpoints and samples, from which an interrupted run goes on")
    results: str = arg("results/claim", "where tables and figures go: NAME.json, NAME.png, NAME_training.json, ...")
    tuning: str = arg("", "results/claim_spread_tuning.json, say: its settings and, without --from_scratch and --rates, its learning rates")
    cool: bool = arg(False, "choose how far the temperature falls over the steps, at the settings of --tuning; read if that run chose it")
    cell: str = arg("", "only this cell, model/path/T: drawn anew with another seed and shown beside --results")
    calls: tuple[int, ...] = arg((), "only these T, of those of the scale; the largest take the longest. Empty: all")
    paths: tuple[str, ...] = arg((), "only these paths, with remdm among them. Empty: all")
    seeds: tuple[int, ...] = arg((), "only these training seeds, two or more of those of the scale, each with as many texts, or more where "
                                    "the claim is decided. Empty: all")
    texts: int = arg(0, "texts in a cell up to T = L, of all its seeds, equally many of each. 0: the scale's share of those seeds")
    mdlm_per_seed: bool = arg(False, "each training seed goes on from an MDLM of that seed, not all from one; choose another --out_dir")
    from_scratch: bool = arg(False, "MDLM, the control and DSL each start from scratch, for as many steps; choose another --out_dir")
    fine_tune_steps: int = arg(0, "steps of the fine-tuning, which then needs --rates; choose another --out_dir. 0: as the scale")
    d_embed: int = arg(128, "D, dimension of DSL's sphere and, from scratch, the control's; the others, which use none, keep 32")
    rates: tuple[str, ...] = arg((), "three learning rates, of MDLM continued, the control and DSL; choose another --out_dir. Empty: the "
                                     "best of the scale's, or those of --tuning")
    workers: int = arg(0, "processes that train and sample at once; 0: one for each core, or one on a GPU")
    list: bool = arg(False, "print the trainings and the number of texts, and exit")

    def __post_init__(self):
        if self.calls and not {4, 16} <= set(self.calls) <= set(SCALES[self.scale].steps):
            raise ValueError(f"--calls are 4, 16 (the claim compares T with 4 T) and more of {SCALES[self.scale].steps}")
        if self.seeds and (len(set(self.seeds)) < 2 or not set(self.seeds) <= set(SCALES[self.scale].seeds)):
            raise ValueError(f"--seeds are two (errors are over seeds) or more of {SCALES[self.scale].seeds}")
        least, most = 2 * len(self.training_seeds), SCALES[self.scale].duel_texts
        if self.texts and not least <= self.texts <= most:
            raise ValueError(f"--texts are {least} (each seed at two temperatures) to {most} (as many as real ones)")
        if self.paths and not {"remdm"} <= set(self.paths) <= {curve.path for curve in CURVES}:
            raise ValueError("--paths are remdm, as it is published, and more of those that are tuned here")
        if self.out_dir == type(self).out_dir and any(getattr(self, flag) for flag in WHICH_MODELS):
            raise ValueError(f"--{', --'.join(WHICH_MODELS)} make other models than are in {self.out_dir} without them: choose another "
                             "--out_dir")
        if min(self.workers, self.fine_tune_steps) < 0 or self.d_embed < 2:
            raise ValueError("--workers and --fine_tune_steps cannot be negative, and --d_embed is at least 2")
        if self.from_scratch and (self.mdlm_per_seed or self.fine_tune_steps or self.rates):
            raise ValueError("--from_scratch goes on from nothing at its own rates: leave out --mdlm_per_seed, --fine_tune_steps, --rates")
        if self.fine_tune_steps and not self.rates:
            raise ValueError("--fine_tune_steps needs --rates: the scale's were chosen for its own length")
        numbers = [float(rate) for rate in self.rates if re.fullmatch(r"\d+(\.\d*)?(e-\d+)?", rate)]
        if self.rates and (len(self.rates) != len(WAYS) or len(numbers) != len(WAYS) or not all(numbers)):
            raise ValueError("--rates are three numbers above 0, of MDLM continued, the control and DSL: 1e-3 2e-3 8e-3, say")
        if self.tuning and os.path.abspath(self.tuning) == os.path.abspath(f"{self.results}_tuning.json"):
            raise ValueError("--tuning stands beside the numbers of an earlier run, which would be overwritten: name other --results")
        if self.cool and not self.tuning:
            raise ValueError("--cool starts from settings that are chosen already: name their --tuning")
        if self.cell and not re.fullmatch(r"[\w+-]+/[\w-]+/\d+", self.cell):
            raise ValueError("--cell is model/path/T, for example dsl/posterior/32")

    @property
    def steps(self):
        """T of the cells."""
        return tuple(sorted(set(self.calls))) or SCALES[self.scale].steps

    @property
    def training_seeds(self):
        return tuple(sorted(set(self.seeds))) or SCALES[self.scale].seeds

    @property
    def texts_in_cell(self):
        """Texts of all seeds and both temperatures, equally many of each, up to T = L, and at larger T."""
        scale, share = SCALES[self.scale], len(self.training_seeds)
        asked = self.texts or scale.texts * share // len(scale.seeds), scale.late_texts * share // len(scale.seeds)
        return tuple(texts - texts % (2 * share) for texts in asked)

    @property
    def curves(self):
        return [curve for curve in CURVES if (not self.paths or curve.path in (*self.paths, "ar"))
                and not (self.from_scratch and curve.model == "mdlm")]  # mdlm_more is that MDLM then

    @property
    def settled(self):
        """{model: learning rate} where there is no choice: from scratch, and with --rates."""
        if self.from_scratch:
            return {model: SCALES[self.scale].mdlm_lr if model == "mdlm_more" else SCALES[self.scale].dsl_lr for model in WAYS}
        return dict(zip(WAYS, self.rates))

    @property
    def lrs(self):
        """{model: learning rates to choose from}."""
        return {model: (rate,) for model, rate in self.settled.items()} or SCALES[self.scale].lrs


def parse_args(argv=None, description=None):
    """The Config that the command line (or `argv`) asks for; a bad flag or combination is a one-line usage error."""
    return parse(Config, argv, description=description)


class Scale(NamedTuple):
    """What a scale settles: flags of train.py, steps, learning rates to choose from, T, training seeds, and texts."""

    network: str
    mdlm_lr: str  # of the MDLM that all go on from: its own loss weighs a text by 1/t and wants a lower rate than the preset's
    dsl_lr: str  # of DSL and the control from scratch
    pretrain: int  # steps of the MDLM, and of what starts from scratch
    tune: int  # steps of what goes on from it
    ar: int  # steps of the judge and of the AR baseline; fewer, because an autoregressive model of this size needs fewer
    lrs: dict  # of each of WAYS
    steps: tuple
    seeds: tuple  # of the three ways
    tuning_texts: int  # at each of two temperatures; at 36 the choice of gamma alone moved NLLs by 0.1 [measured]
    texts: int  # of a cell, all its seeds and both temperatures, up to T = L, which is as far as target (a) asks the rival
    late_texts: int  # at larger T, where they cost most and change least
    duel_texts: int  # of the cells in which the claim is decided, however few of the seeds are asked


# how a model goes on from the MDLM, or starts: by MDLM's loss, by DSL's unweighted loss on masked texts alone, and by DSL
WAYS = {"mdlm_more": ["--objective", "mdlm"], "masked": ["--objective", "dsl", "--endpoint", "1"], "dsl": ["--objective", "dsl"]}
LRS = {"mdlm_more": ("2.5e-4", "5e-4", "1e-3"), "masked": ("1e-3", "2e-3", "4e-3"), "dsl": ("4e-3", "8e-3", "1.6e-2")}  # [measured]
GPU_LRS = ("1e-4", "2e-4", "4e-4", "8e-4", "1.6e-3")  # DSL wants higher ones
SCALES = {
    "cpu": Scale("", "1e-3", "4e-3", 9600, 2000, 4800, LRS, (4, 8, 16, 32, 64, 128, 256), (0, 1, 2, 3, 4, 5), 100, 768, 144, 1020),
    "gpu": Scale("--n_layer 8 --n_head 8 --d_model 512 --length 256 --batch_size 128 --warmup 500 --lr 8e-4", "2e-4", "8e-4", 20_000, 4000,
                 20_000, {"mdlm_more": GPU_LRS[:4], "masked": GPU_LRS[:4], "dsl": GPU_LRS[1:]}, (4, 8, 16, 32, 64, 128, 256, 512),
                 (0, 1, 2), 200, 2400, 1200, 6000),
}
THROWN_AWAY = 9  # the seed of the grid of rates and of the tuning


class Curve(NamedTuple):
    """A model and a path: what is settled, and the settings to choose from. R says how much is remasked, see `flags`."""

    model: str
    path: str
    grid: list
    fixed: dict = {}

    @property
    def name(self):
        return f"{self.model}/{self.path}"


REMASK = [{"R": R, "top_p": p} for p in (0.9, 1.0) for R in (2, 4, 8, 16, 32)]
EVEN = [{"R": 1024, "top_p": 1.0, "order": "spread"}]  # with all the remasking there is, which the best of REMASK came to [measured]
GAMMAS = [{"gamma": gamma} for gamma in (0.5, 1.0, 4.0, 8.0, 16.0)]  # beside the sampler's own, 2
MEND = [{"draft": share, "top_p": 1.0} | gamma for share in (0.2, 0.4, 0.6, 0.8) for gamma in ({}, *GAMMAS)]
LOOP = [{"R": R, "top_p": p} for p in (0.9, 1.0) for R in (0.5, 1, 2, 4, 8)]  # at T = 32 its r_max allows no more than 2
NUCLEUS = [{"top_p": p} for p in (0.8, 0.9, 1.0)]
SPREAD = [{"top_p": 1.0, "order": "spread"}]  # the nucleus that was best for `mdlm` with every model [measured]
SHARED = {"mdlm": NUCLEUS, "remdm-cap": REMASK, "remdm-rescale": REMASK, "remdm-loop": LOOP, "remdm-conf": NUCLEUS,
          "recorded": REMASK, "forward-backward": NUCLEUS, "confidence": NUCLEUS, "random": SPREAD}
RIVALS = {"recorded": REMASK + EVEN, "mend-recorded": MEND}  # what else is tried where `recorded` is the best there is
DSL_ONLY = {"posterior": REMASK, "soft": REMASK, "mend": MEND, "hybrid": NUCLEUS,
            "sde": [{"sde_top": s, "top_p": 1.0} for s in (2.0, 3.0, 4.5)]}
UNCOOLED = ("remdm", "ar")  # the published path, and what has a call for each token: of the others --cool tries each of
COOLINGS = [{}, *({"cooling": c} for c in (0.2, 0.4, 0.6))]
RANKED = ("posterior", "soft", "recorded")  # paths that try GAMMAS at their best setting
AT, FINALS = 32, (8, 16, 64)  # T at which all settings are tried, the best; R = 32 remasks all that r_max allows at 32
PUBLISHED = {"top_p": 0.9, "nucleus": "remdm"}
ALONE = ("ar", "mdlm")  # one training each, sampled with every seed; but see mdlm_of
CURVES = [Curve("ar", "ar", NUCLEUS), Curve("mdlm", "mdlm", NUCLEUS), Curve("mdlm", "remdm", [{}], PUBLISHED),
          Curve("mdlm", "recorded", REMASK)]
for who, own in (("mdlm_more", RIVALS), ("dsl", DSL_ONLY)):
    CURVES.append(Curve(who, "remdm", [{}], PUBLISHED))
    CURVES += [Curve(who, path, grid) for path, grid in (SHARED | own).items()]
CURVES += [Curve("masked", "remdm", [{}], PUBLISHED), Curve("masked", "posterior", REMASK), Curve("masked", "mend", MEND),
           *(Curve("masked", path, (SHARED | RIVALS)[path]) for path in ("mdlm", "recorded", "random", "mend-recorded"))]


def mdlm_of(cfg, seed):
    """The folder of the MDLM that training seed `seed` goes on from."""
    return f"mdlm-{seed}" if cfg.mdlm_per_seed else "mdlm"


def trainings(cfg, best=None, seeds=(0,)):
    """Folder -> flags of train.py, in order: with the learning rates to choose from, on the thrown-away seed, or, once `best` {model: rate}
    is known, with that and these `seeds`."""
    scale, seeds = SCALES[cfg.scale], seeds if best else (THROWN_AWAY,)
    steps = scale.pretrain if cfg.from_scratch else cfg.fine_tune_steps or scale.tune
    common = f"--preset demo --dataset {cfg.data} --data_dir {cfg.data_dir} --log_every 50 --d_embed 32 {scale.network}".split()
    plan = {mdlm_of(cfg, seed): ["--objective", "mdlm", "--max_steps", str(scale.pretrain), "--lr", scale.mdlm_lr,
                                 "--seed", str(seed if cfg.mdlm_per_seed else 0)]
            for seed in seeds if not cfg.from_scratch}
    plan |= {"judge": ["--objective", "ar", "--max_steps", str(scale.ar), "--seed", "1"],
             "ar": ["--objective", "ar", "--max_steps", str(scale.ar)]}
    # from scratch the control has DSL's sphere: drawn first, its size moves all other weights; MDLM is that which fine-tuning starts from
    ours = ("masked", "dsl") if cfg.from_scratch else ("dsl",)
    for seed, model in itertools.product(seeds, WAYS):
        start = "scratch" if cfg.from_scratch else f"{cfg.out_dir}/{mdlm_of(cfg, seed)}/ckpt.pt"
        for lr in (best[model],) if best else cfg.lrs[model]:
            plan[f"{model}-{seed}" if best else f"{model}-lr{lr}"] = [  # by its MDLM's own seed it would see the same masks again
                *WAYS[model], "--init_from", start, "--max_steps", str(steps), "--lr", lr, "--seed", str(seed + 100 * cfg.mdlm_per_seed),
                *(("--d_embed", str(cfg.d_embed)) if model in ours else ())]
    return {name: [*common, "--out_dir", f"{cfg.out_dir}/{name}", *flags] for name, flags in plan.items()}


TUNED_FOR = ("learning_rates", "judge", "from_scratch", "fine_tune_steps", "d_embed", "cool")  # what settings were tuned with, and on
EARLIER = {"from_scratch": False, "fine_tune_steps": 0, "d_embed": 32, "cool": False}  # what runs had before there was a flag for it


def earlier(cfg):
    """What the run that left --tuning chose, {} without that -> {"learning_rates": {model: rate}, "paths": {model/path: [...] as of
    reproduce.tune_all}, "judge": its key, "from_scratch", "fine_tune_steps", "d_embed" and "cool": as the flags}."""
    if not cfg.tuning:
        return {}
    try:
        with open(cfg.tuning) as f:
            stored = EARLIER | json.load(f)
        known = {key: stored[key] for key in (*TUNED_FOR, "paths")}
        rates = {model: known["learning_rates"][model] for model in WAYS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Problem(f"{cfg.tuning} holds no tuning ({error}): name a NAME_tuning.json of an earlier run") from None
    if any(rate not in (*SCALES[cfg.scale].lrs[model], *cfg.lrs[model]) for model, rate in rates.items()):
        raise Problem(f"{cfg.tuning} chose {rates}, and --scale {cfg.scale} does not train all of these: use its own --scale or commit")
    if not cfg.settled and (known["from_scratch"] or known["fine_tune_steps"]):
        raise Problem(f"{cfg.tuning} is of models from scratch, or with --fine_tune_steps, whose rates are for those: name another, or "
                      "say --rates")
    return known


def claim_of(name):
    """The json that a whole run left as `name`. Raises Problem where there is none."""
    try:
        with open(f"{name}.json") as f:
            stored = json.load(f)
        if missing := [key for key in ("cells", "config", "data", "learning_rates", "tuning") if key not in stored]:
            raise KeyError(missing[0])
        return stored
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Problem(f"{name}.json holds no claim ({error}): run reproduce.py first, or name what an earlier run left") from None


def as_it_was(cfg, stored):
    """`cfg` with what says which models, cells and texts there were in the run whose config is `stored`. Raises Problem if it asks for
    others."""
    if (cfg.data, cfg.scale) != (was := (stored["data"], stored["scale"])):
        raise Problem(f"{cfg.results}.json is of --data {was[0]} --scale {was[1]}: say so, or name another claim")
    stored, models = EARLIER | stored, (*WHICH_MODELS, "d_embed")
    defaults = {flag: getattr(Config, flag) for flag in (*models, "paths", "calls", "seeds", "texts")}
    then = {flag: type(default)(stored.get(flag, default)) for flag, default in defaults.items()}  # a younger flag had its default
    if other := [flag for flag in models if getattr(cfg, flag) not in (defaults[flag], then[flag])]:
        raise Problem(f"{cfg.results}.json is not of a run with --{other[0]} {getattr(cfg, other[0])}: leave it out, or name the claim "
                      "of such a run")
    if (there := stored["out_dir"]) != cfg.out_dir and any(then[flag] != getattr(Config, flag) for flag in models):
        raise Problem(f"{cfg.results}.json is of models in {there}: say --out_dir {there}, or name another claim")
    return replace(cfg, **then)


def flags(curve, setting, T):
    """The sampler's flags (a dict) for a setting at T steps: a step remasks a revealed token with probability eta = R / T, twice that for
    remdm-loop, which remasks in half of the steps."""
    chosen = {**curve.fixed, **setting}
    if R := chosen.pop("R", None):
        if curve.path.startswith("remdm-"):
            chosen["eta"] = min(1.0, (2 if curve.path == "remdm-loop" else 1) * R / T)
        else:
            chosen["remask_budget"] = R
    return chosen


def sampling(cfg, curve, seed, T, temperature, setting, texts, tag=""):
    """The command line of sampler.py for the texts of one training seed at one temperature."""
    folder = {"ar": "ar", "mdlm": mdlm_of(cfg, seed)}.get(curve.model, f"{curve.model}-{seed}")
    steps = train_args(trainings(cfg)["ar"]).length if curve.path == "ar" else T  # no choice there
    name = "-".join(f"{key}{value:g}" if isinstance(value, float | int) else value for key, value in setting.items())
    out = f"{cfg.out_dir}/samples{tag}/{curve.model}/{curve.path}/{T}-{seed}-{temperature:.3f}-{name}.jsonl"
    how = {"ckpt": f"{cfg.out_dir}/{folder}/ckpt.pt", "path": curve.path, "steps": steps, "temperature": round(temperature, 3),
           **flags(curve, setting, T), "seed": 100 + (seed if isinstance(seed, int) else THROWN_AWAY) + 1000 * bool(tag), "dtype": "auto",
           "compile": "on" if shutil.which("g++") else "auto", "batch_size": 64, "num_samples": texts, "out": out}
    return [part for key, value in how.items() for part in (f"--{key}", str(value))]


def settings_at(tried, T):
    """The setting for T steps, the best at the nearest T of the tuning, and its temperature, linear in ln T between those of the tuning."""
    near = min({t["T"] for t in tried}, key=lambda at: (abs(math.log(at / T)), -at))  # of two as near, the larger
    best = min((t for t in tried if t["T"] == near), key=nll_of)
    points = sorted((math.log(t["T"]), t["temperature"]) for t in tried if t["setting"] == best["setting"])
    return best["setting"], float(np.interp(math.log(T), *zip(*points)))


def toward(cold, hot, share):
    """The temperature at which the entropy is expected that lies at `share` between those of two temperatures, within reason."""
    return cold * (hot / cold) ** (0.5 if math.isnan(share) else min(2.0, max(-1.0, share)))


def to_cool(cfg, here, known):
    """`known` if its run had --cool, else `here` with nothing tried but UNCOOLED, so that one judge decides on one seed; and from where to
    start, [(curve, T, {"setting", "temperature"})]. Raises Problem where that was never tuned."""
    if new := [curve.name for curve in cfg.curves if not known["paths"].get(curve.name)]:
        raise Problem(f"{cfg.tuning} has no settings of {new[0]} for --cool to start from: leave it out of --paths, or name another")
    tried = {c.name: [e for e in known["paths"][c.name] if "cooling" not in e["setting"]] for c in cfg.curves}
    starts = [(c, T, dict(zip(("setting", "temperature"), settings_at(tried[c.name], T))))
              for c in cfg.curves if c.path not in UNCOOLED for T in (AT, *FINALS) if T <= max(AT, *cfg.steps)]
    return known if known["cool"] else here | {"paths": {c.name: tried[c.name] for c in cfg.curves if c.path in UNCOOLED}}, starts


def beyond(setting, T):
    """What to try at T of a setting that was good at AT: it and, where at AT it remasked all that could be, what does so at every T."""
    return [setting, setting | {"R": 1024}] if T > AT == setting.get("R") else [setting]


def nll_of(entry):
    """The NLL of a setting that was tried, inf where its entropy could not be matched."""
    return math.inf if entry["nll"] is None or math.isnan(entry["nll"]) else entry["nll"]


def best_path(tuning, model, at=(8, 32)):
    """The path of a model with the lowest NLL over `at` in the tuning: chosen before the texts are drawn that decide the claim."""
    return min((name for name in tuning if name.startswith(f"{model}/")),
               key=lambda name: sum(min(nll_of(t) for t in tuning[name] if t["T"] == T) for T in at))


AROUND = (0.94, 1.06)


def cells(cfg, tuning, length, tag="", texts=0, better=None):
    """(model/path, T) -> command lines, one for each training seed and each of two temperatures AROUND that of the data's entropy, which is
    that of the tuning or, where `better` {key: temperature} knows one, that. `texts` are of a cell, shared by its seeds, instead of as many
    as the config says."""
    plan = {}
    for curve in (curve for curve in cfg.curves if curve.name in tuning):  # a json may be older than some curves
        for T in cfg.steps if curve.path != "ar" else (length,):
            setting, temperature = settings_at(tuning[curve.name], T)
            temperature = (better or {}).get((curve.name, T), temperature)
            each = (texts or cfg.texts_in_cell[T > length]) // (2 * len(cfg.training_seeds))
            plan[curve.name, T] = [sampling(cfg, curve, seed, T, temperature * factor, setting, each, tag)
                                   for seed in cfg.training_seeds for factor in AROUND]
    return plan


def tasks_of(plan):
    """Lists of command lines whose keys agree in their first two parts: one task for a worker."""
    return [list(itertools.chain(*(plan[key] for key in keys))) for _, keys in itertools.groupby(sorted(plan, key=str), lambda k: k[:2])]
