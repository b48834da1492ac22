"""What a run asks of its machine: its device and precision, its ranks, its signals, its next batch in time, its speed limit and memory."""

import concurrent.futures
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from config import Problem, optional, provenance, whole_file
from model import WIDE
from report import plain


def pick_device(name=""):
    """The torch.device called `name`; by default CUDA where there is one, else the CPU. Of several processes that torchrun started on a
    node each takes its own GPU. Raises Problem for a device that this machine lacks.

    mps must be asked for: it has no float64, which sampling draws in.
    """
    if "LOCAL_RANK" in os.environ and name in ("", "cuda") and torch.cuda.is_available():
        if (mine := int(os.environ["LOCAL_RANK"])) >= (there := torch.cuda.device_count()):
            raise Problem(f"torchrun started more processes than the {there} GPU(s) of this node: lower --nproc_per_node")
        torch.cuda.set_device(mine)  # first of all, or every process would open a context on GPU 0
    best = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(1, device=name or best).device
    except (RuntimeError, AssertionError):
        raise Problem(f"device {name!r} is not available here: use --device cpu, or leave the flag out") from None


def precision(device, dtype):
    """What a --dtype means on this machine, bfloat16 or float32; `auto` is bfloat16 where that is fast."""
    if dtype == "auto":
        return "bfloat16" if bfloat16_is_fast(device) else "float32"
    return dtype


def autocast(device, dtype="auto"):
    """Matrix products in the `precision` that dtype means."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision(device, dtype) == "bfloat16")


def bfloat16_is_fast(device):
    """True on GPUs (NVIDIA's from Ampere on), on CPUs with AMX, and on AMD's with AVX512-BF16: on Intel's without AMX it has half the speed
    of float32 [measured]."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    found = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not know the maker
    amd = found.get("avx512_bf16", False) and "Intel" not in found["cpu_name"]
    return device.type != "cpu" or torch.cpu._is_amx_tile_supported() or amd


def join_ranks(device):
    """Join the processes that torchrun started -> (rank, world size, torch.device); (0, 1, device) without torchrun. From here on numbers
    below 1e-38 are 0: on a CPU they made float32 training of MDLM 2.4 times slower [measured], and threads that start later inherit it."""
    torch.set_flush_denormal(True)
    device = pick_device(device)
    if "RANK" not in os.environ:
        return 0, 1, device
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return dist.get_rank(), dist.get_world_size(), device


def gather(values):
    """Concatenate a tensor (N, ...) of every rank, on the CPU, in rank order."""
    if not dist.is_initialized():
        return values.cpu()
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, values.cpu())
    return torch.cat(parts)


def rerun(world):
    """The command line that goes on with this run."""
    command, local = provenance()["command"].removesuffix(" --resume") + " --resume", int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if local < world:
        return "your torchrun line on every node, with --resume"
    return command if world == 1 else command.replace("python", f"torchrun --nproc_per_node={local}", 1)


class StopSignal:
    """Notes SIGTERM and SIGINT instead of dying, so that the loop can finish its step and save. Use as a context manager."""

    def __enter__(self):
        self.received, self.before = None, {s: signal.signal(s, self.note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def note(self, number, frame):
        self.received = signal.Signals(number).name

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def agreed(self):
        """Whether any rank has been told to stop; every rank gets the same answer, so that none waits for the others in vain."""
        if not dist.is_initialized():
            return bool(self.received)
        told = torch.tensor(int(bool(self.received)))  # on the CPU: hosts ask each other, not their GPUs
        dist.all_reduce(told)
        return bool(told)


def step_of(line):
    """The step of a line of the log; -1 for a line that somebody else wrote there."""
    try:
        return json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return -1


class Log:
    """out_dir/log.jsonl, one dict a line, and wandb if asked. On resume, lines after the checkpoint's step go: they come again. Until it is
    closed, no other process may train into out_dir (Problem)."""

    def __init__(self, cfg, run):
        self.path = Path(cfg.out_dir) / "log.jsonl" if run.rank == 0 else None
        self.wandb = self.lock = None
        if self.path and not cfg.eval_only:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.lock = os.open(cfg.out_dir, os.O_RDONLY)
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.close()
                raise Problem(f"another process trains into {cfg.out_dir}: wait for it, or choose another --out_dir") from None
            except OSError:  # not every network's disk can lock a folder
                pass
        if self.path:
            keep = (run.step or cfg.eval_only) and self.path.is_file()
            lines = self.path.read_bytes().splitlines(keepends=True) if keep else []
            whole = (line for line in lines if line.endswith(b"\n"))  # a kill may have cut the last one
            with whole_file(self.path) as f:
                f.writelines(line for line in whole if cfg.eval_only or step_of(line) <= run.step)
            if cfg.wandb:
                self.wandb = optional("wandb").init(project=cfg.wandb, config=asdict(cfg), dir=cfg.out_dir)

    def close(self):
        if self.lock is not None:
            os.close(self.lock)

    def write(self, step, **fields):
        if self.path:
            with open(self.path, "a") as f:
                f.write(json.dumps(plain({"step": step, **fields})) + "\n")
        if self.wandb:
            self.wandb.log(fields, step=step)


def prefetch(make, items):
    """Yield make(item) for each item, the next one being made in a thread meanwhile."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = None
        for item in items:
            ready, coming = coming, pool.submit(make, item)
            if ready:
                yield ready.result()
        if coming:
            yield coming.result()


def flops_per_token(config, endpoint=1.0):
    """Floating-point operations of one training step per token: matrix products only, two per multiply-add, backward twice forward.

    `endpoint` is the share of sequences fed by lookup; the others pay for the posterior view over the vocabulary.
    """
    C, V, L = config.d_model, config.vocab_size, config.length
    attention = 2 * L * C / (2 if config.causal else 1)  # q k^T and the weighted sum of v, multiply-adds
    view = (1 - endpoint) * V * (config.d_embed + C)
    return 3 * 2 * (config.n_layer * (12 * C * C + attention) + C * V + view)


def matmul_ceiling(device, context):
    """Measured FLOP/s of a large matrix product under the autocast `context`: the denominator of MFU."""
    size, best = 8192 if device.type == "cuda" else 1024, float("inf")
    a = b = torch.randn(size, size, device=device)
    with context:
        a = b = (a @ b).detach()  # now in the precision that the products of the run have
    for _ in range(5):
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


# How the sampler's network is compiled, by --static: each call has as many texts as have changed, or all of them.
SHAPES = {False: {"dynamic": True}, True: {"mode": "reduce-overhead"}}


def compiled(f, cfg, device, steps, **options):
    """The module or function f under torch.compile if cfg.compile is on, or auto and a run of so many steps wins its time back: from 200 on
    a GPU, a guess; on a CPU, on Linux with g++, from 2,000 in float32, as it takes about as long as 1,000 of the demo's [measured]; in
    bfloat16 it wins too little."""
    float32 = precision(device, cfg.dtype) == "float32"
    ready = sys.platform == "linux" and shutil.which("g++") and steps >= 2000 and float32
    if cfg.compile == "on" or cfg.compile == "auto" and (device.type == "cuda" and steps >= 200 or ready):
        torch._dynamo.config.suppress_errors = cfg.compile == "auto"  # a compiler that is there may still not work
        return torch.compile(f, **options)
    return f


def memory_in_use(device):
    """Peak memory in GiB: of the device for CUDA, of the process for a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)  # bytes on macOS, else KiB


def memory_estimate(config, sequences):
    """Rough GiB of a training step: 20 bytes per parameter (weights, gradient, average, two moments); per token of a micro-batch what is
    kept for backward, 34 bytes a channel and layer (bfloat16 with float32 norms); and 16 bytes for each of the WIDE logits of a piece."""
    params, tokens = config.n_layer * 12 * config.d_model**2 + 2 * config.vocab_size * config.d_model, sequences * config.length
    return (20 * params + 34 * tokens * config.n_layer * config.d_model + 16 * min(WIDE, tokens * config.vocab_size)) / 2**30
