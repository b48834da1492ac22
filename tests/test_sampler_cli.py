"""sampler.py as its users run it, on tiny random checkpoints: conditions, files, several processes, and every bad combination."""

import concurrent.futures
import fcntl
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import prepare_owt
import sampler
from config import Problem, whole_file
from data import tokenizer
from model import DSL, ModelConfig, save_checkpoint
from sampler import sample, sample_text, template
from sampler_config import parse_args
from show import read_trace

ROOT = Path(__file__).resolve().parent.parent
TOK = tokenizer("bytes")


def checkpoint(path, objective="dsl", length=16, **config):
    torch.manual_seed(0)
    model = DSL(ModelConfig(257, length, n_layer=1, n_head=2, d_model=16, d_embed=4, causal=objective == "ar"))
    with torch.no_grad():
        model.out.weight.normal_()
        model.out.bias[128:] = -30.0  # plain ASCII
        model.out.bias[:32] = -30.0
        for block in model.blocks:
            block.attn_gate.fill_(1)
            block.mlp_gate.fill_(1)
    save_checkpoint(path, model, config={"objective": objective, "dataset": "toy", **config}, step=7, tokenizer="bytes", validation={},
                    command="c", commit="d")
    return str(path)


@pytest.fixture
def cfg(tmp_path):
    flags = ["--ckpt", checkpoint(tmp_path / "dsl.pt"), "--device", "cpu", "--steps", "4"]
    return parse_args([*flags, "--num_samples", "5", "--batch_size", "2"])


def rows(path):
    return [json.loads(line) for line in open(path)]


# ---- conditions --------------------------------------------------------------------------------------------------------------


def test_prompt_and_infill_keep_their_text(cfg, tmp_path):
    for flags, begin, end, length in ((dict(prompt="ab c"), "ab c", "", 16), (dict(infill="xy[MASK*5]z[MASK] q"), "xy", " q", 11)):
        sampler.main(replace(cfg, out=str(tmp_path / f"{length}.jsonl"), **flags))
        found = rows(tmp_path / f"{length}.jsonl")
        assert len(found) == 5 and len({row["text"] for row in found}) > 1
        for row in found:
            assert row["text"].startswith(begin) and row["text"].endswith(end) and len(row["ids"]) == length
            assert max(row["ids"]) < 257 and row["nfe"] <= 4
    assert all(row["text"][7] == "z" for row in found)


def test_text_for_a_model_of_framed_windows_begins_after_an_eos(cfg):
    model, _, cfg = sampler.load_for_sampling(cfg)
    for asked in (replace(cfg, prompt="ab"), replace(cfg, infill="ab[MASK*3]c")):
        plain, framed = (template(asked, TOK, model, framed).tolist() for framed in (False, True))
        assert plain[:2] == [97, 98] and framed[:3] == [256, 97, 98]
        assert len(framed) == len(plain) + (asked.prompt == "") and framed.count(model.mask_id) == plain.count(model.mask_id) - (
            asked.prompt != "")
    assert template(cfg, TOK, model, True).tolist() == [model.mask_id] * cfg.length  # nothing is given
    shown = []
    model.embed_noisy = lambda z, plain=model.embed_noisy: shown.append(z.shape[1]) or plain(z)
    for framed in (False, True):
        before, after = sampler.correct(model, TOK, replace(cfg, correct="abc"), framed)
        assert before == [97, 98, 99] and len(after) == 3
    assert shown == [3, 5]


def test_longer_texts_come_in_blocks_whose_older_half_is_given(cfg, tmp_path):
    sampler.main(replace(cfg, length=40, prompt="abc", out=str(tmp_path / "long.jsonl")))
    for row in rows(tmp_path / "long.jsonl"):
        assert len(row["ids"]) == 40 and row["text"].startswith("abc") and max(row["ids"]) < 257
    model, _, cfg = sampler.load_for_sampling(replace(cfg, length=40))
    for framed, half in ((False, 8), (True, 7)):  # the EOS that ends a framed window is not left in the text
        starts, before = [], None
        for state, ids, _ in sample_text(model, [0], cfg, template(cfg, TOK, model), framed):
            if state.step == 0:
                starts.append(state.block)
                assert before is None or torch.equal(state.x[:, :half], before[:, state.block : state.block + half])
                assert before is None or state.given.tolist()[0] == [True] * half + [False] * (len(state.given[0]) - half)
            before = ids
        assert starts == [0, 8, 16, 24] and len(before[0]) == 40 and not (before == model.mask_id).any()


@pytest.mark.parametrize("framed", [False, True])
def test_what_the_checkpoint_says_of_frames_reaches_the_sampler(cfg, tmp_path, monkeypatch, framed):
    told = []
    monkeypatch.setattr(sampler, "sample_text", lambda *args: told.append(args[-1]) or sample_text(*args))
    sampler.main(replace(cfg, ckpt=checkpoint(tmp_path / "framed.pt", frame_eos=framed), num_samples=1))
    assert told == [framed]


def test_correct_reads_the_posterior_of_what_it_shows(cfg, capsys):
    model, _, cfg = sampler.load_for_sampling(replace(cfg, correct="a text"))
    before, after = sampler.correct(model, TOK, cfg)
    assert TOK.decode(before) == "a text"
    clean = sampler.correct(model, TOK, replace(cfg, correct_snr=float("inf")))[1]
    with torch.no_grad():
        assert clean == model(model.embed_ids(torch.tensor([before])))[0].argmax(-1).tolist()
    assert after != clean and sampler.correct(model, TOK, replace(cfg, correct_snr=1e4))[1] == clean
    sampler.main(cfg)
    assert "[-" in capsys.readouterr().out


# ---- files and processes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["posterior", "soft", "sde"])
def test_texts_do_not_depend_on_batches(cfg, path, tmp_path):
    """With a real network another batch groups sums otherwise: an error of 1e-7 flips one draw in some 10^6. Of the three there are up to
    3 x 320, for each of 5 x 16 tokens one a step, and 2 x 240 choices what to forget: a false alarm on one new machine in 700. Every path
    is tested without rounding, in test_sampler.py."""
    for size in (1, 5):
        sampler.main(replace(cfg, path=path, batch_size=size, out=str(tmp_path / f"{size}.jsonl")))
    assert [row["ids"] for row in rows(tmp_path / "1.jsonl")] == [row["ids"] for row in rows(tmp_path / "5.jsonl")]


def test_an_unfinished_file_is_gone_on_with(cfg, tmp_path, capsys):
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    sampler.main(replace(cfg, out=str(whole)))
    torn.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:2]) + b'{"index": 2, "te')  # killed while writing
    sampler.main(replace(cfg, out=str(torn), batch_size=1))
    assert "2 are there already" in capsys.readouterr().out
    assert torn.read_bytes() == whole.read_bytes()
    sampler.main(replace(cfg, out=str(torn)))
    assert "5 are there already" in capsys.readouterr().out and torn.read_bytes() == whole.read_bytes()
    with pytest.raises(Problem, match="other settings"):
        sampler.main(replace(cfg, out=str(torn), seed=1))
    assert torn.read_bytes() == whole.read_bytes()


def test_settings_of_a_text_are_flags(cfg, tmp_path):
    settled = replace(cfg, path="mend", exact_doubt=True, prompt="a b", out=str(tmp_path / "x.jsonl"), num_samples=4, batch_size=32)
    _, *flags = shlex.split(sampler.Writer(settled, torch.device("cpu")).settings)
    assert parse_args([*flags, "--out", settled.out, "--device", "cpu"]) == settled


def test_torchrun_shares_the_texts_out(cfg, tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    sampler.main(replace(cfg, out=str(one)))
    flags = ["--ckpt", cfg.ckpt, "--device", "cpu", "--steps", "4", "--num_samples", "5", "--batch_size", "2", "--out", str(two)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "sampler.py", *flags]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert two.read_bytes() == one.read_bytes() and f"saved {two}" in done.stdout


def test_several_processes_need_a_file(cfg, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Problem, match="several processes need --out"):
        sampler.main(cfg)


def test_a_control_character_does_not_reach_the_terminal(cfg, monkeypatch, capsys):
    monkeypatch.setattr(sampler, "generate", lambda *args: [{"index": 0, "text": "a\x1b[2Jb\nc", "ids": [97], "nfe": 1}])
    sampler.main(replace(cfg, show=1))
    assert "a·[2Jb\nc" in capsys.readouterr().out


def test_what_is_no_plain_file_is_not_replaced(tmp_path):
    with pytest.raises(Problem, match="is no plain file"), whole_file(tmp_path):
        pass


def test_eos_stays_in_the_text(cfg, tmp_path):
    sampler.main(replace(cfg, infill="<|endoftext|>a[MASK]", out=str(tmp_path / "x.jsonl")))  # typed by hand it is plain text
    assert rows(tmp_path / "x.jsonl")[0]["ids"][0] == ord("<")
    model, _, cfg = sampler.load_for_sampling(cfg)
    given = torch.tensor([256, model.mask_id])
    *_, state = sample(model, [0], cfg, given=given)
    assert TOK.decode(state.x[0].tolist()).startswith("<|endoftext|>")


def test_trace_holds_every_state(cfg, tmp_path):
    sampler.main(replace(cfg, path="soft", eta=0.5, trace=str(tmp_path / "trace.jsonl"), out=str(tmp_path / "x.jsonl")))
    trace = list(read_trace(tmp_path / "trace.jsonl"))
    assert len(trace) == 5 * (4 + 1) and {row["index"] for row in trace} == set(range(5))
    final = {row["index"]: row["ids"] for row in trace if row["step"] == 4}
    assert [final[row["index"]] for row in rows(tmp_path / "x.jsonl")] == [row["ids"] for row in rows(tmp_path / "x.jsonl")]
    assert {s for row in trace for s in row["snr"]} > {0, float("inf")}
    lost = replace(cfg, path="soft", eta=0.5, trace=str(tmp_path / "another.jsonl"), out=str(tmp_path / "x.jsonl"))
    with pytest.raises(Problem, match="would lose the texts that are done already"):
        sampler.main(lost)
    (tmp_path / "x.jsonl").write_bytes(b"".join((tmp_path / "x.jsonl").read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(Problem, match="would lose the texts that are done already"):
        sampler.main(replace(cfg, path="soft", eta=0.5, trace=str(tmp_path / "trace.jsonl"), out=str(tmp_path / "x.jsonl")))
    assert len(list(read_trace(tmp_path / "trace.jsonl"))) == 5 * (4 + 1)


def test_watch_prints_plain_lines_when_stdout_is_no_terminal(cfg, capsys):
    sampler.main(replace(cfg, watch=True, show=0))
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:4].strip().isdigit()]
    assert len(lines) == 5 and lines[0].endswith("░" * 16) and "░" not in lines[-1]


def test_an_autoregressive_checkpoint_samples_left_to_right_without_seeing_the_future(tmp_path):
    cfg = parse_args(["--ckpt", checkpoint(tmp_path / "ar.pt", "ar"), "--device", "cpu", "--temperature", "0"])
    model, _, cfg = sampler.load_for_sampling(cfg)
    assert (cfg.path, cfg.steps) == ("ar", 16)
    *_, state = sample(model, [0], cfg)
    x = torch.empty(1, 0, dtype=torch.long)
    for _ in range(16):  # greedy decoding, written out
        seen = torch.cat([torch.tensor([[model.mask_id]]), x], 1)
        x = torch.cat([x, model(model.embed_ids(seen))[:, -1:].argmax(-1)], 1)
    assert torch.equal(state.x, x) and state.nfe.item() == 16


def test_a_file_of_somebody_else_is_not_touched(cfg, tmp_path):
    for content in (b"some prose\nof mine\n", b" 0.5\n", (tmp_path / "dsl.pt").read_bytes()):
        (tmp_path / "mine").write_bytes(content)
        with pytest.raises(Problem, match="was not written by sampler.py"):
            sampler.main(replace(cfg, out=str(tmp_path / "mine")))
        assert (tmp_path / "mine").read_bytes() == content


def test_texts_of_another_model_are_not_taken_for_this_ones(cfg, tmp_path):
    sampler.main(replace(cfg, out=str(tmp_path / "x.jsonl")))
    torch.manual_seed(1)
    state = torch.load(cfg.ckpt, weights_only=True)
    state["model"]["out.bias"] += torch.randn(257)
    torch.save(state, cfg.ckpt)
    with pytest.raises(Problem, match="other settings or another checkpoint"):
        sampler.main(replace(cfg, out=str(tmp_path / "x.jsonl")))


def test_many_processes_can_finish_one_file(cfg, tmp_path):
    sampler.main(replace(cfg, out=str(tmp_path / "x.jsonl")))
    before = (tmp_path / "x.jsonl").read_bytes()
    (tmp_path / "x.jsonl").write_bytes(b"".join(reversed(before.splitlines(keepends=True))))
    _, _, settled = sampler.load_for_sampling(replace(cfg, out=str(tmp_path / "x.jsonl")))
    writer = sampler.Writer(settled, torch.device("cpu"))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # flock holds between open files, so threads will do
        found = list(pool.map(lambda _: len(writer.finish(5)), range(40)))
    assert found == [5] * 40 and (tmp_path / "x.jsonl").read_bytes() == before


def test_sample_works_with_the_defaults_of_its_configuration(cfg):
    model, _, _ = sampler.load_for_sampling(cfg)
    *_, state = sample(model, range(2), cfg)
    assert state.x.shape == (2, 16) and state.clean.all()


# ---- what is refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, message", [
    ("--length 9 --prompt 123456789", "leaves nothing to write of 9"),
    ("--prompt 12345678901234567890", "has 20 tokens and leaves nothing"),
    ("--infill a[MASK*99]", "has 100 tokens, the model reads 16"),
    ("--correct 12345678901234567890", "has 20 tokens, the model reads 16"),
    ("--trace x --out y --report z --num_samples 1 --prompt 12345678901234567", "has 17 tokens and leaves nothing"),
])
def test_texts_that_do_not_fit_are_refused(cfg, flags, message):
    with pytest.raises(Problem, match=message):
        sampler.main(parse_args(["--ckpt", cfg.ckpt, "--device", "cpu", *flags.split()]))


@pytest.mark.parametrize("flags", ["--path posterior", "--path soft", "--path sde", "--path hybrid --then mdlm", "--correct x",
                                   "--path mdlm --clean_snr 1"])
def test_paths_that_need_dsl_refuse_an_mdlm_checkpoint(tmp_path, flags):
    path = checkpoint(tmp_path / "mdlm.pt", "mdlm")
    with pytest.raises(Problem, match="needs a DSL model and .* was trained by mdlm"):
        sampler.main(parse_args(["--ckpt", path, "--device", "cpu", *flags.split()]))
    assert sampler.load_for_sampling(parse_args(["--ckpt", path, "--device", "cpu"]))[2].path == "remdm"


def test_compiling_is_decided_by_the_calls_to_come(cfg, monkeypatch):
    told = []
    monkeypatch.setattr(sampler, "compiled", lambda f, cfg, device, calls, **options: told.append((calls, options)) or f)
    sampler.load_for_sampling(replace(cfg, num_samples=5, batch_size=2, steps=7))
    assert told == [(21, {"dynamic": True})]


def test_a_report_says_how_many_words_of_the_texts_are_in_the_corpus(cfg, tmp_path, capsys):
    """Two words that are, and letters that may make others between them, counted here from the file of texts."""
    (tmp_path / "two.jsonl").write_text("".join(json.dumps({"text": f" {word} "}) + "\n" for word in ("red", "blue") * 20))
    prepare_owt.main(prepare_owt.parse_args(f"--text {tmp_path}/two.jsonl --name toy --out_dir {tmp_path} --workers 1".split()))
    out, report = str(tmp_path / "x.jsonl"), str(tmp_path / "report.json")
    sampler.main(replace(cfg, infill="red [MASK*5] blue", data_dir=str(tmp_path), out=out, report=report))
    words, found = [word for row in rows(out) for word in row["text"].split()], json.loads(Path(report).read_text())
    share = sum(word in ("red", "blue") for word in words) / len(words)
    assert 0 < share < 1 and found["known_words"] == pytest.approx(share) and f"in toy: {share:.3f} +- " in capsys.readouterr().out
    assert (found["corpus"], found["num_samples"], found["sampling"]["path"]) == ("toy", 5, "posterior")
    assert found["nfe"] == sum(row["nfe"] for row in rows(out)) / 5
    assert found["training"] == {"command": "c", "commit": "d", "step": 7, "validation": {}}


def test_a_report_is_written_by_one_process_at_a_time(cfg, tmp_path, monkeypatch):
    """Each that finds the texts complete writes it: while one does, the file of texts is locked."""
    told = []

    def report(cfg, rows, ckpt):
        with open(cfg.out, "rb") as f, pytest.raises(BlockingIOError):
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        told.append(len(rows))

    monkeypatch.setattr(sampler, "report", report)
    for name in ("load_tokens", "val_windows", "require_text"):
        monkeypatch.setattr(sampler, name, lambda *of: None)
    for _ in range(2):  # also where the texts are there already
        sampler.main(replace(cfg, out=str(tmp_path / "x.jsonl"), report=str(tmp_path / "r.json")))
    assert told == [5, 5]


def test_an_autoregressive_checkpoint_refuses_other_paths(tmp_path):
    path = checkpoint(tmp_path / "ar.pt", "ar")
    for flags in ("--path mdlm", "--steps 8", "--infill a[MASK] --steps 16"):
        with pytest.raises(Problem, match="use --steps 16, and no other --path, --infill"):
            sampler.load_for_sampling(parse_args(["--ckpt", path, "--device", "cpu", *flags.split()]))


def test_a_file_that_cannot_be_written_is_one_line(cfg):
    command = [sys.executable, "sampler.py", "--ckpt", cfg.ckpt, "--out", "/proc/none/x.jsonl"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr


# ---- README ------------------------------------------------------------------------------------------------------------------


def test_the_path_that_readme_writes_goes_from_left_to_right(tmp_path, monkeypatch, capsys):
    """Its block of Python as it stands, on 64 tokens in its 64 steps, from a checkpoint where it looks for the demo's."""
    (tmp_path / "out" / "demo").mkdir(parents=True)
    checkpoint(tmp_path / "out" / "demo" / "ckpt.pt", length=64)
    monkeypatch.chdir(tmp_path)
    block, names = re.search(r"^## Write your own path\n.*?^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)[1], {}
    exec(block, names)
    end = names["state"]
    assert end.x.shape == (4, 64) and end.clean.all() and capsys.readouterr().out == f"{TOK.decode(end.x[0].tolist())}\n"
    for j, state in enumerate(sample(names["model"], range(4), names["cfg"], names["left_to_right"])):
        assert torch.equal(state.clean, (torch.arange(64) < j).expand(4, -1))
    assert j == 64 and torch.equal(state.x, end.x)
