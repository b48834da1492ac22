"""Judge samples against real text: MAUVE, gen-PPL, entropy, n-gram distances; and the frontier of gen-PPL against entropy.

    python eval_mauve.py samples.jsonl --data owt                                        # as published: GPT-2 Large judges
    python eval_mauve.py samples.jsonl --data pydocs --judge out/judge/ckpt.pt           # offline: an AR checkpoint of ours judges
    python eval_mauve.py samples.jsonl --data pydocs --judge none                        # no judge: entropy and n-gram distances
    python eval_mauve.py a.jsonl b.jsonl --data pydocs --judge out/judge/ckpt.pt --frontier frontier.png --out frontier.json

The data itself is always a row of the table. References are N blocks of the validation split, at equal distances over all of it; the
data's own MAUVE and n-gram distances are those of N other blocks, between them. The files of one curve of the frontier differ in
temperature and nucleus (files that are not sampler.py's: are in one folder); those that differ in seed alone are one point.
"""

import json
import math
import os
import shlex
from dataclasses import asdict, dataclass

from config import Problem, arg, parse, run, writable


@dataclass(frozen=True)
class Config:
    """What to compare with what."""

    samples: tuple[str, ...] = arg((), "files of sampler.py --out, or any .jsonl with a field text (and ids, if they are the data's)",
                                   positional=True)
    data: str = arg("owt", "dataset whose validation split is the reference")
    judge: str = arg("gpt2-large", "an AR checkpoint of ours (.pt); a causal model of transformers, by name or folder; or none")
    num_samples: int = arg(0, "N, texts of each file and of the data; 0: as many as the smallest file holds")
    length: int = arg(0, "tokens of a reference block; 0: those of the longest text")
    frame_eos: str = arg("auto", "whether a reference block begins and ends with EOS as in MDLM; auto: if most of the texts do",
                         choices=("auto", "yes", "no"))
    seeds: int = arg(5, "k-means seeds to average MAUVE over; the spread is their standard deviation")
    batch_size: int = arg(16, "texts the judge reads at a time; changes nothing but speed and memory")
    frontier: str = arg("", "draw gen-PPL against entropy to this file (.png, .pdf, .svg) and compare at the data's entropy")
    out: str = arg("", "write everything to this json")
    cache: str = arg("out/judged", "folder that remembers what the judge said of each text; empty: judge anew")
    data_dir: str = arg("data", "where datasets live")
    device: str = arg("", "cpu, cuda or mps; empty: cuda where there is one, else cpu")

    def __post_init__(self):
        if not self.samples:
            raise ValueError("name at least one file of samples")
        if self.num_samples < 0 or self.num_samples == 1 or self.length < 0:
            raise ValueError("--num_samples must be at least 2 (or 0 for all), --length cannot be negative")
        if self.seeds < 1 or self.batch_size < 1:
            raise ValueError("--seeds and --batch_size must be at least 1")
        if len(set(self.samples)) < len(self.samples):
            raise ValueError("a file of samples is named twice")
        files = [os.path.abspath(file) for file in (self.out, self.frontier, *self.samples, self.judge) if file]
        if len(set(files)) < len(files):
            raise ValueError("--out and --frontier would write over each other, or over a file that is read: name others")
        if self.frontier and (self.judge == "none" or not self.frontier.endswith((".png", ".pdf", ".svg"))):
            raise ValueError("--frontier needs a judge, and a name that ends in .png, .pdf or .svg")


def parse_args(argv=None):
    return parse(Config, argv, description=__doc__)


CFG = parse_args() if __name__ == "__main__" else None  # before torch is imported: a typo should cost nothing

import numpy as np
import torch

from data import encode, load_meta, load_tokens, spread_windows, tokenizer
from judge import judged, load_judge
from metrics import distinct, entropy, mauve, ngram_js, repetition
from report import cell, pyplot, save_figure, save_json, table
from runtime import pick_device
from scores import mean_and_stderr

# ---- what is compared --------------------------------------------------------------------------------------------------------


def read_samples(path, tok):
    """The rows of a samples file -> list of {"text", "ids", "settings", "nfe"}. Raises Problem for lines that are no samples, and for
    ids of another tokenizer than the data's."""
    rows, number, line = [], 0, "\n"
    try:
        with open(path, encoding="utf-8-sig") as f:
            for number, line in enumerate(f, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                ids, nfe, settings = row.get("ids"), row.get("nfe"), row.get("settings", "")
                good = isinstance(row.get("text"), str) and isinstance(settings, str) and isinstance(nfe, (int, float, type(None)))
                if not good or ids is not None and not all(type(i) is int and i >= 0 for i in ids):
                    raise ValueError
                ids = encode(tok, row["text"], special=True) if ids is None else ids
                rows.append({"text": row["text"], "ids": ids, "settings": settings, "nfe": nfe})
    except (FileNotFoundError, IsADirectoryError):
        raise Problem(f"no samples at {path}: write them with `python sampler.py --num_samples 1000 --out {path}`") from None
    except (ValueError, TypeError, AttributeError) as error:
        number += isinstance(error, UnicodeError)  # of a line that cannot be read
        cut = ": it is cut off, run the command that writes it again" * (not line.endswith("\n"))
        raise Problem(f"{path}, line {number}: not a sample{cut}; each must be a json object with a field text") from None
    for number, row in enumerate(rows):
        if max(row["ids"], default=0) >= tok.n_vocab or number < 10 and tok.decode(row["ids"]) != row["text"]:
            raise Problem(f"the ids of {path} are not {tok.name} tokens, as the data's are: name the --data that the model was trained on")
    return rows


def framed(cfg, rows, eos):
    """Whether reference blocks stand between two EOS."""
    if cfg.frame_eos == "yes" and eos is None:
        raise Problem(f"--frame_eos yes: the tokenizer of {cfg.data} has no EOS")
    if cfg.frame_eos != "auto":
        return cfg.frame_eos == "yes"
    both = [bool(row["ids"]) and row["ids"][0] == eos and row["ids"][-1] == eos for row in rows]
    return eos is not None and sum(both) > len(both) / 2


def blocks(cfg, count, length, frame):
    """`count` validation blocks (fewer if there are fewer), spread over the split, as rows like those of a samples file."""
    meta = load_meta(cfg.data, cfg.data_dir)
    tok = tokenizer(meta["tokenizer"])
    windows = spread_windows(load_tokens(cfg.data, "val", cfg.data_dir), length, count, meta["eos"] if frame else None)
    return [{"text": tok.decode(ids), "ids": ids, "settings": "", "nfe": None} for ids in windows.tolist()]


# ---- the numbers -------------------------------------------------------------------------------------------------------------


def verdict(judge, rows, cfg, device):
    """The judge on rows -> (features (N, C), NLL (N,), tokens (N,), how many texts were cut). A judge with a tokenizer of its own reads the
    text, one of ours the ids. Of an empty text it sees that it begins: that counts in MAUVE, and adds no token to the likelihood."""
    ids = [judge.encode(row["text"]) if judge.encode else row["ids"] for row in rows]
    texts = [torch.tensor(x or [max(0, judge.eos)] * judge.first, dtype=torch.int64) for x in ids]
    features, nll, tokens = judged(judge, texts, device, cfg.cache, cfg.batch_size)
    features = features.to("cpu" if device.type == "mps" else device)  # MAUVE wants float64
    some = torch.tensor([bool(x) for x in ids])
    if not (tokens * some).any():
        raise Problem("no text holds a token whose likelihood could be judged: are these the right files?")
    return features, nll * some, tokens * some, sum(len(x) > judge.context for x in texts)


def likelihood(nll, tokens):
    """NLL (N,) in nats over tokens (N,) -> mean per token and its standard error over texts (a ratio of sums)."""
    mean = (nll.sum() / tokens.sum()).item()
    errors = (nll - mean * tokens) / tokens.double().mean()
    return [mean, (errors.std() / len(nll) ** 0.5).item()]


def distances(texts, references=None):
    """What of lists of ids needs no judge: entropy, repetition, distinct n-grams and, given references, n-gram JS divergences -> dict."""
    numbers = {"entropy": mean_and_stderr(entropy(texts)), "repetition": mean_and_stderr(repetition(texts))}
    for n in range(1, 5):
        numbers[f"distinct_{n}"] = distinct(texts, n)
        if references is not None:
            numbers[f"js_{n}"] = ngram_js(texts, references, n)
    return numbers


def compare(rows, said, references=None, of_references=None, seeds=5):
    """All numbers of a set of texts -> dict; [value, error] where there is an error. With `references`, also those against them.

    `said` and `of_references` are the judge's verdicts, or None. Raises Problem for texts without a 4-gram and features not finite.
    """
    numbers = {"num_samples": len(rows), "empty_texts": sum(not row["text"] for row in rows)}
    if all(row["nfe"] is not None for row in rows):
        numbers["nfe"] = sum(row["nfe"] for row in rows) / len(rows)
    if said:
        features, nll, tokens, numbers["cut_texts"] = said
        numbers["nll"] = likelihood(nll, tokens)
        numbers["gen_ppl"] = [math.exp(numbers["nll"][0]), math.exp(numbers["nll"][0]) * numbers["nll"][1]]
    try:
        if said and references:
            values = mauve(features, of_references[0], range(seeds))
            numbers["mauve"] = [values.mean().item(), values.std().item() if len(values) > 1 else None]
        return numbers | distances(*([row["ids"] for row in some] for some in (rows, references) if some))
    except ValueError as error:  # of metrics.py: a sentence already
        raise Problem(str(error)) from None


# ---- the frontier ------------------------------------------------------------------------------------------------------------


def matched(curve, target):
    """The NLL at the entropy `target` (value, error) on a frontier -> (NLL, standard error), or None where the curve does not reach.

    curve is a list of (entropy, its error, NLL, its error), interpolated linearly between neighbours in entropy. Errors in entropy count
    by the slope, as if independent of those in NLL, which rise with them: rather too large; that of the target is common to all curves.
    """
    (at, of_target), curve = target, sorted(curve)
    for (low, dx, a, da), (high, dy, b, db) in zip(curve, curve[1:]):
        if low <= at <= high and low < high:
            w, slope = (at - low) / (high - low), (b - a) / (high - low)
            across = math.hypot((1 - w) * dx, w * dy, of_target)
            return a + w * (b - a), math.hypot((1 - w) * da, w * db, slope * across)
    return None


def sampler_of(path, settings):
    """What a file's sampler was but for temperature and nucleus, by which the points of one curve differ, and what those were; without the
    seed, by which files differ that are one point -> (curve, point)."""
    swept = ("--temperature=", "--top_p=", "--nucleus=")
    try:
        flags = [flag for flag in shlex.split(settings)[1:] if not flag.startswith("--seed=")]
    except ValueError:  # settings of another program
        flags = []
    curve = " ".join(flag.removeprefix("--ckpt=").removeprefix("--") for flag in flags if not flag.startswith(swept))
    return curve or os.path.dirname(path) or ".", tuple(flag for flag in flags if flag.startswith(swept)) if flags else path


def pooled(points):
    """(value, error, value, error) of files with equally many texts -> those of all their texts."""
    x, dx, y, dy = np.array(points).T
    return x.mean(), np.linalg.norm(dx) / len(x), y.mean(), np.linalg.norm(dy) / len(y)


def frontier(results, real, cfg):
    """Draw the curves, one per sampler, and compare them at the data's entropy -> {sampler: {"curve", "matched_gen_ppl", ...}}, the figure.

    Low gen-PPL at low entropy is repetition, so samplers are compared where their texts are as varied as the data (arXiv 2604.02718).
    """
    curves, found, target = {}, {}, real["entropy"]
    for path, numbers in results.items():
        point = (*numbers["entropy"], *numbers["nll"])
        curve, at = sampler_of(path, numbers["settings"])
        curves.setdefault(curve, {}).setdefault(at, []).append(point)
    figure, axes = pyplot().subplots(figsize=(7, 4.5), layout="constrained")
    for name, points in curves.items():
        curve = [tuple(map(float, pooled(files))) for files in points.values()]
        x, dx, nll, error = np.array(sorted(curve)).T
        axes.errorbar(x, np.exp(nll), xerr=dx, yerr=np.exp(nll) * error, marker="o", capsize=2, label=name)
        at = matched(curve, target)
        found[name] = {"curve": sorted(curve), "matched_nll": at, "matched_gen_ppl": at and [math.exp(at[0]), math.exp(at[0]) * at[1]]}
        where = cell(found[name]["matched_gen_ppl"]) if at else f"not reached by its entropies, {x[0]:.2f} to {x[-1]:.2f}"
        print(f"gen-PPL at the data's entropy {target[0]:.3f}: {where}   {name}")
    axes.plot(target[0], real["gen_ppl"][0], "k*", markersize=12, label="data")
    axes.axvline(target[0], color="gray", linewidth=0.5)
    axes.set(xlabel="unigram entropy of a text, nats", ylabel=f"gen-PPL by {cfg.judge}", yscale="log")
    axes.legend(fontsize=8)
    return found, figure


# ---- the command line --------------------------------------------------------------------------------------------------------


def gather(cfg, tok, eos):
    """The files' first N rows, N reference blocks and the N blocks between those (None when the data has too few), all as rows."""
    files = {path: read_samples(path, tok) for path in cfg.samples}
    fewest = min(files, key=lambda path: len(files[path]))
    N = cfg.num_samples or len(files[fewest])
    if len(files[fewest]) < max(2, N):
        raise Problem(f"{fewest} holds {len(files[fewest])} texts, {max(2, N)} are needed: sample more, or lower --num_samples")
    for path, rows in files.items():
        if len(rows) > N:
            print(f"note: {path} holds {len(rows):,} texts; the first {N:,} count")
    files = {path: rows[:N] for path, rows in files.items()}
    everything = [row for rows in files.values() for row in rows]
    length = max(3, cfg.length or max(len(row["ids"]) for row in everything))  # two EOS and a token
    frame = framed(cfg, everything, eos)
    real = blocks(cfg, 2 * N, length, frame)
    if len(real) < N:
        lower = f"--num_samples {len(real)}" if len(real) > 1 else "a smaller --length"
        raise Problem(f"{cfg.data}'s validation split has {len(real)} blocks of {length} tokens, not {N}: use {lower}")
    print(f"{N:,} texts of each file against {N:,} blocks of {length} {tok.name} tokens{', framed by EOS,' if frame else ''} spread over "
          f"{cfg.data}'s validation split", flush=True)
    if len(real) == 2 * N:
        return files, real[::2], real[1::2]
    print(f"note: it has {len(real)} blocks, fewer than {2 * N}: the data's own MAUVE and distances are left out")
    return files, blocks(cfg, N, length, frame), None


def warn(path, numbers):
    """Say what a reader of the table should know of a file."""
    if numbers["empty_texts"]:
        print(f"note: {numbers['empty_texts']} texts of {path} are empty; they count in all but gen-PPL")
    if numbers.get("cut_texts"):
        print(f"note: {numbers['cut_texts']} texts of {path} are longer than the judge reads and were cut")


COLUMNS = ("nfe", "mauve", "gen_ppl", "entropy", "js_1", "js_2", "js_3", "js_4", "distinct_4", "repetition")


def main(cfg):
    device, meta = pick_device(cfg.device), load_meta(cfg.data, cfg.data_dir)
    for file in filter(None, (cfg.out, cfg.frontier)):  # what will fail should be known before an hour of judging
        writable(file)
    if cfg.frontier:
        pyplot()
    tok = tokenizer(meta["tokenizer"])
    files, real, more = gather(cfg, tok, meta["eos"])
    judge = load_judge(cfg.judge, device) if cfg.judge != "none" else None
    if judge:
        if judge.tokenizer not in ("", tok.name):
            raise Problem(f"{cfg.judge} reads {judge.tokenizer} tokens and {cfg.data} is in {tok.name}: train a judge on {cfg.data}")
        print(f"judge {cfg.judge}: context {judge.context}, on {device}", flush=True)

    def ask(rows):
        return verdict(judge, rows, cfg, device) if judge else None

    of_real = ask(real)
    data = compare(real, of_real)
    if more:
        second = compare(more, ask(more), real, of_real, cfg.seeds)
        data |= {name: value for name, value in second.items() if name.startswith(("mauve", "js_"))}
    results = {path: {"settings": rows[0]["settings"], **compare(rows, ask(rows), real, of_real, cfg.seeds)}
               for path, rows in files.items()}
    everything = {f"{cfg.data} (data)": data, **results}
    for path, numbers in everything.items():
        warn(path, numbers)
    print("\n" + table(("", "N", *COLUMNS), [[name, row["num_samples"], *(row.get(column) for column in COLUMNS)]
                                            for name, row in everything.items()]))
    print(f"MAUVE: mean and spread over {cfg.seeds} k-means seeds. MAUVE, JS and distinct-n depend on N: compare at equal N. The other "
          "errors are standard errors over texts.")
    curves, figure = frontier(results, data, cfg) if cfg.frontier else (None, None)
    if cfg.out:
        about = judge and {"name": judge.name, "key": judge.key, "context": judge.context}
        save_json(cfg.out, config=asdict(cfg), judge=about, data=data, samples=results, frontier=curves)
    if figure:
        save_figure(cfg.frontier, figure)


if __name__ == "__main__":
    run(lambda: main(CFG))
