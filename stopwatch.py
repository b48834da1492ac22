"""What a step takes: several of them timed side by side, the operations that it spends its time on, and what the machine could do."""

import functools
import time
from typing import NamedTuple

import torch

from config import out_of_memory
from runtime import autocast, matmul_ceiling, memory_in_use


class Step(NamedTuple):
    """What is timed: run(i) for i = 0, 1, ..., its tokens, its floating-point operations, and how many a second a matrix product does."""

    run: object
    tokens: int = 0
    flops: float = 0.0
    ceiling: float = 1.0


@functools.cache
def ceiling(device, dtype):
    """As runtime.matmul_ceiling, measured once for all variants of a precision."""
    return matmul_ceiling(device, autocast(device, dtype))


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(steps, repeats, device):
    """Seconds of each Step of a dict: median and quartiles over `repeats` after the warm-up, the device being waited for; tokens a second
    and MFU where they are counted. The steps take turns, so that a machine that slows down for a while slows all of them down."""
    gpu, seconds, peak = device.type == "cuda", {name: [] for name in steps}, {}
    for i in range(repeats + (warm_up := 3 if gpu else 1)):  # a CUDA graph is run, then recorded, and only then replayed
        for name in list(seconds):
            if gpu:
                torch.cuda.reset_peak_memory_stats(device)
            start = time.perf_counter()
            try:
                steps[name].run(i)
                synchronize(device)
            except RuntimeError as error:
                full = out_of_memory(error)
                if not full and "No available kernel" not in str(error):  # of a kind of attention that is not built here
                    raise
                print(f"{name}: {'out of memory' if full else error}", flush=True)
                del seconds[name]
                continue
            seconds[name].append(time.perf_counter() - start)
            if gpu:  # of one step and the weights; a CPU's peak is its process's, see `peaks`
                peak[name] = {"peak_gib": memory_in_use(device)}
    ranked = {name: sorted(s[warm_up:]) for name, s in seconds.items()}
    found = {name: {"median_s": s[len(s) // 2], "quartiles_s": [s[len(s) // 4], s[3 * len(s) // 4]], **peak.get(name, {})}
             for name, s in ranked.items()}
    for name in found:
        if (step := steps[name]).tokens:
            found[name]["tokens_per_s"] = step.tokens / found[name]["median_s"]
        if step.flops:
            found[name] |= {"mfu": step.flops / found[name]["median_s"] / step.ceiling, "flops": step.flops, "ceiling": step.ceiling}
    return found


def profile(step, device, most=8):
    """The operations that take the most time of a Step, those they call not counted -> {name: share}."""
    with torch.profiler.profile() as seen:
        step.run(0)
        synchronize(device)
    gpu, kinds = device.type == "cuda", torch.autograd.DeviceType
    kind = kinds.CUDA if gpu else kinds.CPU  # a GPU's kernels are listed a second time under the operations that start them
    spent = {event.key: event.self_device_time_total if gpu else event.self_cpu_time_total for event in seen.key_averages()
             if event.device_type == kind}
    return {name: us / sum(spent.values()) for name, us in sorted(spent.items(), key=lambda pair: -pair[1])[:most]}
