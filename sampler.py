"""Sample text: one loop over a path in per-token SNR space.

A state holds one SNR per token: 0 is [MASK], inf is clean, and in between there is Gaussian evidence z. Two moves change it:
    observe  snr -> snr + d: draw a token from the denoiser, then add the evidence that it would give; d = inf fixes the token. Exact
             for one token at a time: those that are drawn at once do not know of each other
    forget   snr -> s < snr: the channel's own reverse; s = 0 is remasking. Exact, and needs no network.
A path is a rule that names the next SNR of every token; each is a few lines of paths.py. The state and its moves are in state.py.

    python sampler.py --steps 32                                   # after `make demo`
    python sampler.py --path remdm --steps 64 --num_samples 5000 --out samples.jsonl
    python sampler.py --prompt "The " --watch                      # also --infill "text [MASK*12] text", --correct "text with erors"

In Python: *_, state = sample(model, range(4), cfg); see `sample`, and "Write your own path" in README.md.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import sys
import time
from dataclasses import asdict, replace

from config import Problem, run, whole_file, writable
from sampler_config import DEFAULT_PATHS, MASK, NEEDS_DSL, Config, parse_args

CFG = parse_args(description=__doc__) if __name__ == "__main__" else None  # before torch is imported: a typo should cost nothing

import torch
from tqdm import tqdm

from data import encode, load_tokens, require_text, sha256, tokenizer, val_windows, word_report
from dsl_loss import critical_snr
from model import load_checkpoint
from paths import PATHS
from report import save_json
from runtime import SHAPES, compiled, pick_device
from show import Screen, Trace, diff, printable
from state import State


# ---- the loop ----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sample(model, samples, cfg, path=None, given=None, block=0, kind=State):
    """Generate texts `samples` (ints that key their random numbers): yields the State before the first and after every step. It is
    one object that changes; at the end all of it is clean.

    `path` is a name of PATHS or any function (state, j, T) -> target SNR (B, L); default cfg.path, else posterior, which is for DSL.
    `given` (L,) or (B, L) holds ids that stay and the mask where to write; default cfg.length masks, or the model's own length of them.
    What is not clean after T steps is read off by argmax. `model` needs embed_ids, embed_noisy, hidden, head, E and mask_id. Use:
    *_, state = sample(...); state.x.
    """
    path = path or cfg.path or "posterior"
    rule = PATHS[path] if isinstance(path, str) else path
    if given is None:
        given = torch.full((cfg.length or model.config.length,), model.mask_id, device=model.E.device)
    state = kind(model, samples, cfg, given.expand(len(samples), -1), block)
    yield state
    for j in range(cfg.steps):
        target = rule(state, j, cfg.steps).to(state.snr.dtype).masked_fill(state.given, torch.inf)
        down, up = target < state.snr, target > state.snr
        state.observe(up, target)  # before forgetting: the draw sees the text as it is
        state.forget(down, target)
        if j == cfg.steps - 1 and not state.clean.all():
            state.read_off()
        state.step = j + 1
        yield state


# ---- the command line --------------------------------------------------------------------------------------------------------


def load_for_sampling(cfg):
    """The checkpoint's model, its dict, and cfg with path, steps and length settled. Raises Problem when they do not fit together."""
    model, ckpt = load_checkpoint(cfg.ckpt, pick_device(cfg.device))
    V, L, objective = tokenizer(ckpt["tokenizer"]).n_vocab, model.config.length, ckpt["config"]["objective"]
    if V != model.config.vocab_size:
        raise Problem(f"{cfg.ckpt} predicts {model.config.vocab_size} tokens, its tokenizer {ckpt['tokenizer']} has {V}: train it again")
    if model.E.device.type == "mps":
        raise Problem("sampling draws in float64, which mps lacks: use --device cpu")
    cfg = replace(cfg, path=cfg.path or DEFAULT_PATHS[objective], length=cfg.length or L)
    if objective == "ar" and cfg.steps == Config.steps:
        cfg = replace(cfg, steps=cfg.length)  # there is no choice
    if objective == "ar" and (cfg.path != "ar" or cfg.infill or cfg.correct or cfg.clean_snr or cfg.steps != cfg.length):
        raise Problem(f"{cfg.ckpt} is autoregressive, one call per token: use --steps {cfg.length}, and no other --path, --infill, "
                      "--correct or --clean_snr")
    used = {cfg.path, cfg.then} if cfg.path == "hybrid" else {cfg.path}
    if objective != "dsl" and (cfg.correct or cfg.clean_snr or used & set(NEEDS_DSL)):
        asked = "--correct" if cfg.correct else f"--path {cfg.path}" if used & set(NEEDS_DSL) else "--clean_snr"
        instead = "use --path remdm or recorded" if asked.startswith("--path") else "leave it out"
        raise Problem(f"{asked} needs a DSL model and {cfg.ckpt} was trained by {objective}: {instead}, or fine-tune it with train.py "
                      "--init_from")
    calls = cfg.steps * -(-cfg.num_samples // cfg.batch_size)
    model.hidden = compiled(model.hidden, cfg, model.E.device, calls, **SHAPES[cfg.static])
    return model, ckpt, cfg


def template(cfg, tok, model, framed=False):
    """The ids (N,) of a text: what --prompt or --infill gives, and the mask where to write; a model whose windows were `framed` by EOS has
    never seen text at the first position. Raises Problem when that is too long."""
    L, mask = model.config.length, model.mask_id
    ids = [tok.eot_token] if framed and cfg.prompt + cfg.infill else []
    if cfg.infill:
        at = 0
        for hole in MASK.finditer(cfg.infill):
            ids += encode(tok, cfg.infill[at : hole.start()]) + [mask] * int(hole[1] or 1)
            at = hole.end()
        ids += encode(tok, cfg.infill[at:])
        if len(ids) > L:
            raise Problem(f"--infill has {len(ids)} tokens, the model reads {L}: shorten the text or its masks")
        return torch.tensor(ids, device=model.E.device)
    ids += encode(tok, cfg.prompt)
    if len(ids) >= min(L, cfg.length):
        raise Problem(f"--prompt has {len(ids)} tokens and leaves nothing to write of {min(L, cfg.length)}: shorten it")
    return torch.tensor(ids + [mask] * (cfg.length - len(ids)), device=model.E.device)


def sample_text(model, batch, cfg, ids, framed=False):
    """As `sample`, for templates `ids` (N,) of any length: blocks of the trained length L slide by L/2, the older half being given. A
    block of a `framed` model ends with an EOS, as its windows did: the next block writes that position anew.

    Yields (state, ids (B, N), calls (B,)): the block's state, and all that has been written and spent so far.
    """
    L, ids, spent = model.config.length, ids.expand(len(batch), -1).clone(), 0
    for start in range(0, max(1, ids.shape[1] - L + L // 2), max(1, L // 2)):
        for state in sample(model, batch, cfg, given=ids[:, start : start + L], block=start):
            here = ids.clone()
            here[:, start : start + L] = state.x
            yield state, here, spent + state.nfe
        ids, spent = here.clone(), spent + state.nfe
        if framed and start + L < ids.shape[1]:
            ids[:, start + L - 1] = model.mask_id


def correct(model, tok, cfg, framed=False):
    """Show the text at the SNR correct_snr, read the posterior: the likeliest token of every position -> (ids before, ids after).

    The evidence is the channel's mean, without its noise, so that the answer is one and not a draw. Clean tokens (inf) are hardly ever
    overruled: training has never shown a wrong one. A text is `framed` by EOS as the model's windows were.
    """
    frame = [tok.eot_token] if framed else []
    ids = frame + encode(tok, cfg.correct) + frame
    if len(ids) > model.config.length:
        raise Problem(f"--correct has {len(ids)} tokens, the model reads {model.config.length}: correct it in pieces")
    x = torch.tensor([ids], device=model.E.device)
    snr = cfg.correct_snr * critical_snr(len(model.E))
    with torch.no_grad():
        h = model.embed_ids(x) if snr == float("inf") else model.embed_noisy(snr * model.E[x])
        text = slice(len(frame), len(ids) - len(frame))
        return ids[text], model(h)[0].argmax(-1).tolist()[text]


class Writer:
    """The --out file: a line per text as it comes, from any number of processes; sorted at the end.

    Lines carry the settings as flags and a hash of them and the checkpoint, so that an unfinished file is gone on with and any other is
    not touched (Problem).
    """

    def __init__(self, cfg, device):
        self.path, self.done = cfg.out, set()
        if not self.path:
            return
        ignored = ("num_samples", "batch_size", "show", "watch", "out", "trace", "report", "device", "data_dir", "compile", "static")
        always = ("ckpt", "path", "steps")
        said = [f"--{name}" if value is True else f"--{name}={value}" for name, value in asdict(cfg).items()
                # what is not said has its default, so that flags yet to come leave today's files alone
                if name not in ignored and (name in always or value != getattr(Config, name))]
        digest = hashlib.sha256(json.dumps([said, sha256(cfg.ckpt), device.type]).encode()).hexdigest()[:8]
        self.settings = shlex.join([digest, *said])
        open(writable(self.path), "ab").close()
        for row in self.rows():
            if row.get("settings") != self.settings:
                raise Problem(f"{self.path} holds texts of other settings or another checkpoint: choose another --out, or delete it")
            self.done.add(row["index"])

    def rows(self):
        """The lines of the file, but for those that a kill has cut off."""
        found, head = [], b'{"index": '
        with open(self.path, "rb") as f:
            for line in f:
                if not line.startswith(head[: len(line.rstrip(b"\n"))]):
                    raise Problem(f"{self.path} was not written by sampler.py: choose another --out")
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found

    @contextlib.contextmanager
    def locked(self):
        """The file, open for appending, with no other process writing it."""
        while True:
            with open(self.path, "ab+") as f:
                fcntl.flock(f, fcntl.LOCK_EX)
                if os.fstat(f.fileno()).st_ino == os.stat(self.path).st_ino:  # else another process has just replaced it
                    yield f
                    return

    def write(self, rows):
        if self.path:
            with self.locked() as f:
                f.seek(max(0, f.seek(0, os.SEEK_END) - 1))
                torn = f.read(1) not in (b"", b"\n")
                f.write(b"\n" * torn + b"".join(json.dumps({**row, "settings": self.settings}).encode() + b"\n" for row in rows))

    def finish(self, total):
        """Sort the file once all texts are there -> the first `total` rows, or None while other processes are still at work."""
        with self.locked():
            rows = {row["index"]: row for row in self.rows()}
            if not all(i in rows for i in range(total)):
                return None
            with whole_file(self.path) as f:
                f.writelines(json.dumps(rows[i]).encode() + b"\n" for i in sorted(rows))
            return [rows[i] for i in range(total)]


def generate(cfg, model, tok, given, writer, rank, world, framed=False):
    """Write all texts of this process's share, batch by batch; yields their rows."""
    mine = range(rank, cfg.num_samples, world)
    todo = [i for i in mine if i not in writer.done]
    where = f"{cfg.trace}.{rank}" if world > 1 else cfg.trace  # a file per process
    if cfg.trace and len(todo) < len(mine) and (todo or not os.path.exists(where)):
        raise Problem(f"--trace {cfg.trace} would lose the texts that are done already: leave it out, or delete {cfg.out} and start anew")
    if cfg.trace and writable(where).exists():
        with open(where, "rb") as old:
            head = old.read(10)
        if head and (head[:9] != b'{"index":' or head[9:] == b" "):  # a space stands there in --out
            raise Problem(f"{where} is no trace of sampler.py and would be lost: choose another --trace")
    batches = [todo[i : i + cfg.batch_size] for i in range(0, len(todo), cfg.batch_size)]
    with contextlib.ExitStack() as stack:
        trace = stack.enter_context(contextlib.closing(Trace(where))) if cfg.trace else None
        screen = stack.enter_context(contextlib.closing(Screen(tok, critical_snr(tok.n_vocab)))) if cfg.watch and rank == 0 else None
        quiet = {"disable": True} if cfg.watch or rank > 0 else {}  # else as TQDM_DISABLE says
        bar = stack.enter_context(tqdm(total=len(todo), unit=" texts", **quiet))
        for batch in batches:
            for state, x, calls in sample_text(model, batch, cfg, given, framed):
                if trace:
                    trace.write(state)
                if screen and batch is batches[0]:
                    screen.show(state.step, cfg.steps, state.x[0], state.snr[0], calls[0])
            rows = [{"index": i, "text": tok.decode(ids), "ids": ids, "nfe": nfe} for i, ids, nfe in zip(batch, x.tolist(), calls.tolist())]
            writer.write(rows)
            bar.update(len(rows))
            yield from rows


def main(cfg):
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and not (cfg.out or cfg.correct):
        raise Problem("several processes need --out, where their texts come together")
    model, ckpt, cfg = load_for_sampling(cfg)
    tok, framed, start = tokenizer(ckpt["tokenizer"]), ckpt["config"].get("frame_eos", False), time.time()
    if cfg.correct:
        return print(diff(*correct(model, tok, cfg, framed), tok, sys.stdout.isatty())) if rank == 0 else None
    ids = template(cfg, tok, model, framed)
    if cfg.report:
        for split in ("train", "val"):  # what the report lacks should be known before the sampling
            tokens = load_tokens(ckpt["config"]["dataset"], split, cfg.data_dir)
        val_windows(tokens, len(ids), 1)
        require_text(ckpt, cfg.ckpt, ckpt["config"]["dataset"], cfg.data_dir)
        writable(cfg.report)
    writer = Writer(cfg, model.E.device)
    if rank == 0:
        print(f"{cfg.ckpt} (step {ckpt['step']:,}): {cfg.num_samples} texts of {len(ids)} tokens ({ckpt['tokenizer']}), path {cfg.path}, "
              f"T = {cfg.steps}, top_p {cfg.top_p}, on {world} x {model.E.device}"
              + f"; {len(writer.done)} are there already" * bool(writer.done), flush=True)
    rows = list(generate(cfg, model, tok, ids, writer, rank, world, framed))
    seconds = time.time() - start
    for row in rows[: cfg.show] if rank == 0 else ():
        print(f"\n--- {row['index']} ---\n{printable(row['text'])}")
    if rows and rank == 0:
        calls = sum(row["nfe"] for row in rows) / len(rows)
        print(f"\n{len(rows)} texts, {calls:.1f} network calls each, {seconds:.1f} s, {len(rows) * len(ids) / seconds:,.0f} tokens/s")
    if cfg.out:
        rows = writer.finish(cfg.num_samples)
        print(f"saved {cfg.out}" if rows else f"{cfg.out} is not complete yet: other processes are still at work")
    if cfg.report and rows:
        with writer.locked() if cfg.out else contextlib.nullcontext():  # several processes may find the texts complete
            report(cfg, rows, ckpt)


def report(cfg, rows, ckpt):
    """Print and write to cfg.report the share of words that occur in the checkpoint's corpus."""
    words = word_report([row["text"] for row in rows], ckpt["config"]["dataset"], len(rows[0]["ids"]), cfg.data_dir)
    print(f"words that occur in {words['corpus']}: {words['known_words']:.3f} +- {words['stderr']:.3f} of these texts, "
          f"{words['known_words_of_real_text']:.3f} of real text")
    training = {name: ckpt[name] for name in ("command", "commit", "step", "validation")}
    save_json(cfg.report, **words, nfe=sum(row["nfe"] for row in rows) / len(rows), sampling=asdict(cfg), training=training)


if __name__ == "__main__":
    run(lambda: main(CFG))
