"""Importing MDLM: the fixture is a tiny random checkpoint in MDLM's own format, with the logits of MDLM's own network."""

import collections
import json
from pathlib import Path

import pytest
import torch

import mdlm
import sampler
import train
from config import Problem
from mdlm import mdlm_to_dsl, read_mdlm
from model import ModelConfig, load_checkpoint
from sampler_config import parse_args as sampler_args
from train import build
from train_config import parse_args

pytest.importorskip("safetensors")
FIXTURES = Path(__file__).parent / "fixtures"
SHAPE = json.loads((FIXTURES / "mdlm_tiny_config.json").read_text())


def state():
    return dict(read_mdlm(str(FIXTURES / "mdlm_tiny.safetensors")))


def convert(state):
    torch.manual_seed(0)
    return mdlm_to_dsl(state, SHAPE["n_heads"], SHAPE["model_length"], d_embed=8).eval()


def test_logits_are_mdlms_own():
    from safetensors.torch import load_file

    expected = load_file(FIXTURES / "mdlm_tiny_expected.safetensors")
    x, V = expected["input_ids"], SHAPE["vocab_size"] - 1
    model = convert(state())
    assert model.config.vocab_size == V and model.mask_id == V
    difference = (model(model.embed_ids(x)) - expected["logits"][..., :V]).abs().amax(-1)
    assert 0.2 < (x == V).float().mean() < 0.8  # both kinds of position are there
    assert difference[x == V].max() < 1e-4 and difference[x < V].max() < 1e-4


def test_the_view_at_snr_0_is_mdlms_mask():
    model, table = convert(state()), state()["backbone.vocab_embed.embedding"]
    assert (model.embed_noisy(torch.zeros(8)) - table[-1]).abs().max() < 1e-5
    assert model.view.bias.softmax(-1)[-1].item() == pytest.approx(0.99, abs=1e-5)
    assert torch.equal(model.embed_ids(torch.tensor([[5]]))[0, 0], table[5])


@pytest.mark.parametrize("change, message", [
    (lambda s: s.pop("backbone.blocks.1.mlp.0.bias"), "lacks the tensor backbone.blocks.1.mlp.0.bias"),
    (lambda s: s.pop("backbone.output_layer.linear.weight"), "lacks the tensor backbone.output_layer.linear.weight"),
    (lambda s: s.update({"backbone.blocks.0.extra": torch.zeros(2)}), "no place here: blocks.0.extra"),
    (lambda s: s.update({"backbone.blocks.0.attn_out.weight": torch.zeros(64, 63)}), "attn_out.weight of shape 64 x 63, not 64 x 64"),
    (lambda s: s.update({"backbone.sigma_map.mlp.0.weight": torch.zeros(16, 9)}), "sigma_map.mlp.0.weight of shape 16 x 9, not any"),
    (lambda s: s.update({"backbone.vocab_embed.embedding": torch.zeros(9)}), "vocab_embed.embedding of shape 9, not any x any"),
    (lambda s: s.update({"backbone.output_layer.linear.bias": torch.zeros(105)}), "linear.bias of shape 105, not 101"),
    (lambda s: s.clear(), "lacks the tensor backbone.vocab_embed.embedding"),
])
def test_a_checkpoint_that_does_not_fit_is_named(change, message):
    broken = state()
    change(broken)
    with pytest.raises(Problem, match=message):
        convert(broken)


def test_lightning_checkpoint_gives_its_average_and_runs_nobodys_code(tmp_path):
    """Such a file also pickles a configuration and a tokenizer, whose classes are not here and must not be called."""
    raw = state()
    average = [tensor + 1 for name, tensor in raw.items() if not name.endswith("inv_freq")]
    config = [ModelConfig(1, 2, 3, 4, 5, 6), collections.deque([1]), collections.Counter("ab")]  # stand for foreign classes
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": raw, "ema": {"decay": 0.9999, "shadow_params": average}, "hyper_parameters": {"config": config}}, path)
    read = read_mdlm(str(path))
    assert read.keys() == raw.keys()
    assert all(torch.equal(read[name], raw[name] + (0 if name.endswith("inv_freq") else 1)) for name in raw)
    for broken in ({"shadow_params": average[1:]}, {"shadow_params": list(raw)}, {"decay": 0.9999}):
        torch.save({"state_dict": raw, "ema": broken}, path)
        with pytest.raises(Problem, match="do not line up"):
            read_mdlm(str(path))
    torch.save({"state_dict": raw}, path)
    assert all(torch.equal(tensor, raw[name]) for name, tensor in read_mdlm(str(path)).items())


class Bomb:
    def __reduce__(self):
        return (open, (str(Path(__file__).with_name("exploded")), "w"))


def test_a_malicious_checkpoint_runs_nothing(tmp_path):
    torch.save({"state_dict": state(), "bomb": Bomb()}, tmp_path / "x.ckpt")
    assert read_mdlm(str(tmp_path / "x.ckpt")).keys() == state().keys()
    assert not Path(__file__).with_name("exploded").exists()


def test_unreadable_sources_are_named(tmp_path):
    with pytest.raises(Problem, match="there is no such file"):
        read_mdlm(str(tmp_path / "none.ckpt"))
    for name in ("a.safetensors", "a.ckpt"):
        (tmp_path / name).write_bytes((FIXTURES / "mdlm_tiny.safetensors").read_bytes()[:1000])
        with pytest.raises(Problem, match="fetch it again"):
            read_mdlm(str(tmp_path / name))


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_fine_tuning_of_mdlm_s_own_file_starts_at_the_asked_beta(beta):
    shape = "--n_layer 2 --n_head 2 --d_model 64 --d_embed 8 --length 24".split()
    cfg = parse_args([*shape, "--init_from", str(FIXTURES / "mdlm_tiny.safetensors"), "--beta", str(beta)])
    model, x = build(cfg, None, {"vocab_size": SHAPE["vocab_size"] - 1}).eval(), torch.randint(SHAPE["vocab_size"], (2, 24))
    assert model.view.beta.item() == model.config.beta == beta
    with torch.no_grad():
        torch.testing.assert_close(model(model.embed_ids(x)), (plain := convert(state()))(plain.embed_ids(x)))


def test_mdlm_s_own_file_becomes_a_checkpoint_that_samples_and_trains_on(cfg, tmp_path, capsys):
    from safetensors.torch import save_file

    raw, more = state(), 258 - SHAPE["vocab_size"]  # as many tokens as `bytes`, and the mask
    for name in ("vocab_embed.embedding", "output_layer.linear.weight", "output_layer.linear.bias"):
        rows = raw[f"backbone.{name}"]
        raw[f"backbone.{name}"] = torch.cat([0.1 * torch.randn(more, *rows.shape[1:]), rows])
    save_file(raw, tmp_path / "theirs.safetensors")
    asked = ["--source", str(tmp_path / "theirs.safetensors"), "--out", str(tmp_path / "ours" / "ckpt.pt"),
             *"--length 24 --n_head 2 --tokenizer bytes --dataset toy".split()]
    for *flags, message in (("--n_head", "3", "--n_head 3 does not divide"), ("--n_head", "4", "has 2 attention heads, not 4"),
                            ("--tokenizer", "text8", "257 tokens, .* text8 has 27")):
        with pytest.raises(Problem, match=message):
            mdlm.main(mdlm.parse_args([*asked, *flags]))
    mdlm.main(ours := mdlm.parse_args(asked))
    with pytest.raises(Problem, match="exists: name another --out"):
        mdlm.main(ours)
    model, ckpt, _ = sampler.load_for_sampling(settings := sampler_args(["--ckpt", ours.out, "--steps", "8", "--num_samples", "2"]))
    x, theirs = torch.randint(258, (2, 24)), mdlm_to_dsl(raw, 2, 24, 8).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(model.embed_ids(x)), theirs(theirs.embed_ids(x)))
    assert ckpt["config"]["dataset"] == "toy" and sampler.load_for_sampling(settings)[2].path == "remdm"
    sampler.main(settings)
    assert "8.0 network calls each" in capsys.readouterr().out
    again = parse_args([*"--n_layer 2 --n_head 2 --d_model 64 --d_embed 16 --length 24 --init_from".split(), ours.out])
    meta = {"vocab_size": 257, "tokenizer": "bytes"}
    assert torch.equal(build(again, None, meta).blocks[1].mlp_in.weight, load_checkpoint(ours.out)[0].blocks[1].mlp_in.weight)
    flags = "--preset owt_mdlm --dataset toy --n_layer 2 --n_head 2 --d_model 64 --length 24 --eval_only --eval_windows 17 --device cpu"
    train.main(parse_args([*flags.split(), "--data_dir", cfg.data_dir, "--out_dir", str(tmp_path / "ours")]))
    assert "validation, up to 17 windows, bits per byte: roar" in capsys.readouterr().out


def test_an_mdlm_of_a_vocabulary_without_eos_takes_a_prompt(tmp_path, capsys):
    from safetensors.torch import save_file

    raw = state()
    for name in ("vocab_embed.embedding", "output_layer.linear.weight", "output_layer.linear.bias"):
        raw[f"backbone.{name}"] = raw[f"backbone.{name}"][-1:].repeat_interleave(28, 0)  # 27 characters and the mask
    source, out = str(tmp_path / "text8.safetensors"), str(tmp_path / "ckpt.pt")
    save_file(raw, source)
    mdlm.main(mdlm.parse_args(["--source", source, "--out", out, *"--length 24 --n_head 2 --tokenizer text8".split()]))
    sampler.main(sampler_args(["--ckpt", out, "--steps", "4", "--num_samples", "1", "--prompt", "the "]))
    assert "\nthe " in capsys.readouterr().out
