"""What people really do wrong, found by trying: each gets one sentence before the work, and no file is lost."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pages import ROOT

import analyze
import config
import eval_mauve
import prepare_owt
import sampler
import train
from config import Problem
from mdlm import read_mdlm
from model import DSL, ModelConfig, load_checkpoint, save_checkpoint
from runtime import Log
from sampler_config import parse_args as sampler_args
from train_config import parse_args as train_args


def asked(cfg, *flags):
    """A sampling by the checkpoint of a training `cfg`."""
    return sampler_args(["--ckpt", f"{cfg.out_dir}/ckpt.pt", "--steps", "2", "--num_samples", "3", "--device", "cpu",
                         "--data_dir", cfg.data_dir, *flags])


def test_one_folder_is_trained_into_by_one_process(cfg):
    train.main(replace(cfg, max_steps=5))
    whole = Path(cfg.out_dir, "log.jsonl").read_bytes()
    other = f"import fcntl, os, time; fcntl.flock(os.open({cfg.out_dir!r}, 0), fcntl.LOCK_EX); print(1, flush=True); time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", other], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(Problem, match="another process trains into .*: wait for it, or choose another --out_dir"):
            train.main(replace(cfg, resume=True))
        train.main(replace(cfg, eval_only=True))  # which only reads
        process.kill()
    assert Path(cfg.out_dir, "log.jsonl").read_bytes().startswith(whole)
    train.main(replace(cfg, resume=True))
    assert load_checkpoint(f"{cfg.out_dir}/ckpt.pt")[1]["step"] == 12


def test_a_disk_without_locks_is_trained_on(cfg, monkeypatch):
    def unable(*_):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("runtime.fcntl.flock", unable)
    train.main(replace(cfg, max_steps=2))
    assert Path(cfg.out_dir, "ckpt.pt").exists()


def test_a_stranger_s_line_in_the_log_stays_and_the_run_goes_on(cfg):
    train.main(replace(cfg, max_steps=5))
    path = Path(cfg.out_dir, "log.jsonl")
    strange = [b"my own note\n", b'{"note": 1}\n', b"\xff\x00\n", b"[3]\n"]
    path.write_bytes(path.read_bytes() + b"".join(strange) + b'{"step": 99}\n')
    train.main(replace(cfg, resume=True))
    lines = path.read_bytes().splitlines(keepends=True)
    assert [line for line in lines if line in strange] == strange and b'{"step": 99}\n' not in lines
    assert json.loads(lines[-1])["step"] == 12


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = DSL(ModelConfig(7, 4, n_layer=1, n_head=1, d_model=4, d_embed=2))
    torch.nn.init.constant_(model.norm.weight, torch.nan)
    save_checkpoint(tmp_path / "ckpt.pt", model, config={}, tokenizer="bytes")
    with pytest.raises(Problem, match="holds weights that are not finite"):
        load_checkpoint(tmp_path / "ckpt.pt")


class Full(RuntimeError):
    pass


Full.__name__ = "OutOfMemoryError"  # as torch's is called


@pytest.mark.parametrize("error", [MemoryError(), Full("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_one_line(error):
    def main():
        raise error

    with pytest.raises(SystemExit, match="^error: out of memory: lower --micro_batch in training, else --batch_size"):
        config.run(main)
    with pytest.raises(RuntimeError, match="a bug"):
        config.run(lambda: (_ for _ in ()).throw(RuntimeError("a bug")))


def test_what_a_terminal_cannot_show_ends_nothing(monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    config.run(lambda: print("日本"))
    shown.flush()
    assert shown.buffer.getvalue() == b"??\n"
    for stream in (None, io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        assert config.run(lambda: 3) == 3


def test_samples_are_not_written_over(capsys):
    for flags in ("a.jsonl --out ./a.jsonl", "b.jsonl a.jsonl --judge x.pt --frontier x.png --out x.pt", "a --out f.png --frontier f.png"):
        with pytest.raises(SystemExit):
            eval_mauve.parse_args(flags.split())
        assert "would write over each other, or over a file that is read" in capsys.readouterr().err
    for flags in ("--ckpt a.pt --report ./a.pt", "--ckpt a.pt --out a.pt", "--trace b --out b"):
        with pytest.raises(SystemExit):
            sampler_args(flags.split())
        assert "would write over each other, or over --ckpt" in capsys.readouterr().err


def test_samples_of_a_killed_run_or_another_editor_are_told_apart(tmp_path):
    path, row = tmp_path / "s.jsonl", '{"text": "abc", "ids": [97, 98, 99]}\n'
    path.write_bytes(b"\xef\xbb\xbf" + 2 * row.encode() + b"\n \n")
    assert len(eval_mauve.read_samples(str(path), eval_mauve.tokenizer("bytes"))) == 2
    path.write_text(2 * row + row[:12])
    with pytest.raises(Problem, match="line 3: not a sample: it is cut off, run the command that writes it again"):
        eval_mauve.read_samples(str(path), eval_mauve.tokenizer("bytes"))
    for text, line in ((2 * row + "oops\n", 3), ("\n \n" + row + "oops\n", 4), ("日本".encode("utf-16").decode("latin-1"), 1)):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(Problem, match=f"line {line}: not a sample; each"):
            eval_mauve.read_samples(str(path), eval_mauve.tokenizer("bytes"))


def test_where_nothing_can_be_written_is_known_before_the_work(cfg, tmp_path, monkeypatch):
    train.main(cfg)
    samples = tmp_path / "s.jsonl"
    sampler.main(asked(cfg, "--out", str(samples)))
    for module, name in ((sampler, "generate"), (eval_mauve, "load_judge"), (analyze, "PROBES")):
        monkeypatch.setattr(module, name, None)  # the work
    judging = [str(samples), "--data", "toy", "--data_dir", cfg.data_dir, "--judge", "none", "--out", str(tmp_path)]
    for main, flags in ((sampler.main, asked(cfg, "--report", str(tmp_path))), (sampler.main, asked(cfg, "--out", "/dev/null")),
                        (eval_mauve.main, eval_mauve.parse_args(judging))):
        with pytest.raises(Problem, match="is no plain file"):
            main(flags)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(Problem, match="folder.json is no plain file"):
        analyze.main(analyze.parse_args(["bounds", "--ckpt", f"{cfg.out_dir}/ckpt.pt", "--data_dir", cfg.data_dir,
                                         "--out", str(tmp_path / "folder")]))


def test_a_corpus_prepared_anew_is_not_taken_for_the_old_one(cfg, tmp_path):
    train.main(replace(cfg, eval_windows=250))
    ckpt = torch.load(f"{cfg.out_dir}/ckpt.pt", weights_only=True)
    torch.save(ckpt | {"data": "of the old text"}, f"{cfg.out_dir}/ckpt.pt")
    path = Path(cfg.data_dir, "toy", "meta.json")
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | {"train": meta["train"] | {"sha256": "of another"}}))
    look = ["bounds", "--ckpt", f"{cfg.out_dir}/ckpt.pt", "--data_dir", cfg.data_dir, "--num_windows", "20", "--out", f"{tmp_path}/b"]
    for main, flags in ((sampler.main, asked(cfg, "--report", f"{tmp_path}/r.json")), (analyze.main, analyze.parse_args(look))):
        with pytest.raises(Problem, match="was trained on another text than toy holds now"):
            main(flags)
    analyze.main(analyze.parse_args([*look, "--data", "toy"]))  # who says so knows
    sampler.main(asked(cfg))


def test_a_dataset_on_another_disk_stays_there(tmp_path, capsys):
    disk, link = tmp_path / "disk" / "big", tmp_path / "data" / "mine"
    disk.mkdir(parents=True), link.parent.mkdir()
    link.symlink_to(disk)
    (tmp_path / "a.txt").write_text("A text.\n\n" * 6000)
    for _ in range(2):
        prepare_owt.main(prepare_owt.parse_args(["--text", str(tmp_path / "a.txt"), "--name", "mine", "--out_dir", str(link.parent),
                                                 "--workers", "1"]))
        assert link.is_symlink() and (disk / "meta.json").exists() and os.listdir(link.parent) == ["mine"]
        assert os.listdir(disk.parent) == ["big"]
    with pytest.raises(SystemExit):
        prepare_owt.parse_args(["--text", "", "--name", "mine"])
    assert "is a variable of the shell unset?" in capsys.readouterr().err


def test_a_folder_of_ours_is_not_sought_on_the_hub(tmp_path):
    (tmp_path / "ckpt.pt").write_bytes(b"")
    with pytest.raises(Problem, match="did you mean .*ckpt.pt"):
        read_mdlm(str(tmp_path))


def test_an_old_python_is_told_before_anything_is_installed(monkeypatch):
    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "sys.version_info <" in line)

    def said(version):
        with monkeypatch.context() as old, pytest.raises(SystemExit) as end:
            old.setattr(sys, "version_info", version)
            exec(line.split('"')[1], {})
        return end.value.code

    assert "Python 3.11 or newer is needed" in said((3, 10, 9)) and not said((3, 11, 0))


def test_a_closed_log_lets_others_train(cfg):
    train.main(replace(cfg, max_steps=2))
    run = train.start(replace(cfg, resume=True), 0, 1, torch.device("cpu"))
    first = Log(cfg, run)
    with pytest.raises(Problem, match="another process"):
        Log(cfg, run)
    first.close()
    Log(cfg, run).close()


def test_a_folder_that_cannot_be_written_is_known_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("config.os.access", lambda path, mode: Path(path) != tmp_path)  # a test may be run by root, who may write anywhere
    with pytest.raises(Problem, match="r.json cannot be written, its folder is read-only: name another"):
        config.writable(tmp_path / "r.json")
    assert config.writable(tmp_path / "other" / "r.json").parent.is_dir()


def test_a_trace_overwrites_a_trace_and_nothing_else(cfg, tmp_path):
    train.main(replace(cfg, max_steps=2))
    trace, texts = tmp_path / "trace.jsonl", tmp_path / "texts.jsonl"
    sampler.main(asked(cfg, "--trace", str(trace), "--out", str(texts)))
    sampler.main(asked(cfg, "--trace", str(trace)))
    for path in (texts, Path(cfg.out_dir, "log.jsonl")):
        before = path.read_bytes()
        with pytest.raises(Problem, match=f"{path.name} is no trace of sampler.py and would be lost"):
            sampler.main(asked(cfg, "--trace", str(path)))
        assert path.read_bytes() == before


def test_an_empty_folder_s_name_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stop:
        train_args(["--out_dir="])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
