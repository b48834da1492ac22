"""What to sample and how: the flags of sampler.py. Standard library only, read before torch is imported."""

import os
import re
from dataclasses import dataclass

from config import arg, parse

PATH_NAMES = ("posterior", "recorded", "soft", "mend", "mend-recorded", "mdlm", "remdm", "remdm-cap", "remdm-rescale", "remdm-conf",
              "remdm-loop", "forward-backward", "confidence", "random", "ar", "sde", "hybrid")
NEEDS_DSL = ("posterior", "soft", "mend", "sde", "hybrid")  # ask about tokens that are shown, or show evidence: MDLM learned neither
DEFAULT_PATHS = {"dsl": "posterior", "mdlm": "remdm", "ar": "ar"}  # of a model trained by each objective
MASK = re.compile(r"\[MASK(?:\*(\d+))?\]")


@dataclass(frozen=True)
class Config:
    """Every number of a sampling run."""

    ckpt: str = arg("out/demo/ckpt.pt", "checkpoint of train.py")
    path: str = arg("", "the rule that moves each token's SNR, see paths.py; empty: posterior for a DSL checkpoint, remdm for an MDLM one, "
                        "ar for an autoregressive one", choices=("", *PATH_NAMES))
    steps: int = arg(32, "T, each step at most one network call; of a text longer than the trained length, per block; of an "
                        "autoregressive model as many as tokens")
    num_samples: int = arg(4, "how many texts")
    batch_size: int = arg(32, "texts at a time; changes no text")
    length: int = arg(0, "tokens in a text; 0: as in training; more: by blocks that slide by half the trained length")
    seed: int = arg(0, "seed; text i depends on (seed, i) alone")
    # drawing a token
    top_p: float = arg(0.9, "nucleus: the share of probability to draw from; 1 draws from all")
    nucleus: str = arg("usual", "what becomes of the token that crosses top_p: usual keeps it, remdm drops it (but never the likeliest)",
                       choices=("usual", "remdm"))
    temperature: float = arg(1.0, "divides the logits; 0 takes the likeliest token")
    cooling: float = arg(0.0, "c: over the steps the temperature falls linearly from 1 + c to 1 - c times --temperature")
    order: str = arg("independent", "positions that are revealed or forgotten at once: independent of each other, or spread over the text, "
                                    "as letters drawn side by side know nothing of each other; mend and mend-recorded spread them always",
                     choices=("independent", "spread"))
    # knobs of single paths
    remask_budget: float = arg(4.0, "R, remasks of posterior, soft, recorded: eta = R / T a step for a revealed token; mend has its own")
    eta: float = arg(0.0, "remasking probability per step; 0: R / T for posterior, soft, recorded, 0.04 for remdm-cap and -rescale, 0.02 "
                          "for remdm-loop")
    gamma: float = arg(2.0, "posterior, soft, recorded, mend, mend-recorded forget in proportion to (1 - p)^gamma")
    exact_doubt: bool = arg(False, "those go by the probability of each written token with itself masked, a call for every one, instead "
                                   "of their own: what perfect doubt would bring")
    draft: float = arg(0.4, "share of the steps in which mend and mend-recorded write their draft")
    soft_snr: float = arg(0.1, "SNR, in units of t_c, that soft leaves to a forgotten token")
    clean_snr: float = arg(0.0, "SNR, in units of t_c, at which tokens it wrote are shown to the network; 0: by lookup")
    sde_top: float = arg(3.0, "SNR, in units of t_c, to which sde and hybrid climb")
    sde_step: str = arg("drawn", "what sde adds: evidence of a drawn token, or of the posterior mean", choices=("drawn", "mean"))
    sde_steps: int = arg(0, "steps that hybrid climbs; 0: a third of T")
    then: str = arg("posterior", "what hybrid does after that", choices=tuple(p for p in PATH_NAMES if p not in ("sde", "hybrid")))
    # conditions
    prompt: str = arg("", "text that every sample begins with")
    infill: str = arg("", "text with [MASK] or [MASK*12] where tokens are to be filled in; its length is that of text and masks")
    correct: str = arg("", "text to correct: shown as evidence, the likeliest token of each position is printed as a diff")
    correct_snr: float = arg(0.7, "SNR, in units of t_c, at which --correct shows the text; the lower, the more it doubts")
    # what comes out
    show: int = arg(4, "print this many of the texts")
    watch: bool = arg(False, "show the first text while it takes shape")
    out: str = arg("", "write the texts here as they come, as jsonl: index, text, ids, nfe, settings; an unfinished file is gone on with")
    trace: str = arg("", "write every state of every text to this jsonl")
    report: str = arg("", "write the share of words that occur in the checkpoint's corpus, and how it came about, to this json")
    data_dir: str = arg("data", "where datasets live, for --report")
    device: str = arg("", "cpu or cuda; empty: cuda where there is one")
    dtype: str = arg("float32", "precision of the network's matrix products; auto: bfloat16 where that is fast. Tokens are drawn in "
                                "float64", choices=("auto", "float32", "bfloat16"))
    static: bool = arg(False, "send all texts of a batch through the network each time, changed or not: one shape, as CUDA graphs want it; "
                              "changes no text")
    compile: str = arg("auto", "torch.compile the network; auto: from 200 calls on CUDA, 2,000 in float32 on a CPU",
                       choices=("auto", "on", "off"))

    def __post_init__(self):
        for name in ("steps", "num_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1")
        if not 0 < self.top_p <= 1 or not 0 <= self.eta <= 1 or not 0 <= self.cooling <= 1:
            raise ValueError("--top_p must be above 0 and at most 1, --eta and --cooling between 0 and 1")
        for name in ("temperature", "remask_budget", "gamma", "length", "show", "soft_snr", "sde_steps"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"--{name} cannot be negative or infinite")
        if 0 < self.temperature < 1e-3:
            raise ValueError("--temperature must be 0, for the likeliest token, or at least 0.001")
        finite = (self.sde_top, self.clean_snr, *([] if self.correct else [self.correct_snr]))
        if min(self.sde_top, self.correct_snr) <= 0 or self.clean_snr < 0 or max(finite) == float("inf"):
            raise ValueError("--sde_top and --correct_snr must be positive, --clean_snr 0 or positive; only --correct_snr may be infinite, "
                             "with --correct")
        if not 0 <= self.draft <= 1:
            raise ValueError("--draft is a share of the steps, from 0 to 1")
        if self.path == "hybrid" and self.sde_steps >= self.steps:
            raise ValueError(f"--sde_steps {self.sde_steps} leaves no step of --steps {self.steps} to the path after it")
        if self.correct and (self.out or self.report or self.trace):
            raise ValueError("--correct prints a diff and writes no file: leave out --out, --report and --trace")
        if self.exact_doubt and self.static:
            raise ValueError("--exact_doubt sends as many texts as have tokens to doubt: leave out --static")
        files = [os.path.abspath(file) for file in (self.ckpt, self.out, self.trace, self.report) if file]
        if len(set(files)) < len(files):
            raise ValueError("--out, --trace and --report would write over each other, or over --ckpt: name different files")
        if sum(map(bool, (self.prompt, self.infill, self.correct))) > 1:
            raise ValueError("choose one of --prompt, --infill and --correct")
        if self.infill and not 0 < sum(int(hole[1] or 1) for hole in MASK.finditer(self.infill)) < 10**6:
            raise ValueError("--infill has nothing to fill in, or too much: write [MASK] or [MASK*12] where tokens are missing")


def parse_args(argv=None, description=None):
    """The Config that the command line (or `argv`) asks for; a bad flag or combination is a one-line usage error."""
    return parse(Config, argv, description=description)
