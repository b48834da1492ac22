"""What to measure and at which shape: the flags of bench.py. Standard library only, read before torch is imported."""

from dataclasses import dataclass

from config import arg, parse

PRESETS = {"owt": {}, "demo": dict(vocab_size=257, length=128, n_layer=4, n_head=4, d_model=128, d_embed=128, batch_size=16)}
ATTENTION = ("flash_attention", "efficient_attention", "cudnn_attention", "math")  # of torch.nn.attention.SDPBackend


@dataclass(frozen=True)
class Config:
    """What to measure, and at which shape."""

    what: str = arg("sample", "what to measure", choices=("sample", "train", "head", "prepare", "memory"), positional=True)
    vs: tuple[str, ...] = arg((), "measure the same with each of these flags, too: compile, dtype=float32, ...")
    preset: str = arg("owt", "the shape, which other flags override: OpenWebText's model, or the demo's", choices=tuple(PRESETS))
    vocab_size: int = arg(50_257, "V")
    length: int = arg(1024, "L")
    n_layer: int = arg(12, "transformer blocks")
    n_head: int = arg(12, "attention heads")
    d_model: int = arg(768, "C")
    d_embed: int = arg(64, "D")
    endpoint: float = arg(0.5, "train: share of sequences made of clean and masked tokens only")
    steps: int = arg(256, "sample: T, a step reveals L / T tokens on average")
    batch_size: int = arg(1, "texts at a time")
    top_p: float = arg(0.9, "sample: nucleus")
    whole: bool = arg(False, "sample: with the whole network, not its head alone")
    repeats: int = arg(7, "timed repeats after the warm-up; the median counts, the quartiles are its spread")
    profile: bool = arg(False, "train, sample, head: which operations take the time of a step")
    compile: bool = arg(False, "train: torch.compile the losses; sample --whole: the network, but not that of the obvious way")
    static: bool = arg(False, "sample --whole: as sampler.py --static")
    attention: str = arg("auto", "torch's scaled_dot_product_attention, of its choice or this one", choices=("auto", *ATTENTION))
    way: str = arg("ours", "memory: of whose", choices=("ours", "obvious", "torch"))
    loss: bool = arg(False, "memory: of DSL's loss with one block, not of the cross-entropy alone")
    tokenizer: str = arg("gpt2", "prepare", choices=("gpt2", "bytes"))
    copies: int = arg(10, "prepare: how often this Python's documentation (2 MB) is tokenised")
    workers: int = arg(0, "prepare: processes that tokenise; 0: one for each core")
    dtype: str = arg("auto", "precision of matrix products; sample: of the backbone alone", choices=("auto", "float32", "bfloat16"))
    out: str = arg("", "write the numbers to this json")
    device: str = arg("", "cpu, cuda or mps; empty: cuda where there is one, else cpu")

    def __post_init__(self):
        shape = self.vocab_size, self.length, self.n_layer, self.n_head, self.d_model, self.d_embed
        if min(*shape, self.steps, self.batch_size, self.repeats, self.copies, self.workers + 1) < 1:
            raise ValueError("sizes and counts must be at least 1, --workers at least 0")
        if self.compile and self.what == "sample" and not self.whole:
            raise ValueError("--compile is of the network: sample --whole, or train")
        if self.profile and self.what in ("prepare", "memory"):
            raise ValueError("--profile is of torch's operations: train, sample or head")
        if self.loss and self.way == "torch":
            raise ValueError("--loss has no way by torch")
        if not 0 <= self.endpoint <= 1 or self.d_model % (2 * self.n_head):
            raise ValueError("--endpoint must be between 0 and 1, --d_model an even multiple of --n_head")


def parse_args(argv=None, description=None):
    """The Config that the command line (or `argv`) asks for; a bad flag or combination is a one-line usage error."""
    return parse(Config, argv, PRESETS, description)
