"""Rerun the paper's claim on a scale that anyone can: an MDLM, fine-tuned in three ways, sampled by many paths at many numbers of steps.

    make reproduce                                             # what decides it: three seeds, each with an MDLM of its own; see Makefile
    python reproduce.py --data english --d_embed 32            # everything, as results/claim.json: six seeds of one MDLM; --list prints it
    make reproduce LONG=1                                      # with four times the fine-tuning
    make reproduce FROM_SCRATCH=1                              # the three ways from scratch instead, for as many steps as that MDLM
    python reproduce.py --data english --cell dsl/posterior/32 # draw one cell of results/claim.json anew
    python reproduce.py --data english --tuning out/my_tuning.json --results out/again # tune only what an earlier run of yours did not try

Stages, each with its json in --results: (1) train a judge, an AR baseline and an MDLM; go on with the MDLM by its own loss, by DSL's and,
to tell apart the two things that DSL changes, by DSL's unweighted loss on masked texts alone, equally long, at several learning rates and
a seed that is then thrown away; go on at the best of them with each seed. (2) Tune every path on the thrown-away seed. (3) Sample every
cell and judge it. (4) Compare: claim.py. Interrupted, the same command goes on.
"""

import math
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from config import Problem, run
from reproduce_config import ALONE, AROUND, AT, COOLINGS, FINALS, GAMMAS, RANKED, SCALES, THROWN_AWAY, TUNED_FOR, WAYS
from reproduce_config import as_it_was, best_path, beyond, cells, claim_of, earlier, mdlm_of, nll_of, parse_args, sampling, settings_at
from reproduce_config import tasks_of, to_cool, toward, trainings

CFG = parse_args(description=__doc__) if __name__ == "__main__" else None  # before torch is imported: a typo should cost nothing

import concurrent.futures
import multiprocessing

import numpy as np
import torch
from tqdm import tqdm

from claim import at_entropy, claim_figure, claim_table, compare_all, opponents, place, ratio_lines
from data import load_meta, load_tokens, sha256, spread_windows, tokenizer
from eval_mauve import read_samples
from judge import judged, load_judge
from metrics import entropy
from model import load_checkpoint
from report import cell, pyplot, save_figure, save_json, table
from runtime import pick_device
from sampler import Writer, generate, load_for_sampling, template
from sampler_config import parse_args as sampler_args
from scores import mean_and_stderr
from train_config import MAY_CHANGE
from train_config import parse_args as train_args
from validate import own_loss

def shares(cfg, tasks):
    """How many processes work at once on so many tasks, and the threads of each."""
    workers = min(tasks, cfg.workers or (os.cpu_count() if pick_device().type == "cpu" else 1))
    return workers, max(1, os.cpu_count() // workers)


# ---- stage 1: training -------------------------------------------------------------------------------------------------------


def train_one(cfg, name, argv, threads):
    """Train to the end, unless that was done before -> what came out. Raises Problem where it stops before."""
    path, log, asked = f"{cfg.out_dir}/{name}/ckpt.pt", f"{cfg.out_dir}/{name}.log", train_args(argv)
    if asked.init_from.endswith(".pt") and not os.path.exists(asked.init_from):
        raise Problem(f"{name} goes on from {asked.init_from}, which is not there: train that first")
    mark, begun = Path(f"{cfg.out_dir}/{name}.start"), sha256(asked.init_from) if asked.init_from.endswith(".pt") else asked.init_from
    if os.path.exists(path) and mark.exists() and mark.read_text() != begun:
        raise Problem(f"{path} started from another {asked.init_from} than is there now: choose another --out_dir, or delete "
                      f"{cfg.out_dir}/{name}, then run this again")
    was = load_checkpoint(path)[1]["config"] if os.path.exists(path) else {}
    if other := [flag for flag in ("max_steps", "d_embed") if was.get(flag, getattr(asked, flag)) != getattr(asked, flag)]:
        raise Problem(f"{path} was trained with --{other[0]} {was[other[0]]}, not {getattr(asked, other[0])}: choose another --out_dir")

    def result():
        ckpt = load_checkpoint(path)[1] if os.path.exists(path) else {"step": 0}
        done = ckpt["step"] == asked.max_steps and ckpt["validation"]  # evaluated only after the last step
        done = done and ckpt.get("data") in (None, load_meta(cfg.data, cfg.data_dir)["train"].get("sha256"))  # of the same text
        done = done and all(ckpt["config"].get(key, getattr(type(asked), key)) == value  # a younger flag had its default
                            for key, value in asdict(asked).items() if key not in MAY_CHANGE)
        return {key: ckpt[key] for key in ("command", "commit", "step", "validation")} if done else None

    if not result():
        tqdm.write(f"== training {name}: follow it with tail -f {log}")
        if not os.path.exists(path):
            mark.write_text(begun)
        with open(log, "a") as out:
            script, more = Path(__file__).with_name("train.py"), ["--resume"] if os.path.exists(path) else []
            subprocess.run([sys.executable, script, *argv, *more], check=False, stdout=out,
                           stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        if not result():
            raise Problem(f"the training of {name} stopped, {log} says why: mend that, then run the same command again")
    return result()


def train_all(cfg, plan):
    """Run the trainings that are not finished, those that start from another's end after those from scratch -> {name: what came out}.
    On a CPU two at once, with a thread each, take 4/5 of the time of one after the other."""
    os.makedirs(cfg.out_dir, exist_ok=True)
    asked, found = {name: train_args(argv) for name, argv in plan.items()}, {}
    waves = [[name for name in plan if (asked[name].init_from == "scratch") == scratch] for scratch in (True, False)]
    with tqdm(total=sum(a.max_steps for a in asked.values()), desc="training", unit=" steps", mininterval=0) as bar:
        for wave in filter(None, waves):
            workers, threads = shares(cfg, len(wave))
            with concurrent.futures.ThreadPoolExecutor(workers) as pool:  # also of one: Ctrl-C would kill what runs in the main thread
                each = pool.map if workers > 1 else lambda f, *of: (pool.submit(f, *args).result() for args in zip(*of))
                for name, result in zip(wave, each(partial(train_one, cfg, threads=threads), wave, [plan[name] for name in wave])):
                    found[name] = result
                    bar.update(asked[name].max_steps)
    return found


def best_rates(cfg, found):
    """{model: the learning rate with the lowest validation value of the loss that the model is trained with}; equal effort for all."""
    losses = {name: own_loss(found[name]["validation"], train_args(argv)) for name, argv in trainings(cfg).items() if "-lr" in name}
    return {model: min(cfg.lrs[model], key=lambda lr: losses[f"{model}-lr{lr}"]) for model in WAYS}


# ---- sampling and judging ----------------------------------------------------------------------------------------------------


def measure(cfg, argvs, judge):
    """What the judge says of the texts of command lines -> {"nll", "entropy", "nfe": (N,) per text, nll in nats per token; "features";
    "texts"}. A file may hold more texts than are asked for; each file is judged by itself, as `work` does, so that it is judged once."""
    rows, verdicts, tok = [], [], tokenizer(load_meta(cfg.data, cfg.data_dir)["tokenizer"])
    for settings in map(sampler_args, argvs):
        rows += (mine := read_samples(settings.out, tok)[: settings.num_samples])
        verdicts.append(judged(judge, [torch.tensor(row["ids"]) for row in mine], pick_device(), f"{cfg.out_dir}/judged", 64))
    (features, nll, tokens), texts = map(torch.cat, zip(*verdicts)), [torch.tensor(row["ids"]) for row in rows]
    return {"nll": (nll / tokens).numpy(), "entropy": entropy(texts).numpy(), "nfe": np.array([row["nfe"] for row in rows], float),
            "features": features, "texts": texts}


def work(cfg, argvs, threads):
    """Sample and judge a task, a list of command lines; the files and the judge's cache are the result."""
    torch.set_num_threads(threads)
    judge = load_judge(f"{cfg.out_dir}/judge/ckpt.pt", pick_device())
    for argv in argvs:
        model, ckpt, settings = load_for_sampling(sampler_args(argv))
        tok, writer = tokenizer(ckpt["tokenizer"]), Writer(settings, model.E.device)
        for _ in generate(settings, model, tok, template(settings, tok, model), writer, 0, 1):
            pass
        writer.finish(settings.num_samples)
        measure(cfg, [argv], judge)


def sample_all(cfg, tasks, what):
    """Run `work` on lists of sampler command lines in several processes, the longest first, and show a bar."""
    if not tasks:
        return
    workers, threads = shares(cfg, len(tasks))
    cost = [sum(int(argv[argv.index("--steps") + 1]) for argv in task) for task in tasks]
    os.environ["TQDM_DISABLE"] = "1"  # of the workers, which start anew
    with (concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool,
          tqdm(total=sum(cost), desc=what, unit=" steps", disable=False) as bar):
        jobs = {pool.submit(work, cfg, tasks[i], threads): cost[i] for i in sorted(range(len(tasks)), key=lambda i: -cost[i])}
        try:
            for job in concurrent.futures.as_completed(jobs):
                job.result()
                bar.update(jobs[job])
        except concurrent.futures.BrokenExecutor:
            raise Problem("a sampling process died, perhaps for want of memory: run the same command again, with fewer --workers") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)  # or all the others would be done first
            raise


# ---- stage 2: tuning ---------------------------------------------------------------------------------------------------------

FINALISTS, NEAR, TRIES = 2, (0.85, 1.15), 3
FIRST = {1.0: NEAR, 0.9: (1.1, 1.5), 0.8: (1.3, 1.9)}  # nucleus -> temperatures on both sides of the data's entropy


def train_to_tune(cfg, wanted, here, known):
    """Train the models of the thrown-away seed to try what --tuning lacks on. Raises Problem if that would not compare."""
    if any(known[key] != here[key] for key in TUNED_FOR):
        raise Problem(f"{cfg.tuning} lacks settings, {wanted[0][0].name} with {wanted[0][2]} for one, and had another judge or other "
                      "models than are here, so that its NLLs and new ones do not compare: run this without --tuning")
    names = {mdlm_of(cfg, THROWN_AWAY), *(f"{c.model}-lr{here['learning_rates'][c.model]}" for c, *_ in wanted if c.model not in ALONE)}
    train_all(cfg, {name: argv for name, argv in trainings(cfg).items() if name in names})


def near(curve, T, entry, setting=None):
    """What to attempt: the setting of an entry, or another, at two temperatures around the entry's own."""
    return curve, T, setting or entry["setting"], [entry["temperature"] * factor for factor in NEAR]


def tune_all(cfg, here, judge, target, known, starts=()):
    """The judge's NLL at the data's entropy of every setting of every path at T = 32, and of the two best, and what lies `beyond` them, at
    T = 8, 16 and 64, but none beyond the largest T of the cells; of RANKED all GAMMAS instead, at the best setting and all four T; of what
    drafts each setting at all four. With --cool only COOLINGS from `starts`. On a seed that is then thrown away, but for what is `known` of
    an earlier run -> {"model/path": [{"T", "setting", "nll", "temperature", ...}]}. `here` is what TUNED_FOR asks."""
    found = {curve.name: list(known["paths"].get(curve.name, []) if known else []) for curve in cfg.curves}

    def argvs(curve, T, setting, temperatures):
        seed = THROWN_AWAY if curve.model in ALONE else f"lr{here['learning_rates'][curve.model]}"
        return [sampling(cfg, curve, seed, T, t, setting, SCALES[cfg.scale].tuning_texts, "_tuning") for t in temperatures]

    def look(curve, T, setting, temperatures):
        c, (cold, hot) = arrays(cfg, {"": argvs(curve, T, setting, temperatures)}, judge)[""], temperatures
        return {"T": T, "setting": setting, "nll": at_entropy(c["nll"], c["entropy"], target), "tried": [cold, hot],
                "entropy": c["entropy"].mean(2)[0].tolist(), "temperature": toward(cold, hot, place(c["entropy"], target))}

    def attempt(wanted, what):
        """Sample `wanted`, a list of (curve, T, setting, two temperatures), again where the data's entropy lay outside of those of its two
        temperatures, and keep what came out last: an NLL that is read far beyond them would be chosen for its error."""
        wanted = [w for w in wanted if not any((e["T"], e["setting"]) == w[1:3] for e in found[w[0].name])]
        if wanted and known:
            train_to_tune(cfg, wanted, here, known)
        for number in range(1, TRIES + 1):
            plan = {(curve.model, curve.path, T, str(setting)): argvs(curve, T, setting, ts) for curve, T, setting, ts in wanted}
            sample_all(cfg, tasks_of(plan), f"tuning {what}, try {number} of {TRIES}")
            tried = [(curve, look(curve, *rest)) for curve, *rest in wanted]
            for curve, entry in tried:
                others = [e for e in found[curve.name] if (e["T"], e["setting"]) != (entry["T"], entry["setting"])]
                found[curve.name] = [*others, entry]
            wanted = [near(curve, e["T"], e) for curve, e in tried if not e["entropy"][0] <= target <= e["entropy"][1]]

    if cfg.cool:
        attempt([near(*at, at[2]["setting"] | fall) for at in starts for fall in COOLINGS], "how far the temperature falls")
        return found
    attempt([(curve, AT, setting, FIRST[(curve.fixed | setting)["top_p"]]) for curve in cfg.curves for setting in curve.grid], "settings")
    first = {c.name: [e for e in found[c.name] if e["T"] == AT and e["setting"] in c.grid] for c in cfg.curves}
    best = {c.name: sorted(first[c.name], key=nll_of)[: 1 if c.path in RANKED else FINALISTS] for c in cfg.curves}
    attempt([near(c, AT, e, e["setting"] | g) for c in cfg.curves if c.path in RANKED for e in best[c.name] for g in GAMMAS], "gamma")
    finals = {name: [e["setting"] for e in entries] for name, entries in best.items()}
    finals |= {c.name: [finals[c.name][0] | gamma for gamma in ({}, *GAMMAS)] for c in cfg.curves if c.path in RANKED}
    finals |= {c.name: c.grid for c in cfg.curves if "draft" in c.grid[0]}  # how long a draft, and which tokens to doubt, hang on T
    attempt([near(c, T, e, setting) for c in cfg.curves if c.path != "ar" for T in FINALS if T <= max(cfg.steps) for e in found[c.name]
             if e["T"] == AT and e["setting"] in finals[c.name] for setting in beyond(e["setting"], T)], "T")
    return found


# ---- stages 3 and 4 ----------------------------------------------------------------------------------------------------------


def arrays(cfg, plan, judge):
    """The measurements of every cell, per text, as (training seeds, 2, n): its command lines come in that order."""
    found = {}
    for key, argvs in tqdm(plan.items(), "reading", leave=False):
        found[key] = measure(cfg, argvs, judge)
        for what in ("nll", "entropy", "nfe"):
            found[key][what] = found[key][what].reshape(len(argvs) // 2, 2, -1)
    return found


def draw(cfg, tuning, judge, target, tag="", only=None):
    """Sample and judge every cell, or `only` one; anew, up to twice, where the data's entropy lies outside of those of its two temperatures
    by more than a quarter of their distance -> {(model/path, T): what was measured}, {(model/path, T): the better temperature}."""
    def measured(plan, what):
        sample_all(cfg, list(plan.values()), what)
        return arrays(cfg, plan, judge)

    plan = {key: argvs for key, argvs in cells(cfg, tuning, judge.context, tag).items() if only in (None, key)}
    found, better = measured(plan, "sampling"), {}
    for _ in range(TRIES - 1):
        missed = {}
        for (name, T), c in found.items():
            if not -0.25 <= (share := place(c["entropy"], target)) <= 1.25:
                temperature = better.get((name, T)) or settings_at(tuning[name], T)[1]
                missed[name, T] = toward(*(temperature * factor for factor in AROUND), share)
        better |= missed
        plan = cells(cfg, tuning, judge.context, tag, better=better)
        found |= measured({key: plan[key] for key in missed}, "sampling anew what was too varied or not varied enough")
    return found, better


def prepare(cfg):
    """The judge, the real texts, what the judge makes of them, and their mean unigram entropy: the target."""
    judge = load_judge(f"{cfg.out_dir}/judge/ckpt.pt", pick_device())
    windows = spread_windows(load_tokens(cfg.data, "val", cfg.data_dir), judge.context, SCALES[cfg.scale].duel_texts)
    windows = list(torch.from_numpy(windows)[torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))])
    features, nll, tokens = judged(judge, windows, pick_device(), f"{cfg.out_dir}/judged", 64)
    return judge, windows, features, [*mean_and_stderr(nll / tokens)], [*mean_and_stderr(entropy(windows))]


def claim(cfg, rates, known):
    """Stages 2 to 4, for checkpoints that are there; `known` is of `earlier`. What an interrupted run has sampled is read again."""
    scale, (judge, real, features, nll, target) = SCALES[cfg.scale], prepare(cfg)
    here = dict(zip(TUNED_FOR, (rates, judge.key, cfg.from_scratch, cfg.fine_tune_steps, cfg.d_embed, cfg.cool)))
    known, starts = to_cool(cfg, here, known) if cfg.cool else (known, ())
    tuning = tune_all(cfg, here, judge, target[0], known, starts)
    save_json(f"{cfg.results}_tuning.json", **here | known | {"paths": known.get("paths", {}) | tuning})
    ours, (found, better) = best_path(tuning, "dsl"), draw(cfg, tuning, judge, target[0])
    point = {key: at_entropy(c["nll"], c["entropy"], target[0]) for key, c in found.items()}
    pairs = opponents(point, ours, cfg.steps, judge.context)
    larger = cells(cfg, tuning, judge.context, texts=scale.duel_texts, better=better)
    more = {key: larger[key] for pair in pairs for key in pair}  # MAUVE wants 1,000 texts
    sample_all(cfg, list(more.values()), "sampling more where the claim is decided")
    found |= arrays(cfg, more, judge)
    numbers = compare_all(found, pairs, cfg.steps, judge.context, target[0], real, features, cfg.mdlm_per_seed or cfg.from_scratch)
    save_json(f"{cfg.results}.json", config=asdict(cfg), scale=scale._asdict(), judge=judge.key, learning_rates=rates, tuning=tuning,
              data={"nll": nll, "entropy": target}, **numbers)
    print(table(*claim_table(numbers, cfg.steps)))
    print(*ratio_lines(numbers), sep="\n")
    save_figure(f"{cfg.results}.png", claim_figure(pyplot(), numbers, nll[0]))


def again(cfg):
    """Draw one cell anew, with other random numbers, and print it beside the published one."""
    if cfg.cell not in (stored := claim_of(cfg.results))["cells"]:
        raise Problem(f"{cfg.results}.json has no cell {cfg.cell}: choose one of {', '.join(stored['cells'])}")
    cfg, (name, T) = as_it_was(cfg, stored["config"]), cfg.cell.rsplit("/", 1)
    plan = trainings(cfg, stored["learning_rates"], cfg.training_seeds)
    wanted = ("judge", "ar") if name == "ar/ar" else ("judge", "mdlm", name.split("/")[0])
    train_all(cfg, {folder: argv for folder, argv in plan.items() if folder.split("-")[0] in wanted})
    (judge, *_), entropy_of_data = prepare(cfg), stored["data"]["entropy"][0]
    (c,) = draw(cfg, stored["tuning"], judge, entropy_of_data, "_again", (name, int(T)))[0].values()
    value = at_entropy(c["nll"], c["entropy"], entropy_of_data)
    print(f"{cfg.cell}: NLL at the data's entropy {value:.3f}, published {cell(stored['cells'][cfg.cell]['nll'])}, of which by texts alone "
          f"{stored['cells'][cfg.cell].get('text_stderr') or math.nan:.3f}; {c['nfe'].mean():.1f} calls")


def main(cfg):
    known = earlier(cfg)
    rates = known and (cfg.settled or known["learning_rates"])
    plan, scale = trainings(cfg, rates, cfg.training_seeds), SCALES[cfg.scale]
    meta, length = load_meta(cfg.data, cfg.data_dir), train_args(plan["ar"]).length  # what is missing should be known first
    if meta["val"]["tokens"] < (needed := scale.duel_texts * length):
        raise Problem(f"the validation split of {cfg.data} has {meta['val']['tokens']:,} tokens, and samples are compared with {needed:,}: "
                      "prepare a larger text")
    if cfg.cell:
        return again(cfg)
    number = len(plan | trainings(cfg, rates or dict.fromkeys(WAYS, ""), cfg.training_seeds))
    texts, late = cfg.texts_in_cell
    print(f"{cfg.scale}: {number} trainings on {cfg.data}, {len(cfg.curves)} curves at T = {cfg.steps}, {texts} texts in a cell, {late} "
          f"where T > L; on {pick_device()}, into {cfg.out_dir} and {cfg.results}*", flush=True)
    if cfg.list:
        return print("\n".join(f"python train.py {shlex.join(argv)}" for argv in plan.values()),
                     *[f"and each way at the best of its rates, seeds {cfg.training_seeds}, with the MDLMs they go on from, if from any"]
                     * (not rates), sep="\n")
    pyplot()
    found = train_all(cfg, plan)
    rates = rates or best_rates(cfg, found)
    print(f"learning rates {rates}, of {cfg.lrs}", flush=True)
    found |= train_all(cfg, trainings(cfg, rates, cfg.training_seeds))
    save_json(f"{cfg.results}_training.json", learning_rates=rates, trainings=found)
    os.makedirs(f"{cfg.results}_logs", exist_ok=True)
    for name in found:
        shutil.copy(f"{cfg.out_dir}/{name}/log.jsonl", f"{cfg.results}_logs/{name}.jsonl")
    return claim(cfg, rates, known)


if __name__ == "__main__":
    run(lambda: main(CFG))
