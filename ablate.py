"""Change one thing at a time in the claim's DSL fine-tuning, and ask every model the same questions.

    python ablate.py --data english                            # with the settings of results/claim.json
    python ablate.py --data english --only "endpoint.*"        # only variants of such a name
    python ablate.py --data english --only "scratch.*" --seeds 0 1 2 --calls 4 16 64 --paths remdm posterior
    python ablate.py --data english --only "wide.*" --no-claimed --calls 8 16 32 --paths remdm recorded posterior  # a larger model
    python ablate.py --data english --list                     # what is varied, and what was predicted before it ran

Of every variant: the random-order bound; the judge's NLL at the data's entropy by four paths at T = 16; how many of 10% random errors it
mends at 98% of clean tokens kept, shown the text as evidence (analyze.py correction). One seed, unless --seeds says more: look at the
spread of the claim's six.
"""

import itertools
import json
import math
import re
import shlex
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from config import Problem, arg, parse, run
from reproduce_config import CURVES, EARLIER, WHICH_MODELS, Curve, claim_of, sampling, settings_at, trainings
from reproduce_config import Config as Claim
from sampler_config import NEEDS_DSL


@dataclass(frozen=True)
class Config:
    """Which variants, and where things are."""

    only: str = arg("", "regular expression: variants whose name it matches; empty: all")
    data: str = arg("pydocs", "as in reproduce.py")
    data_dir: str = arg("data", "where datasets live")
    out_dir: str = arg("out/reproduce", "as in reproduce.py: its checkpoints are read, or trained; those of the variants come beside them")
    claim: str = arg("results/claim", "--results of reproduce.py; of several MDLMs, none, or longer: only with --no-claimed, from scratch")
    results: str = arg("", "where the table goes: NAME.json, and NAME_correction.json with its figure; empty: results/ablations, or with "
                           "--only results/ablations_only")
    calls: tuple[int, ...] = arg((16,), "T of the samples")
    paths: tuple[str, ...] = arg(("posterior", "remdm-cap", "hybrid", "sde"), "paths; of each model those that are tuned for its kind")
    seeds: tuple[int, ...] = arg((0,), "training seeds of the variants; the claim's own models are asked with seed 0")
    texts: int = arg(200, "texts of each training seed and path at each of two temperatures")
    workers: int = arg(0, "as in reproduce.py")
    claimed: bool = arg(True, "ask the claim's own models as well")
    list: bool = arg(False, "print the variants, and exit")

    def __post_init__(self):
        try:
            re.compile(self.only)
        except re.error as error:
            raise ValueError(f"--only is no regular expression: {error}") from None
        if min(self.texts, *self.calls) < 2 or min(self.workers, *self.seeds) < 0:
            raise ValueError("--texts and --calls must be at least 2, --workers and --seeds cannot be negative")
        if not set(self.paths) <= {curve.path for curve in CURVES} - {"ar"}:
            raise ValueError("--paths are those that reproduce.py has tuned")
        if not any(re.fullmatch(self.only or ".*", variant.name) for variant in VARIANTS):
            raise ValueError(f"--only matches none of {', '.join(variant.name for variant in VARIANTS)}")

    @property
    def models(self):
        """The claim's own models that are asked, and their folders."""
        return CLAIMED if self.claimed else {}


class Variant(NamedTuple):
    """A name, the flags of train.py that differ from the claim's, the question, what was predicted before running it, and the flags of
    sampler.py that differ: without any of train.py, the claim's own model is sampled with those. In the flags {mdlm_more} and {masked}
    stand for learning rates that the claim chose, {below} for half of the first, {beyond} for twice DSL's; {out} for the folder of all
    models, {seed100} for 100 more than the {seed}."""

    name: str
    flags: str
    question: str
    predicted: str
    sampler: str = ""

    @property
    def model(self):
        """What its texts and its row go by."""
        return self.name if "--objective mdlm" in self.flags else f"dsl_{self.name}"

    def folder(self, seed=0):
        """Where its model is, below --out_dir."""
        return f"{self.model}-{seed}" if self.flags else f"dsl-{seed}"

    def seeds(self, cfg):
        """Which training seeds it is asked with."""
        return cfg.seeds if self.flags else (0,)


# from an MDLM of each seed, by the claim's seed: 100 more than that MDLM's own, by which it would see the same masks again
EACH = "--init_from {out}/mdlm_scratch_slower-{seed}/ckpt.pt --seed {seed100}"
VARIANTS = (
    Variant("endpoint0.25", "--endpoint 0.25", "fewer endpoint sequences, as the authors?", "bound .02 bits worse, mends a little more"),
    Variant("endpoint0.75", "--endpoint 0.75", "more of them?", "bound .01 better, posterior path a little worse"),
    Variant("endpoint1", "--endpoint 1", "is Gaussian evidence needed at all?", "mends nothing, posterior no better than cap"),
    Variant("common0.25", "--common 0.25", "a few sequences at one common SNR?", "sde and hybrid gain .2 nats, the rest unchanged"),
    Variant("common0.5", "--common 0.5", "half of them?", "sde gains .3, posterior path unchanged"),
    Variant("common1", "--common 1", "one SNR per sequence, as the authors have it?", "sde best here, mending worse"),
    Variant("median0.45", "--snr_median 0.45", "lower SNRs?", "sde better, mending at .7 t_c unchanged"),
    Variant("median1.8", "--snr_median 1.8", "higher SNRs?", "posterior path a little better, mending worse"),
    Variant("sigma0.6", "--snr_sigma 0.6", "a narrow range?", "posterior path worse: clean tokens are never nearly clean"),
    Variant("sigma2", "--snr_sigma 2", "a wide one?", "within the noise"),
    Variant("authors", "--endpoint 0.25 --common 1 --snr_median 0.68 --snr_sigma 1.41", "the authors' mixture for OpenWebText?",
            "bound and posterior path worse than ours"),
    Variant("beta0.18", "--beta 0.18", "beta starting at 1/sqrt(D)?", "worse everywhere"),
    Variant("beta3", "--beta 3", "at 3?", "a little worse: it has to come down"),
    Variant("beta_fixed", "--frozen beta", "is a learned beta needed?", "no"),
    Variant("E_fixed", "--frozen E", "are learned embeddings needed?", "no"),
    Variant("D8", "--d_embed 8", "a smaller sphere?", "mending worse: tokens are harder to tell apart"),
    Variant("D128", "--d_embed 128", "a larger one?", "within the noise"),
    Variant("D256", "--d_embed 256", "a still larger one?", "as 128"),
    Variant("D128_E_fixed", "--d_embed 128 --frozen E", "random embeddings on that of 128?", "as learned ones there"),
    Variant("steps500", "--max_steps 500", "when does the gain appear: a quarter of the steps?", "half of the gain is there"),
    Variant("steps1000", "--max_steps 1000", "half of them?", "three quarters of it"),
    Variant("steps4000", "--max_steps 4000", "does it go on growing: twice the steps?", "posterior gains .05 more"),
    Variant("long", "--max_steps 8000", "does the likelihood tax close, and the same rule gain, with four times the steps?",
            "bound 2.66; by the published rule .1 better than MDLM as long; posterior at T = 8 2.75"),
    Variant("long_masks", "--endpoint 1 --max_steps 8000 --lr {masked}", "DSL's loss on masked texts alone, as long?",
            "bound 2.62; by the published rule as good as DSL"),
    Variant("mdlm_long", "--objective mdlm --max_steps 8000 --lr {mdlm_more}", "MDLM continued as long?", "bound 2.70"),
    Variant("mdlm_long_fast", "--objective mdlm --max_steps 8000 --lr 1e-3", "that at 1e-3 instead of 5e-4?", "bound 2.69"),
    Variant("lr_twice", "--lr {beyond}", "is the edge of the grid of learning rates the best?", "no better: 4e-3 and 8e-3 were close"),
    Variant("mdlm_lr_half", "--objective mdlm --lr {below}", "MDLM's best was at the lower edge: half of it?", "bound within .005"),
    Variant("scratch", "--init_from scratch --max_steps 9600 --lr 4e-3", "from scratch, at as many tokens as the MDLM?",
            "far better than that MDLM, and better than MDLM and then DSL, as the pilot saw on pydocs"),
    Variant("scratch_slow", "--init_from scratch --max_steps 9600 --lr 2e-3", "from scratch at half that rate?",
            "a little worse: fine-tuning liked a higher one"),
    Variant("scratch_masks", "--endpoint 1 --init_from scratch --max_steps 9600 --lr 4e-3",
            "is it the unweighted loss that makes it better from scratch, or the evidence?", "between the two: bound 2.9; mends 5%"),
    Variant("mdlm_scratch_slow", "--objective mdlm --init_from scratch --max_steps 9600 --lr 2e-3",
            "MDLM from scratch, at half the preset's learning rate?", "within .1: leaves the plateau no sooner"),
    Variant("mdlm_scratch_slower", "--objective mdlm --init_from scratch --max_steps 9600 --lr 1e-3",
            "at a quarter, as the claim's MDLM?", "a little worse than at half"),
    Variant("long_each", EACH + " --max_steps 8000", "four times the steps from an MDLM of each seed, as results/claim_long.json",
            "mend at T = 8 2.45, by the worst MDLM 2.6"),
    Variant("long_each_slow", EACH + " --max_steps 8000 --lr 4e-3",
            "from scratch, at this rate and with 9,600 steps, mend is at 2.38: is it the rate, or the start?",
            "the start: within .02, bound within .005"),
    Variant("each_D32", EACH + " --d_embed 32", "the sphere of 32 dimensions, from the MDLMs of results/claim_D128_again.json?",
            "mend at 2.57, 2.25 and 2.06 at T = 8, 16 and 32"),
    Variant("each_D128", EACH + " --d_embed 128",
            "a larger sphere, as results/claim_one_piece.json else, with mend at 2.54, 2.22 and 2.06?", "2.47, 2.16, 2.01"),
    Variant("each_D128_slow", EACH + " --d_embed 128 --lr 4e-3", "that at half the rate, which was chosen with 32?", "mend within .03"),
    Variant("each_D128_fast", EACH + " --d_embed 128 --lr {beyond}", "at twice that rate?", "mend .05 worse, as its own loss"),
    Variant("each_D128_E_fixed", EACH + " --d_embed 128 --frozen E", "what mends most: random embeddings of 128?", "26%, mend within .02"),
    Variant("each_D128_E_fixed_slow", EACH + " --d_embed 128 --frozen E --lr 4e-3", "those at half the rate?",
            "31%, three times MDLM continued; mend .05 worse"),
    Variant("mdlm_each", "--objective mdlm " + EACH + " --lr {mdlm_more}", "MDLM continued, from these MDLMs?", "9.5%"),
    Variant("mdlm_each_slow", "--objective mdlm " + EACH + " --lr {below}", "MDLM continued at half its rate, as there?", "0.05 worse"),
    Variant("mdlm_each_fast", "--objective mdlm " + EACH + " --lr 1e-3", "at 1e-3 instead of 5e-4?", "0.03 better with 32 calls"),
    Variant("masks_each", "--endpoint 1 " + EACH + " --lr {masked}", "the control, from these MDLMs?", "2.76, 2.47, 2.34"),
    Variant("masks_each_slow", "--endpoint 1 " + EACH + " --lr 1e-3", "the control at 1e-3 instead of 2e-3?", "0.04 worse"),
    Variant("masks_each_fast", "--endpoint 1 " + EACH + " --lr 4e-3", "at 4e-3?", "within .03"),
    Variant("each_E_fixed", EACH + " --frozen E", "random embeddings, as there else?", "2.51, 2.19, 2.04"),
    Variant("wide_mdlm", "--objective mdlm --init_from scratch --max_steps 9600 --lr 1e-3 --d_model 192",
            "the claim's MDLM, half as wide again?", "bound 2.66"),
    Variant("wide_mdlm_slow", "--objective mdlm --init_from scratch --max_steps 9600 --lr 5e-4 --d_model 192",
            "at half that rate, as a wider network may want a lower one?", "bound .02 worse than at the whole"),
    Variant("wide_mdlm_more", "--objective mdlm --init_from {out}/wide_mdlm-{seed}/ckpt.pt --lr {mdlm_more} --d_model 192",
            "that continued?", "bound 2.63"),
    Variant("wide_mdlm_more_slow", "--objective mdlm --init_from {out}/wide_mdlm-{seed}/ckpt.pt --lr {below} --d_model 192",
            "at half that rate?", "bound within .005"),
    Variant("wide_masks", "--endpoint 1 --init_from {out}/wide_mdlm-{seed}/ckpt.pt --lr {masked} --d_model 192",
            "from that by DSL's loss on masked texts alone?", "bound 2.615; by the published rule .03 better than MDLM as long"),
    Variant("wide_masks_slow", "--endpoint 1 --init_from {out}/wide_mdlm-{seed}/ckpt.pt --lr 1e-3 --d_model 192",
            "at half that rate?", "bound within .005"),
    Variant("wide", "--init_from {out}/wide_mdlm-{seed}/ckpt.pt --d_model 192",
            "does a larger model pay less of the likelihood tax, and gain by the same rule?",
            "bound 2.655, a tax of .025 instead of .04; as good as MDLM by the published rule; posterior at T = 8 2.75; mends 25%"),
    Variant("wide_slow", "--init_from {out}/wide_mdlm-{seed}/ckpt.pt --lr 4e-3 --d_model 192", "at half that rate?",
            "a lower loss of its own, bound .01 better, so a tax of .02; by the published rule level; posterior .05 worse"),
    Variant("narrow_mdlm", "--objective mdlm --init_from scratch --max_steps 9600 --lr 1e-3 --d_model 64",
            "the claim's MDLM, half as wide?", "bound 2.98"),
    Variant("narrow_mdlm_more", "--objective mdlm --init_from {out}/narrow_mdlm-{seed}/ckpt.pt --lr {mdlm_more} --d_model 64",
            "that continued?", "bound 2.96"),
    Variant("narrow_masks", "--endpoint 1 --init_from {out}/narrow_mdlm-{seed}/ckpt.pt --lr {masked} --d_model 64",
            "from that by DSL's loss on masked texts alone?", "bound 2.94"),
    Variant("narrow", "--init_from {out}/narrow_mdlm-{seed}/ckpt.pt --d_model 64", "and does a smaller one pay more?",
            "bound 3.02, a tax of .06; .1 worse than MDLM by the published rule; posterior at T = 8 3.2; mends 8%"),
    Variant("clean2", "", "written tokens shown as evidence at 2 t_c?", "as by lookup", "--clean_snr 2"),
    Variant("clean1", "", "at 1 t_c?", "posterior .05 better: it mends more at .7 t_c than by lookup", "--clean_snr 1"),
    Variant("clean0.7", "", "at 0.7 t_c, where the most errors are mended?", "worse: too little is left to build on", "--clean_snr 0.7"),
)


def parse_args(argv=None):
    cfg = parse(Config, argv, description=__doc__)
    return replace(cfg, results=cfg.results or "results/ablations" + "_only" * bool(cfg.only))


CFG = parse_args() if __name__ == "__main__" else None  # before torch is imported: a typo should cost nothing

import numpy as np

import analyze
from claim import at_entropy, bootstrap, by_seed, calls_to_reach, place, spread
from report import save_json, table
from reproduce import arrays, prepare, sample_all, train_all

FACTORS = (0.9, 1.1)  # temperatures around the claim's
SCORES = ("roar", "fixed_at_98", "auc")  # bound in bits per byte, errors mended and AUC of their detection
CLAIMED = {"dsl": "dsl-0", "masked": "masked-0", "mdlm_more": "mdlm_more-0", "mdlm": "mdlm"}  # the claim's own models, and their folders


def claim_of_one_mdlm(cfg, published):
    """The Config of reproduce.py by which models are trained and sampled here: all go on from one MDLM, with the claim's sphere."""
    return Claim(data=cfg.data, data_dir=cfg.data_dir, out_dir=cfg.out_dir, workers=cfg.workers,
                 d_embed=(EARLIER | published.get("config", {}))["d_embed"])


def plan_of(cfg, variant, published, seed=0):
    """Flags of train.py: those of the claim's DSL model, then the variant's, of which the last one counts."""
    rates = published["learning_rates"]
    flags = variant.flags.format(beyond=2 * float(rates["dsl"]), below=float(rates["mdlm_more"]) / 2, out=cfg.out_dir, seed=seed,
                                 seed100=100 + seed, **rates)
    dsl = trainings(claim_of_one_mdlm(cfg, published), rates)["dsl-0"]
    return [*dsl, "--seed", str(seed), *shlex.split(flags), "--out_dir", f"{cfg.out_dir}/{variant.folder(seed)}"]


def plan_all(cfg, variants, published):
    """Folder -> flags of train.py: the judge, the claim's own models, which are there if reproduce.py has run here, and all `variants`."""
    claims = trainings(claim_of_one_mdlm(cfg, published), published["learning_rates"])
    start = ["mdlm"] * any("--init_from" not in v.flags for v in variants)  # else from a variant, or from scratch
    asked = ("judge", *start, *cfg.models.values(), *(v.folder() for v in variants if not v.flags))
    return {name: claims[name] for name in asked} | {
        v.folder(seed): plan_of(cfg, v, published, seed) for v in variants if v.flags for seed in v.seeds(cfg)}


def cells(cfg, name, paths, published, settings_of, own):
    """{(name, "path/T"): the sampler's command lines for each seed at two temperatures, with the claim's settings of a kind of model; what
    was tuned for none like it is left out}. `own` is {seed: flags of its own}."""
    plan, claim, fixed = {}, claim_of_one_mdlm(cfg, published), {curve.path: curve.fixed for curve in CURVES}
    like = (settings_of, "mdlm_more", "mdlm", "dsl") if settings_of.startswith("mdlm") else (settings_of, "dsl")  # next if not tuned
    for path, T in itertools.product(paths, cfg.calls):
        if not (tried := [of for model in like if (of := published["tuning"].get(f"{model}/{path}"))]):
            continue
        (setting, temperature), curve = settings_at(tried[0], T), Curve(name, path, [], fixed[path])
        plan[name, f"{path}/{T}"] = [[*sampling(claim, curve, seed, T, temperature * factor, setting, cfg.texts, "_ablation"), *flags]
                                     for seed, flags in own.items() for factor in FACTORS]
    return plan


def all_cells(cfg, variants, published):
    plan, of_mdlm = {}, [path for path in cfg.paths if path not in NEEDS_DSL]
    for model in cfg.models:
        plan |= cells(cfg, model, of_mdlm if model.startswith("mdlm") else cfg.paths, published, model, {0: []})
    for v in variants:
        paths = cfg.paths if v.flags else [path for path in cfg.paths if path != "sde"]  # which writes nothing before its end
        of_dsl = "masked" if "masks" in v.name else "dsl"  # a control is sampled as the claim's
        like, paths = (of_dsl, paths) if v.model.startswith("dsl") else ("mdlm_more", of_mdlm)
        own = {seed: ["--ckpt", f"{cfg.out_dir}/{v.folder(seed)}/ckpt.pt", *shlex.split(v.sampler)] for seed in v.seeds(cfg)}
        plan |= cells(cfg, v.model, paths, published, like, own)
    return plan


def mending(cfg, folders):
    """{folder: errors mended in one call} of the models in `folders`, as analyze.py correction has it: shown it by lookup where MDLM's
    loss trained them, as evidence otherwise."""
    if not folders:
        return {}
    ckpts = {folder: f"{cfg.out_dir}/{folder}/ckpt.pt" for folder in folders}
    brief = ["--sweep", "2", "--refine", "1"]  # what they cost is not asked for
    analyze.main(analyze.parse_args(["correction", "--ckpt", *ckpts.values(), "--data_dir", cfg.data_dir, *brief,
                                     "--out", f"{cfg.results}_correction"]))
    with open(f"{cfg.results}_correction.json") as f:
        found = {row["ckpt"]: row["result"]["random"]["evidence" if row["objective"] == "dsl" else "lookup"]
                 for row in json.load(f)["models"].values()}
    return {name: {"fixed_at_98": found[ckpt]["at_98"]["fixed"], "auc": found[ckpt]["auc"]} for name, ckpt in ckpts.items()}


def ratios(cfg, mine, theirs):
    """How many times more steps another model needs for the NLLs `mine` {"path/T": [NLL, error]}, by the same path or by its best one at
    each T -> {path: {"same": ratios over cfg.calls, "best": ...}}, as in claim.py; nan if it never gets there, or mine is unknown."""
    def needed(paths, value):
        values = {T: [theirs[f"{path}/{T}"][0] for path in paths if f"{path}/{T}" in theirs] for T in cfg.calls}
        calls = calls_to_reach([(T, np.nanmin(nll)) for T, nll in values.items() if not np.isnan(nll).all()], value)
        return calls if math.isfinite(calls) else math.nan

    return {path: {kind: [needed(paths, mine[f"{path}/{T}"][0]) / T for T in cfg.calls]
                   for kind, paths in (("same", [path]), ("best", cfg.paths))}
            for path in cfg.paths if f"{path}/{cfg.calls[0]}" in mine}


def published_settings(cfg, variants):
    """The json of the claim. Raises Problem where it is missing, no claim, of another kind, or lacks settings."""
    config = (published := claim_of(cfg.claim))["config"]
    if any(config.get(flag) for flag in WHICH_MODELS) and (cfg.claimed or any("--init_from" not in v.flags for v in variants)):
        raise Problem(f"{cfg.claim}.json has an MDLM for each seed, or none, or fine-tunes by flags of its own, and these variants do "
                      'not: name the --claim of another run, or --no-claimed --only ".*scratch.*"')
    if (config["data"], config["scale"]) != (cfg.data, "cpu"):  # whose steps and rates the variants name
        raise Problem(f"{cfg.claim}.json is about --data {config['data']} --scale {config['scale']}: name one of --scale cpu, and its data")
    if untuned := sorted(set(cfg.paths) - {name.split("/")[1] for name in published["tuning"]}):
        raise Problem(f"{cfg.claim}.json lacks settings for {', '.join(untuned)}: leave them out of --paths, or run reproduce.py with them")
    return published


def main(cfg):
    variants = [variant for variant in VARIANTS if re.fullmatch(cfg.only or ".*", variant.name)]
    if cfg.list:
        return print(table(Variant._fields, variants))
    claim = claim_of_one_mdlm(cfg, published := published_settings(cfg, variants))
    print(f"{len(variants)} variants of {cfg.out_dir}/dsl-0, trained on {cfg.data} and asked by {len(cfg.paths)} paths at T = {cfg.calls}",
          flush=True)
    folders = {name: [folder] for name, folder in cfg.models.items()} | {
        v.model: [v.folder(seed) for seed in v.seeds(cfg)] for v in variants if v.flags}
    if not (plan := all_cells(cfg, variants, published)):  # to be known before anything is trained
        raise Problem(f"{cfg.claim}.json has settings for none of these models by --paths {' '.join(cfg.paths)}: ask by others")
    trained = train_all(claim, plan_all(cfg, variants, published))
    judge, *_, (target, _) = prepare(claim)
    sample_all(claim, list(plan.values()), "sampling")
    found = arrays(claim, plan, judge)
    errors = {key: spread(draws) for key, draws in bootstrap(found, target).items()}
    mended, rows = mending(cfg, sum(folders.values(), [])), {}
    claimed = [Variant("", "", "as in the claim, seed 0", "")] * len(cfg.models)
    for name, variant in zip([*cfg.models, *(v.model for v in variants)], claimed + variants):
        mine = {what: c for (of, what), c in found.items() if of == name}
        each = {folder: {**trained[folder], **mended[folder], "roar": trained[folder]["validation"]["roar"]}
                for folder in folders.get(name, [])}
        scores = {what: analyze.over_seeds([row[what] for row in each.values()]) for what in SCORES} if each else {}
        nll = {what: [at_entropy(c["nll"], c["entropy"], target), errors[name, what]] for what, c in mine.items()}
        rows[name] = {**variant._asdict(), **scores, "nll": nll, "trained": each,
                      "place": {what: place(c["entropy"], target) for what, c in mine.items()},
                      "nll_by_seed": {what: by_seed(c, target) for what, c in mine.items()}}
    for row in rows.values() if len(cfg.calls) > 1 else ():  # one T is no curve
        row["ratios"] = {name: ratios(cfg, row["nll"], other["nll"]) for name, other in rows.items() if other is not row}
    save_json(f"{cfg.results}.json", config=asdict(cfg), num_samples=2 * cfg.texts, variants=rows)
    columns = [f"{path}/{T}" for path, T in itertools.product(cfg.paths, cfg.calls)]
    print(table(("variant", *columns, "bits per byte", "mended at 98%", "AUC"),
                [(name, *map(row["nll"].get, columns), *map(row.get, SCORES)) for name, row in rows.items()]))


if __name__ == "__main__":
    run(lambda: main(CFG))
