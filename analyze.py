"""Ask trained models four questions about the same validation windows, and draw the answers.

    python analyze.py correction --ckpt out/demo/ckpt.pt out/mdlm/ckpt.pt --out results/correction   # can it find and mend wrong tokens?
    python analyze.py calibration --ckpt out/demo/ckpt.pt out/mdlm/ckpt.pt    # does it know how much it knows?
    python analyze.py bounds --ckpt out/demo/ckpt.pt out/judge/ckpt.pt        # what does a text cost, in bits per byte?
    python analyze.py invariance                                              # is it right at every SNR, by every route to it?

What each of them measures stands in the docstring of its function in probes.py. Every model sees the same windows, the same errors and
the same masks; --seed draws others. Standard errors are over windows, of one training run each: they say nothing about other runs.
Checkpoints whose trainings differ in --seed alone are told as one, with errors over the seeds; the figure shows the first of them. So
are those that go on from checkpoints in folders that differ in a last number, out/mdlm-3/ckpt.pt and out/mdlm-4/ckpt.pt.
"""

import collections
import re
import time
from dataclasses import asdict, dataclass

from config import Problem, arg, parse, run, writable

NEEDS = {"correction": ("dsl", "mdlm"), "calibration": ("dsl", "mdlm"), "bounds": ("dsl", "mdlm", "ar"), "invariance": ("dsl",)}


@dataclass(frozen=True)
class Config:
    """What to ask, whom, and about what."""

    what: str = arg("", "the question", choices=tuple(NEEDS), positional=True)
    ckpt: tuple[str, ...] = arg(("out/demo/ckpt.pt",), "checkpoints of train.py, of one tokenizer and length")
    data: str = arg("", "dataset whose validation windows are read; empty: the one that the checkpoints were trained on")
    num_windows: int = arg(256, "validation windows, spread over the split")
    seed: int = arg(0, "seed of errors, masks and noise")
    batch_size: int = arg(32, "windows at a time: changes no number; fewer where memory is short")
    out: str = arg("", "write OUT.json, and OUT.png where matplotlib is installed")
    corrupt: float = arg(0.1, "correction: the share of tokens that are made wrong")
    evidence_snr: float = arg(0.7, "correction, calibration: SNR, in units of t_c, at which a draft is shown as evidence")
    sweep: int = arg(8, "correction: calls in which every position is masked once")
    refine: int = arg(4, "correction: rounds of showing the changed text again")
    steps: int = arg(32, "calibration: T of the drafts that the models write")
    data_dir: str = arg("data", "where datasets live")
    device: str = arg("", "cpu, cuda or mps; empty: cuda where there is one, else cpu")

    def __post_init__(self):
        if min(self.batch_size, self.refine) < 1 or self.num_windows < 20 or self.sweep < 2 or self.steps < 4:
            raise ValueError("--batch_size and --refine must be at least 1, --sweep 2, --steps 4, --num_windows 20")
        if not 0 < self.corrupt < 1 or not 0 < self.evidence_snr < float("inf"):
            raise ValueError("--corrupt must be between 0 and 1, --evidence_snr positive and finite")
        if self.out.endswith("/"):
            raise ValueError("--out is a file's name without .json, not a folder")
        if len(set(self.ckpt)) < len(self.ckpt):
            raise ValueError("--ckpt names a file twice")


def parse_args(argv=None):
    return parse(Config, argv, description=__doc__)


CFG = parse_args() if __name__ == "__main__" else None  # before torch is imported: a typo should cost nothing

import torch

from data import load_meta, load_tokens, require_text, sha256, spread_windows
from model import load_checkpoint
from probes import PROBES, TOPS, Run
from report import cell, pyplot, save_figure, save_json, table
from runtime import pick_device
from scores import mean_and_stderr


def load(cfg):
    """Every checkpoint as a Run, the validation windows (N, L), the dataset's meta, and lists of the names of those whose trainings differ
    in their seed alone. Raises Problem when they do not fit together."""
    device, loaded, alike, twins = pick_device(cfg.device), [], {}, collections.Counter()
    for path in cfg.ckpt:
        model, ckpt = load_checkpoint(path, device)
        training = {"objective": "", "dataset": "", "frame_eos": False} | ckpt["config"]
        if training["objective"] not in NEEDS[cfg.what]:
            raise Problem(f"{cfg.what} makes sense for {' and '.join(NEEDS[cfg.what])} models and {path} was trained by "
                          f"{training['objective']}: leave it out")
        if not cfg.data:
            require_text(ckpt, path, training["dataset"], cfg.data_dir)  # else this may ask about what it was trained on
        must_agree = {"tokenizer": ckpt["tokenizer"], "vocabulary": model.config.vocab_size, "length": model.config.length,
                      "frame_eos": training["frame_eos"], "dataset": cfg.data or training["dataset"]}
        about = {"ckpt": path, "objective": training["objective"], "sha256": sha256(path),
                 **{name: ckpt[name] for name in ("command", "commit", "step")}}
        loaded.append((model, about, must_agree))
        start = re.sub(r"(?<![eE])-\d+(/[^/]*)$", r"\1", training.get("init_from", ""))
        but_seed = {name: value for name, value in training.items() if name not in ("seed", "out_dir", "resume")} | {"init_from": start}
        training_but_seed, seed = str(but_seed | {"step": ckpt["step"]}), training.get("seed")
        alike.setdefault((training_but_seed, twins[training_but_seed, seed]), []).append(len(loaded) - 1)
        twins[training_but_seed, seed] += 1  # the same seed once more, on two processes, say, is no second seed
        for what, value in must_agree.items():
            if value != loaded[0][2][what]:
                raise Problem(f"{cfg.ckpt[0]} and {path} differ in {what}, {loaded[0][2][what]} and {value}: "
                              + ("choose one with --data" if what == "dataset" else "ask about them one at a time"))
    name = must_agree["dataset"]
    meta = load_meta(name, cfg.data_dir)
    if (meta["tokenizer"], meta["vocab_size"]) != (ckpt["tokenizer"], model.config.vocab_size):
        raise Problem(f"{name} holds {meta['vocab_size']} kinds of {meta['tokenizer']} tokens, {path} reads {model.config.vocab_size} of "
                      f"{ckpt['tokenizer']}: choose another --data")
    framed = must_agree["frame_eos"] and meta["eos"] is not None
    windows = torch.from_numpy(spread_windows(load_tokens(name, "val", cfg.data_dir), model.config.length, cfg.num_windows,
                                              meta["eos"] if framed else None))
    if len(windows) < 20 or len(windows.unique()) < 2:
        raise Problem(f"{name} has {len(windows)} validation windows and 20 of more than one token are needed: prepare a longer text")
    objectives = [about["objective"] for _, about, _ in loaded]
    names = [o.upper() + f" {about['ckpt']}" * (objectives.count(o) > 1) for o, (_, about, _) in zip(objectives, loaded)]
    meta = meta | {"name": name, "text_length": model.config.length - 2 * framed}
    runs = [Run(name, about["objective"], model, about) for name, (model, about, _) in zip(names, loaded)]
    return runs, windows, meta, [[names[i] for i in seeds] for seeds in alike.values()]


# ---- training seeds ----------------------------------------------------------------------------------------------------------


def over_seeds(results):
    """One probe's results of several training seeds -> the same tree of means over them; the error of a [value, error] is the standard
    error by the spread of the seeds, or of a single seed its own. Curves, which are lists, are left out."""
    first = results[0]
    if isinstance(first, dict):
        tree = {key: over_seeds([r[key] for r in results]) for key in first if all(key in r for r in results)}
        return {key: value for key, value in tree.items() if value is not None}
    if isinstance(first, (list, tuple)):
        if len(first) != 2 or not isinstance(first[0], float):
            return None
        return [*mean_and_stderr(torch.tensor([value for value, _ in results], dtype=torch.double))] if len(results) > 1 else list(first)
    return first if len(set(results)) == 1 else sum(results) / len(results)


# ---- tables: results {model: dict of its probe} -> header, rows --------------------------------------------------------------


def percent(pair):
    """A share and its error, in percent."""
    return f"{100 * pair[0]:.1f} +- {100 * pair[1]:.1f}"


def correction_table(results):
    head = ["model", "errors", "number", "way", "calls", "AUC", "argmax: fixed, %", "kept, %", "at 98%: fixed", "kept", "at 99%: fixed",
            "kept", "refined: fixed", "kept"]
    rows = [[model, kind, r["errors"], way, r["calls"], r["auc"],
             *(percent(r[at][what]) for at in ("argmax", "at_98", "at_99", "refined") for what in ("fixed", "kept"))]
            for model, kinds in results.items() for kind, ways in kinds.items() for way, r in ways.items()]
    return head, rows


def calibration_table(results):
    head = ["model", "draft, tokens", "number", "ECE", "by chance", "confidence", "accuracy", "NLL, nats"]
    rows = [[model, kind, r["tokens"], r["ece"], r["ece_by_chance"][0], r["confidence"], r["accuracy"], r["nll"]]
            for model, kinds in results.items() for kind, r in kinds.items()]
    return head, rows


def bounds_table(results):
    rows = []
    for model, r in results.items():
        rows += [[model, name, r[key]] for key, name in (("nll", "exact"), ("roar", "random-order bound")) if key in r]
        rows += [[model, f"diffusion bound, G = {G} t_c", value] for G, value in r.get("diffusion", {}).items()]
    return ["model", "likelihood", "bits per byte"], rows


def invariance_table(results):
    head = ["model", "SNR / t_c", "CE direct, nats", "climb - direct", "forget - direct", "ECE", "by chance", "confidence", "accuracy"]
    rows = [[model, f"{level:g}", r["ce"]["direct"], *(cell(r["ce_less_direct"][route], 4) for route in ("climb", "forget")),
             r["ece"], r["ece_by_chance"][0], r["confidence"], r["accuracy"]]
            for model, levels in results.items() for level, r in levels.items()]
    return head, rows


# ---- figures: (plt, results) -> figure ---------------------------------------------------------------------------------------

STYLES = {"lookup": "s--", "evidence": "o-", "sweep": "^:"}


def legend_below(figure, axes, columns):
    """The legend of some axes under a figure, in so many columns, or as many as it has room for: names of checkpoints may be long."""
    legend = figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize=7, ncols=columns)
    if columns > 1 and legend.get_window_extent().width > figure.bbox.width:
        legend.remove()
        legend_below(figure, axes, columns - 1)


def correction_figure(plt, results):
    """Share of errors fixed against the share of clean tokens changed, as tau moves; the end on the right is plain argmax."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 5), sharey=True, layout="constrained")
    for axes, kind in zip(panels, ("random", "own")):
        for i, (model, kinds) in enumerate(results.items()):
            for way, r in kinds[kind].items():
                changed, fixed = zip(*((1 - kept, fixed) for _, kept, fixed in r["curve"]))
                label = f"{model}, {way}" + f" ({r['calls']} calls)" * (r["calls"] > 1)
                axes.plot([max(c, 1e-3) for c in changed], fixed, STYLES[way], color=f"C{i}", label=label, markevery=[-1], clip_on=False)
        axes.axvline(0.02, color="grey", linewidth=0.8)
        axes.set(xscale="log", xlim=(1e-3, 1), xlabel="share of clean tokens changed (grey: 98% kept)",
                 title={"random": "random errors", "own": "the model's own errors"}[kind])
    panels[0].set(ylabel="share of errors fixed", ylim=(0, None))
    legend_below(figure, panels[0], min(3, len(results)))
    return figure


def reliability_panel(axes, curves):
    """Accuracy against confidence, a line for each (label, reliability, style); bins of fewer than 20 tokens are left out."""
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for label, bins, style in curves:
        confidence, accuracy, _ = zip(*([row for row in bins if row[2] >= 20] or bins))
        axes.plot(confidence, accuracy, marker=".", label=label, **style)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")


def calibration_figure(plt, results):
    """Reliability for every kind of draft, and how often the likeliest token is wrong against the entropy of the prediction."""
    kinds = list(dict.fromkeys(kind for found in results.values() for kind in found))
    figure, panels = plt.subplots(2, 4, figsize=(16, 8), layout="constrained")
    *panels, last = panels.flat
    last.axis("off")
    for axes, kind, line in zip(panels, kinds, ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))):
        reliability_panel(axes, [(model, found[kind]["reliability"], {"color": f"C{i}"})
                                 for i, (model, found) in enumerate(results.items()) if kind in found])
        axes.set_title(kind)
        for i, found in enumerate(results.values()):
            if kind in found:
                entropy, wrong, _ = zip(*found[kind]["error_by_entropy"])
                panels[-1].plot(entropy, wrong, linestyle=line, color=f"C{i}", marker=".")
        panels[-1].plot([], [], linestyle=line, color="black", label=kind)
    for axes in panels[len(kinds) : -1]:
        axes.axis("off")
    panels[-1].set(xlabel="entropy of the prediction, nats", ylabel="error rate", ylim=(0, 1), title="entropy and error")
    last.legend(*(a + b for a, b in zip(panels[0].get_legend_handles_labels(), panels[-1].get_legend_handles_labels())), loc="center")
    return figure


def bounds_figure(plt, results):
    """The diffusion bound against G; the other likelihoods as bands of one standard error."""
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for i, (model, r) in enumerate(results.items()):
        for key, name in (("nll", "exact"), ("roar", "random order")):
            if key in r:
                mean, error = r[key]
                axes.axhspan(mean - error, mean + error, color=f"C{i}", alpha=0.25, label=f"{model}, {name}")
        if "diffusion" in r:
            mean, error = zip(*r["diffusion"].values())
            axes.errorbar(list(r["diffusion"]), mean, error, color=f"C{i}", marker="o", capsize=3, label=f"{model}, diffusion bound")
    axes.set(xscale="log", xlabel="G, in units of t_c", ylabel="bits per byte")
    axes.set_xticks(TOPS, [str(G) for G in TOPS])
    axes.minorticks_off()
    legend_below(figure, axes, 2)
    return figure


def invariance_figure(plt, results):
    """Cross-entropy by route, its difference from the direct route, and reliability at each SNR; a row for each model."""
    figure, grid = plt.subplots(len(results), 3, figsize=(14, 4.4 * len(results)), layout="constrained", squeeze=False)
    for row, (model, levels) in zip(grid, results.items()):
        for k, route in enumerate(("direct", "climb", "forget")):
            place = [level * 1.06 ** (k - 1) for level in levels]  # side by side, or they would hide each other
            style = dict(fmt="os^"[k], color=f"C{k}", capsize=3)
            row[0].errorbar(place, *zip(*(r["ce"][route] for r in levels.values())), label=route, **style)
            if k:
                row[1].errorbar(place, *zip(*(r["ce_less_direct"][route] for r in levels.values())), label=f"{route} - direct", **style)
        row[1].axhline(0, color="grey", linewidth=0.8)
        for axes, name in zip(row, ("cross-entropy, nats per token", "difference, nats per token")):
            axes.set(xscale="log", xlabel="SNR / t_c (markers moved apart)", ylabel=name, title=model)
            axes.set_xticks(list(levels), [f"{level:g}" for level in levels])
            axes.minorticks_off()
            axes.legend()
        reliability_panel(row[2], [(f"SNR {level:g} t_c", r["reliability"], {"color": plt.cm.viridis(k / len(levels))})
                                   for k, (level, r) in enumerate(levels.items())])
        row[2].set_title(model)
        row[2].legend()
    return figure


TABLES = {"correction": correction_table, "calibration": calibration_table, "bounds": bounds_table, "invariance": invariance_table}
FIGURES = {"correction": correction_figure, "calibration": calibration_figure, "bounds": bounds_figure, "invariance": invariance_figure}


# ---- the command line --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def main(cfg):
    runs, windows, meta, trainings = load(cfg)
    who = ", ".join(f"{r.name} (step {r.about['step']:,})" for r in runs)
    N, L = windows.shape
    device, path = str(runs[0].model.E.device), cfg.out.removesuffix(".json")
    if cfg.out:
        writable(f"{path}.json")  # what cannot be should be known before the work
    print(f"{cfg.what} of {who}: {N} validation windows of {L} tokens ({meta['tokenizer']}) of {meta['name']}, on {device}", flush=True)
    start, results = time.time(), {r.name: PROBES[cfg.what](cfg, r, windows, meta) for r in runs}
    firsts = {first: results[first] for first, *_ in trainings}
    means = {first: over_seeds([results[name] for name in (first, *others)]) for first, *others in trainings if others}
    print(table(*TABLES[cfg.what](firsts | means)))
    print(f"+- standard errors over windows{', of a model with several seeds over these' * bool(means)}; {time.time() - start:.0f} s")
    if not cfg.out:
        return
    save_json(f"{path}.json", config=asdict(cfg), data=meta["name"], windows=N, length=L, device=device, over_seeds=means,
              models={r.name: r.about | {"result": firsts.get(r.name) or over_seeds([results[r.name]])} for r in runs})
    try:
        plt = pyplot()
    except Problem as problem:
        return print(f"left out {path}.png: {problem}")
    save_figure(f"{path}.png", FIGURES[cfg.what](plt, firsts))


if __name__ == "__main__":
    run(lambda: main(CFG))
