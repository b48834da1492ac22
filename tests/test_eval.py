"""eval_mauve.py and judge.py: judges that are right by construction, a cache that changes nothing, curves drawn by hand, bad input."""

import json
import math
import os
import shlex
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import eval_mauve
import judge as judges
from config import Problem
from data import load_meta, load_tokens, spread_windows, tokenizer, val_windows
from eval_mauve import likelihood, matched, parse_args, pooled, sampler_of
from judge import counted, judge_chunk, judged, load_judge
from model import DSL, ModelConfig, load_checkpoint, save_checkpoint
from train import main as train
from validate import bits_per_byte

CPU = torch.device("cpu")


def causal(seed=0, **changes):
    """A small random causal network."""
    torch.manual_seed(seed)
    model = DSL(ModelConfig(**{**dict(vocab_size=257, length=16, n_layer=1, n_head=2, d_model=16, d_embed=4, causal=True), **changes}))
    for block in model.blocks:  # the branches are shut at the start
        torch.nn.init.ones_(block.attn_gate), torch.nn.init.ones_(block.mlp_gate)
    torch.nn.init.normal_(model.out.weight)
    return model.eval()


def saved(model, path, objective="ar", name="bytes"):
    save_checkpoint(path, model, tokenizer=name, config={"objective": objective}, step=0)
    return str(path)


def texts(lengths, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(97, 123, (n,), generator=g) for n in lengths]


def sample_file(path, ids, settings="0 --ckpt=m.pt --path=mdlm --steps=8"):
    tok = tokenizer("bytes")
    rows = [{"index": i, "text": tok.decode(x.tolist()), "ids": x.tolist(), "nfe": 8, "settings": settings} for i, x in enumerate(ids)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def flags(cfg, *more):
    return parse_args([*more, "--data", "toy", "--data_dir", cfg.data_dir, "--device", "cpu", "--cache", ""])


# ---- judges ------------------------------------------------------------------------------------------------------------------


def test_a_uniform_judge_has_gen_ppl_v(tmp_path):
    model = causal()
    torch.nn.init.zeros_(model.out.weight), torch.nn.init.zeros_(model.out.bias)
    _, nll, tokens = judged(load_judge(saved(model, tmp_path / "u.pt"), CPU), texts([16] * 5), CPU)
    assert tokens.tolist() == [16] * 5
    assert math.exp(likelihood(nll, tokens)[0]) == pytest.approx(257, rel=1e-6)


def test_an_ar_judge_agrees_with_its_own_training(cfg):
    cfg = replace(cfg, objective="ar", dtype="float32")
    train(cfg)
    path = f"{cfg.out_dir}/ckpt.pt"
    _, ckpt = load_checkpoint(path)
    windows = val_windows(load_tokens("toy", "val", cfg.data_dir), 16, cfg.eval_windows)
    _, nll, tokens = judged(load_judge(path, CPU), list(torch.from_numpy(windows)), CPU)
    bits = [bits_per_byte(load_meta("toy", cfg.data_dir), "val", x) for x in likelihood(nll, tokens)]
    assert bits == pytest.approx(ckpt["validation"]["nll"], rel=1e-5)


def test_texts_of_any_length_are_judged_as_if_alone(tmp_path):
    judge, mixed = load_judge(saved(causal(), tmp_path / "j.pt"), CPU), texts([3, 16, 1, 9, 16, 5])
    together = judge_chunk(judge, mixed, CPU, 4)
    for i, ids in enumerate(mixed):
        for ours, alone in zip(together, judge_chunk(judge, [ids], CPU, 1)):
            torch.testing.assert_close(ours[i].float(), alone[0].float())  # the precision of the judge; nll is summed in float64
    assert together[2].tolist() == [3, 16, 1, 9, 16, 5]


def test_the_judges_features_have_read_the_text(tmp_path):
    judge, (ids,) = load_judge(saved(causal(), tmp_path / "j.pt"), CPU), texts([9])
    for place in (0, 8):
        other = ids.clone()
        other[place] = 65
        assert not torch.allclose(judged(judge, [ids], CPU)[0], judged(judge, [other], CPU)[0])
    assert judged(judge, [ids[:0]], CPU)[2] == 0  # an empty text has features as well
    assert torch.isfinite(judged(judge, texts([16]), CPU)[0]).all()  # the longest


def test_only_the_first_eos_is_counted(tmp_path):
    judge = load_judge(saved(causal(), tmp_path / "j.pt"), CPU)._replace(first=1, eos=9)
    assert counted(judge, torch.tensor([9, 5, 9, 6, 9, 9])).int().tolist() == [0, 1, 0, 1, 0, 0]
    assert counted(judge, torch.tensor([5, 9, 6, 9])).int().tolist() == [0, 1, 1, 0]
    assert counted(judge._replace(first=0, eos=-1), torch.tensor([9, 5, 9])).all()


@pytest.fixture
def gpt2(tmp_path):
    """A tiny randomly initialised GPT-2 and a tokenizer of its own, in a folder as transformers writes it."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    tok = tokenizers.ByteLevelBPETokenizer()
    tok.train_from_iterator(["the cat sat on the mat and the dog sat on the log"], vocab_size=300, special_tokens=["<|endoftext|>"],
                            show_progress=False)
    folder = tmp_path / "gpt2"
    transformers.PreTrainedTokenizerFast(tokenizer_object=tok._tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    torch.manual_seed(0)
    shape = transformers.GPT2Config(vocab_size=300, n_positions=12, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
    transformers.GPT2LMHeadModel(shape).save_pretrained(folder)
    return str(folder)


def test_a_transformers_judge_gives_that_packages_own_loss_and_features(gpt2):
    import transformers

    judge, model = load_judge(gpt2, CPU), transformers.GPT2LMHeadModel.from_pretrained(gpt2)
    ids = [torch.tensor(judge.encode(text)) for text in ("the cat sat", "on the log the dog sat on")]
    features, nll, tokens = judged(judge, ids, CPU)
    assert judge.context == 12
    for x, feature, total, n in zip(ids, features, nll, tokens):
        out = model(x[None], labels=x[None], output_hidden_states=True)
        assert n == len(x) - 1
        torch.testing.assert_close(total / n, out.loss.double(), rtol=1e-6, atol=0)
        torch.testing.assert_close(feature, out.hidden_states[-1][0, -1])


def test_a_transformers_judge_that_was_cut_off_is_a_problem(gpt2):
    os.truncate(f"{gpt2}/model.safetensors", 1000)
    with pytest.raises(Problem, match="cannot load the judge"):
        load_judge(gpt2, CPU)


def test_the_transformers_path_end_to_end(cfg, gpt2, tmp_path, capsys):
    samples = tmp_path / "s.jsonl"
    words = ["the cat sat", "", "<|endoftext|>a dog<|endoftext|>", "the log and the mat and the cat sat on and on and on"] * 5
    samples.write_text("".join(json.dumps({"text": text}) + "\n" for text in words))
    eval_mauve.main(flags(cfg, str(samples), "--judge", gpt2, "--out", f"{tmp_path}/r.json", "--length", "16"))
    result = json.loads((tmp_path / "r.json").read_text())
    numbers = result["samples"][str(samples)]
    assert numbers["num_samples"] == 20 and numbers["empty_texts"] == 5 and numbers["cut_texts"] == 5
    assert 0 < numbers["mauve"][0] <= 1 and 1 < numbers["gen_ppl"][0] < 1e6 and result["data"]["mauve"][0] > 0
    assert "5 texts" in capsys.readouterr().out


# ---- the cache ---------------------------------------------------------------------------------------------------------------


def test_a_cached_verdict_equals_a_fresh_one_and_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    judge = load_judge(saved(causal(), tmp_path / "j.pt"), CPU)
    monkeypatch.setattr(judges, "CHUNK", 4)
    many, cache, calls = texts([5, 9, 3, 16, 7, 7, 2, 11, 4, 8]), str(tmp_path / "cache"), []

    def failing(x):
        calls.append(len(x))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return judge.hidden(x)

    with pytest.raises(KeyboardInterrupt):
        judged(judge._replace(hidden=failing), many, CPU, cache)
    judged(judge._replace(hidden=failing), many, CPU, cache)
    assert calls == [4, 4, 4, 2]  # the first chunk was kept, the second asked for anew
    fresh, kept = judged(judge, many, CPU), judged(judge._replace(hidden=None), many, CPU, cache)
    assert all(torch.equal(a, b) for a, b in zip(fresh, kept))
    files = sorted((tmp_path / "cache" / judge.key).iterdir())
    assert len(files) == 3
    files[0].write_bytes(files[0].read_bytes()[:50])  # damaged: judged again
    assert all(torch.equal(a, b) for a, b in zip(fresh, judged(judge, many, CPU, cache)))


def test_another_judge_or_another_text_is_no_cache_hit(tmp_path):
    one, other = (load_judge(saved(causal(seed), tmp_path / f"{seed}.pt"), CPU) for seed in (0, 1))
    assert one.key != other.key and one.key == load_judge(saved(causal(0), tmp_path / "again.pt"), CPU).key
    assert one.key != load_judge(saved(causal(0, n_head=4), tmp_path / "heads.pt"), CPU).key
    first = judged(one, texts([5, 9]), CPU, str(tmp_path / "cache"))
    assert not torch.equal(first[1], judged(other, texts([5, 9]), CPU, str(tmp_path / "cache"))[1])
    assert not torch.equal(first[1], judged(one, texts([5, 9], seed=1), CPU, str(tmp_path / "cache"))[1])


# ---- the table and the frontier ----------------------------------------------------------------------------------------------


def test_likelihood_is_a_ratio_of_sums_with_the_error_of_one():
    nll, tokens = torch.tensor([10.0, 20.0, 60.0]).double(), torch.tensor([10, 10, 20])
    mean, error = likelihood(nll, tokens)
    assert mean == pytest.approx(90 / 40)
    residuals = (nll - mean * tokens) / (40 / 3)
    assert error == pytest.approx((residuals.std() / 3**0.5).item())
    assert likelihood(3 * tokens.double(), tokens) == pytest.approx([3, 0])


def test_matched_entropy_interpolates_and_never_extrapolates():
    curve = [(5.0, 0, 3.0, 0.3), (4.0, 0, 2.0, 0.4), (6.0, 0.02, 5.0, 0.1)]
    assert matched(curve, (4.0, 0)) == pytest.approx((2.0, 0.4))
    assert matched(curve, (5.5, 0.03)) == pytest.approx((4.0, math.hypot(0.15, 0.05, 2 * math.hypot(0.01, 0.03))))
    assert matched(curve, (6.1, 0)) is None and matched(curve[:1], (5.5, 0)) is None


def test_files_of_one_sampler_make_one_curve():
    a = sampler_of("x/a.jsonl", "1f --ckpt=m.pt --path=mdlm --steps=8 --temperature=0.7")
    b = sampler_of("y/b.jsonl", "2e --ckpt=m.pt --path=mdlm --steps=8 --top_p=1.0 --seed=3")
    assert a[0] == b[0] == "m.pt path=mdlm steps=8" and a[1] != b[1]
    assert a == sampler_of("y/c.jsonl", "3d --ckpt=m.pt --path=mdlm --steps=8 --temperature=0.7 --seed=3")  # one point
    assert a[0] != sampler_of("x/a.jsonl", "1f --ckpt=m.pt --path=mdlm --steps=16")[0]
    assert sampler_of("x/a.jsonl", "")[0] == "x" and sampler_of("x/a.jsonl", "") != sampler_of("x/b.jsonl", "")
    rng = np.random.default_rng(0)
    texts = rng.normal(3, 1, (2, 2, 500))  # entropy and NLL in two files

    def point(x):
        return [number for values in x for number in (values.mean(), values.std() / len(values) ** 0.5)]

    assert pooled([point(texts[:, 0]), point(texts[:, 1])]) == pytest.approx(point(texts.reshape(2, -1)), rel=0.01)


def test_frontier_end_to_end(cfg, tmp_path):
    pytest.importorskip("matplotlib")
    judge = saved(causal(), tmp_path / "j.pt")
    settings = "0 --ckpt=m.pt --path=mdlm --steps=8 --temperature="
    files = []
    for i, letters in enumerate((2, 4, 8)):  # the data has 4 letters
        ids = torch.randint(97, 97 + letters, (40, 16), generator=torch.Generator().manual_seed(i))
        files.append(sample_file(tmp_path / f"{letters}.jsonl", ids, settings + str(letters)))
    eval_mauve.main(flags(cfg, *files, "--judge", judge, "--frontier", f"{tmp_path}/f.png", "--out", f"{tmp_path}/f.json"))
    result = json.loads((tmp_path / "f.json").read_text())
    (curve,) = result["frontier"].values()
    entropies = [point[0] for point in curve["curve"]]
    assert entropies == sorted(entropies) and len(entropies) == 3
    low, high = sorted(point[2] for point in curve["curve"])[::2]
    assert low <= curve["matched_nll"][0] <= high and (tmp_path / "f.png").stat().st_size > 5000
    assert result["samples"][files[0]]["js_1"][0] > result["samples"][files[1]]["js_1"][0]


# ---- bad input ---------------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_sentence(cfg, tmp_path, monkeypatch):
    good = sample_file(tmp_path / "s.jsonl", texts([16] * 6))

    def says(message, *more):
        with pytest.raises(Problem, match=message):
            eval_mauve.main(flags(cfg, *more))

    says("no samples at", f"{tmp_path}/none.jsonl", "--judge", "none")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"txt": 1}\n')
    says("line 2: not a sample", f"{tmp_path}/bad.jsonl", "--judge", "none")
    (tmp_path / "ids.jsonl").write_text('{"text": "abc", "ids": [5, 6, 7]}\n' * 3)
    says("not bytes tokens", f"{tmp_path}/ids.jsonl", "--judge", "none")
    says("holds 1 texts, 2 are needed", sample_file(tmp_path / "one.jsonl", texts([16])), "--judge", "none")
    says("6 texts, 50 are needed", good, "--judge", "none", "--num_samples", "50")
    says("has 250 blocks of 16 tokens, not 300", sample_file(tmp_path / "many.jsonl", texts([16] * 300)), "--judge", "none")
    for more in ('"ids": ["b"]', '"ids": [-1]', '"nfe": "b"', '"settings": 1', "oops"):
        (tmp_path / "bad.jsonl").write_text(f'{{"text": "a", {more}}}\n')
        says("line 1: not a sample", f"{tmp_path}/bad.jsonl", "--judge", "none")
    says("no samples at", str(tmp_path), "--judge", "none")
    says("no 4-gram", sample_file(tmp_path / "short.jsonl", texts([1] * 5)), "--judge", "none")
    broken = causal()
    torch.nn.init.constant_(broken.norm.weight, 3e38), torch.nn.init.constant_(broken.norm.bias, 3e38)
    says("finite features", good, "--judge", saved(broken, tmp_path / "nan.pt"))
    says("cannot judge", good, "--judge", saved(causal(causal=False), tmp_path / "d.pt", "dsl"))
    says("reads gpt2 tokens and toy is in bytes", good, "--judge", saved(causal(), tmp_path / "g.pt", name="gpt2"))
    monkeypatch.setitem(sys.modules, "transformers", None)
    says("pip install transformers", good, "--judge", "gpt2-large")


@pytest.mark.parametrize("bad", ["--judge none", "a.jsonl --num_samples 1", "a.jsonl --seeds 0", "a.jsonl --judge none --frontier f.png",
                                 "a.jsonl a.jsonl", "a.jsonl --frontier f.xyz"])
def test_bad_flags_are_usage_errors(bad, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_args(shlex.split(bad))
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("N", [50, 200])
def test_references_are_spread_and_the_datas_own_row_is_of_others(cfg, tmp_path, N):
    tokens = load_tokens("toy", "val", cfg.data_dir)
    samples = sample_file(tmp_path / "s.jsonl", texts([16] * N))
    _, references, others = eval_mauve.gather(flags(cfg, samples, "--judge", "none"), tokenizer("bytes"), 256)
    place = {tuple(window): i for i, window in enumerate(val_windows(tokens, 16, 250).tolist())}
    assert len(place) == 250  # no two are alike
    at = [place[tuple(row["ids"])] for row in references]
    assert len(at) == N and max(b - a for a, b in zip([-1, *at], [*at, 250])) <= -(-250 // N) + 1 and at == sorted(set(at))
    between = others and [place[tuple(row["ids"])] for row in others]
    assert between is None if N == 200 else all(a < b < c for a, b, c in zip(at, between, [*at[1:], 250]))


def test_without_a_judge_there_are_distances_still(cfg, tmp_path):
    windows = torch.from_numpy(spread_windows(load_tokens("toy", "val", cfg.data_dir), 16, 100)[::2])
    eval_mauve.main(flags(cfg, sample_file(tmp_path / "s.jsonl", windows), "--judge", "none", "--out", f"{tmp_path}/r.json"))
    numbers = json.loads((tmp_path / "r.json").read_text())["samples"][f"{tmp_path}/s.jsonl"]
    assert numbers["js_1"][0] == numbers["js_4"][0] == 0 and "mauve" not in numbers  # the references themselves
