"""200 steps of MDLM's pre-training and of DSL at OpenWebText's shape on synthetic tokens; the logs go to results/gpu_PRESET.jsonl.

    python tests/smoke_gpu.py                                  # one GPU, or 2, 4 or 8 of a node where there are so many; a few minutes
    python tests/smoke_gpu.py --n_layer 1 --length 64 ...      # any flag of train.py, for a try on a CPU

Tokens follow Zipf's law, each repeated once, so there is something to learn beyond the unigram distribution that a run starts from.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
V = 50_257


def synthetic(folder, tokens=20_000_000):
    """A dataset of Zipf-distributed GPT-2 ids, train and val."""
    folder.mkdir(parents=True)
    meta = {"tokenizer": "gpt2", "vocab_size": V, "eos": V - 1}
    rng, p = np.random.default_rng(0), 1 / np.arange(1, V + 1)
    for split, n in (("train", tokens), ("val", tokens // 20)):
        np.repeat(rng.choice(V, n // 2, p=p / p.sum()), 2).astype(np.uint16).tofile(folder / f"{split}.bin")
        meta[split] = {"tokens": n // 2 * 2, "bytes": 4 * n, "documents": 1}
    (folder / "meta.json").write_text(json.dumps(meta))


def main(flags, results=ROOT / "results", tokens=20_000_000):
    processes = max(n for n in (1, 2, 4, 8) if n <= max(1, torch.cuda.device_count()))
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    with tempfile.TemporaryDirectory() as work:
        synthetic(Path(work, "data", "synthetic"), tokens)
        for preset in ("owt_mdlm", "owt"):
            command = ["train.py", "--preset", preset, "--dataset", "synthetic", "--init_from", "scratch", "--max_steps", "200",
                       "--lr", "3e-4", "--warmup", "50", "--log_every", "10", "--eval_windows", "256",
                       "--compile", "on",  # auto would go on without where that fails
                       "--data_dir", f"{work}/data", "--out_dir", f"{work}/{preset}"]
            subprocess.run([sys.executable, *launch, *command, *flags], cwd=ROOT, check=True)
            rows = [json.loads(line) for line in open(f"{work}/{preset}/log.jsonl")]
            losses = [row["loss"] for row in rows if "loss" in row]
            shutil.copy(f"{work}/{preset}/log.jsonl", results / f"gpu_{preset}.jsonl")
            few = max(1, len(losses) // 4)
            first, last = np.mean(losses[:few]), np.mean(losses[-few:])
            print(f"{preset}: loss {first:.3f} -> {last:.3f}; saved {results}/gpu_{preset}.jsonl")
            if preset == "owt" and last >= first:  # MDLM's weighted loss may take longer than 200 steps to leave the unigram plateau
                sys.exit("the loss did not fall")


if __name__ == "__main__":
    main(sys.argv[1:])
