"""Every number of a training run: the configuration, its flags and its presets. Standard library only, read before torch is imported."""

from dataclasses import dataclass
from math import inf

from config import arg, parse

# MDLM's recipe for OpenWebText: 12 layers of 768, windows of 1,022 tokens between two EOS, batch 512, constant learning rate.
OWT = dict(dataset="owt", length=1024, n_layer=12, n_head=12, d_model=768, d_embed=64, frame_eos=True, batch_size=512, micro_batch=32,
           lr=3e-4, warmup=2500, lr_final=1.0, beta2=0.999, ema=0.9999, max_steps=1_000_000, eval_every=5000, save_every=1000,
           log_every=50)
# Our own choices in `owt` are no dropout, the corruption below (authors: endpoint share 1/4, one SNR per sequence, its median 0.68 t_c and
# sigma 1.41) and beta (authors: 1/sqrt(D)); steps, learning rate and batch are those of a published fine-tune of the same checkpoint. The
# four large presets have not been run here.
PRESETS = {
    "owt": OWT | dict(objective="dsl", init_from="kuleshov-group/mdlm-owt", lr=2e-5, batch_size=288, micro_batch=36, max_steps=60_000,
                      out_dir="out/owt"),
    "owt_mdlm": OWT | dict(objective="mdlm", dropout=0.1, mask_share=0.99, out_dir="out/owt_mdlm"),
    "owt_ar": OWT | dict(objective="ar", dropout=0.1, out_dir="out/owt_ar"),
    "text8": OWT | dict(objective="dsl", dataset="text8", length=256, d_embed=16, frame_eos=False, micro_batch=64, max_steps=500_000,
                        out_dir="out/text8"),
    "demo": dict(),  # the defaults below
}
# What a resumed run may say otherwise than its checkpoint.
MAY_CHANGE = ("preset", "resume", "max_steps", "micro_batch", "out_dir", "data_dir", "device", "compile", "log_every", "eval_every",
              "eval_windows", "sample_every", "save_every", "keep", "skip_nonfinite", "wandb", "eval_only", "dry_run", "init_from")


@dataclass(frozen=True)
class Config:
    """Every number of a run. The checkpoint and log.jsonl carry it whole."""

    # the defaults below are the demo's; a bare command line takes the preset owt, on top of them
    preset: str = arg("owt", "named set of defaults that the other flags override", choices=tuple(PRESETS))
    dataset: str = arg("pydocs", "name of a folder that prepare_owt.py wrote")
    data_dir: str = arg("data", "where datasets live")
    out_dir: str = arg("out/demo", "where ckpt.pt and log.jsonl go")
    resume: bool = arg(False, "go on from out_dir/ckpt.pt")
    init_from: str = arg("scratch", "weights to start from: a checkpoint of ours (.pt), or MDLM's: .safetensors, .ckpt, Hugging Face id")
    objective: str = arg("dsl", "what to train", choices=("dsl", "mdlm", "ar"))
    seed: int = arg(0, "seed of the weights, the data order, the masks and the noise")
    device: str = arg("", "cpu, cuda or mps; empty: cuda where there is one, else cpu")
    dtype: str = arg("auto", "precision of the matrix products; auto: bfloat16 where the processor is fast at it",
                     choices=("auto", "float32", "bfloat16"))
    compile: str = arg("auto", "torch.compile the loss; auto: from 200 steps on CUDA, from 2,000 in float32 on a CPU",
                     choices=("auto", "on", "off"))
    # the network
    length: int = arg(128, "L, tokens in a sequence")
    frame_eos: bool = arg(False, "a sequence is L - 2 tokens of text between two EOS, as in MDLM; else a plain window")
    n_layer: int = arg(4, "transformer blocks")
    n_head: int = arg(4, "attention heads")
    d_model: int = arg(128, "C, width of the stream")
    d_embed: int = arg(128, "D, dimension of the unit sphere of token embeddings")
    dropout: float = arg(0.0, "dropout on both branches of a block")
    beta: float = arg(1.0, "start of the view's inverse temperature; with --init_from only where that was not trained by DSL")
    mask_share: float = arg(0.5, "start of the [MASK] slot's weight at SNR 0; not used with --init_from")
    frozen: tuple[str, ...] = arg((), "what stays as it starts: E (the embeddings), beta")
    # the corruption (DSL only), SNRs in units of t_c = 2 ln V
    endpoint: float = arg(0.5, "share of sequences made of clean and masked tokens only")
    common: float = arg(0.0, "share of the other sequences whose tokens have one SNR in common")
    snr_median: float = arg(0.9, "median of the log-normal SNR, in t_c")
    snr_sigma: float = arg(1.2, "standard deviation of ln SNR")
    # the optimiser
    max_steps: int = arg(4800, "optimiser steps")
    batch_size: int = arg(16, "sequences in one optimiser step, over all processes")
    micro_batch: int = arg(0, "sequences in one pass of one process, gradients being accumulated; 0: batch_size / processes")
    lr: float = arg(4e-3, "peak learning rate of AdamW")
    warmup: int = arg(50, "steps of linear warm-up")
    lr_final: float = arg(0.05, "learning rate at the last step as a share of the peak, reached linearly; 1 keeps it constant")
    beta2: float = arg(0.98, "AdamW's second decay rate; the first is 0.9")
    weight_decay: float = arg(0.0, "AdamW's weight decay, of all parameters, norms and gates too")
    clip: float = arg(1.0, "largest norm of the gradient")
    ema: float = arg(0.995, "decay of the averaged weights, those that are evaluated and sampled")
    # what is seen and kept
    log_every: int = arg(20, "steps between lines of log.jsonl")
    eval_every: int = arg(0, "steps between evaluations; 0: only after the last step")
    eval_windows: int = arg(2048, "validation windows for the ROAR bound; the diffusion bound takes 1/16 of them")
    sample_every: int = arg(0, "steps between printed samples; 0: none")
    save_every: int = arg(500, "steps between checkpoints")
    keep: int = arg(1, "checkpoints to keep: ckpt.pt, and before it ckpt-STEP.pt")
    skip_nonfinite: int = arg(0, "skip this many steps whose gradient is not finite before stopping")
    wandb: str = arg("", "project of Weights & Biases to log to as well")
    eval_only: bool = arg(False, "evaluate out_dir/ckpt.pt, or without one the checkpoint init_from, and exit")
    dry_run: bool = arg(False, "print parameters, tokens per step, FLOPs per token and memory, and exit")

    def __post_init__(self):
        for name in ("length", "n_layer", "n_head", "d_model", "d_embed", "max_steps", "batch_size", "log_every", "save_every",
                     "eval_windows", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1")
        for name in ("endpoint", "common", "dropout", "lr_final", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} must be between 0 and 1")
        for name in ("micro_batch", "seed", "warmup", "weight_decay", "eval_every", "sample_every", "skip_nonfinite", "snr_sigma"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} cannot be negative")
        if not (0 < self.lr < inf and self.snr_median > 0 and self.clip > 0 and 0 <= self.beta2 < 1 and 0 < self.mask_share < 1):
            raise ValueError("--lr, --snr_median and --clip must be positive, --lr finite, --beta2 and --mask_share between 0 and 1")
        if not self.out_dir:
            raise ValueError("--out_dir is empty: is a variable of the shell unset?")
        if self.seed >= 2**63 or self.device == "mps" and self.sample_every:
            raise ValueError("--seed must be below 2^63; --sample_every draws in float64, which mps lacks")
        if not set(self.frozen) <= {"E", "beta"}:
            raise ValueError("--frozen takes E, beta or both")
        if self.eval_windows < 17 or self.frame_eos and self.length < 3:
            raise ValueError("--eval_windows must be at least 17 (the diffusion bound takes every 16th), --length 3 with --frame_eos")
        if self.d_model % (2 * self.n_head):
            raise ValueError("--d_model must be an even multiple of --n_head")

    @property
    def text_length(self):
        """Tokens of text in a sequence."""
        return self.length - 2 * self.frame_eos

    def evaluates(self, step):
        """Whether the weights are evaluated after so many steps."""
        return step == self.max_steps or self.eval_every > 0 and step % self.eval_every == 0

    @property
    def lookup_share(self):
        """The share of sequences that are fed by row lookup alone, for counting FLOPs."""
        return self.endpoint if self.objective == "dsl" else 1.0


def parse_args(argv=None, description=None):
    """The Config that the command line (or `argv`) asks for; a bad flag or combination is a one-line usage error."""
    return parse(Config, argv, PRESETS, description)
