"""What is fast against what is plain: the same values, the same gradients, fewer numbers at a time."""

import json
import math
import shutil
import subprocess
from dataclasses import replace
from functools import partial

import pytest
import torch
from test_sampler_cli import checkpoint

import bench
import dsl_loss as losses
import model as network
import runtime
import stopwatch
import train
from config import Problem
from dsl_loss import SNRMix, ar_loss, draw_corruption, dsl_loss, mdlm_loss
from model import DSL, ModelConfig
from sampler import load_for_sampling, sample
from sampler_config import parse_args

V, L, B = 50, 12, 6


def batch(seed=0):
    """Arguments of each loss after the model: 3 endpoint sequences and 3 others, in float64."""
    g = torch.Generator().manual_seed(seed)
    x0 = torch.randint(V, (B, L), generator=g)
    parts = [draw_corruption(seed, rows, L, 4, 8.0, SNRMix(endpoint)) for rows, endpoint in (([0, 1, 2], 1.0), ([3, 4, 5], 0.0))]
    snr, eps = (torch.cat(column).double() for column in zip(*parts))
    return {dsl_loss: (x0, snr, eps), mdlm_loss: (x0, torch.rand(B, generator=g).double(), torch.rand(B, L, generator=g).double()),
            ar_loss: (x0,)}


def network_for(loss):
    torch.manual_seed(0)
    net = DSL(ModelConfig(vocab_size=V, length=L, n_layer=2, n_head=2, d_model=16, d_embed=4, causal=loss is ar_loss))
    for p in net.parameters():  # gates and head are zero at the start, and would hide a difference
        torch.nn.init.normal_(p, std=0.5)
    return net.double()


def value_and_gradients(loss, pieces, monkeypatch, inputs=None):
    monkeypatch.setattr(network, "WIDE", pieces)
    net = network_for(loss)
    value = loss(net, *(inputs or batch()[loss]))[0]
    value.backward()
    return [value.detach(), *(p.grad for p in net.parameters() if p.grad is not None)]


@pytest.mark.parametrize("loss", [dsl_loss, mdlm_loss, ar_loss])
@pytest.mark.parametrize("pieces", [1, 7 * V, 36 * V])
def test_pieces_give_the_plain_value_and_gradients(loss, pieces, monkeypatch):
    plain, ours = (value_and_gradients(loss, size, monkeypatch) for size in (2**62, pieces))
    assert len(plain) == len(ours) > 20
    for a, b in zip(plain, ours):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", [dsl_loss, mdlm_loss, ar_loss])
@pytest.mark.parametrize("pieces", [7 * V, 2**62])
def test_a_padded_vocabulary_changes_nothing(loss, pieces, monkeypatch):
    """What a GPU does, on this CPU, in head and view; the gradients of the slots of no weight would be nan if they had any."""
    plain, head, view = value_and_gradients(loss, pieces, monkeypatch), set(), set()
    token_ce, linear = losses.token_ce, torch.nn.functional.linear

    def watched_ce(logits, x0):
        head.add(logits.shape[-1])
        return token_ce(logits, x0)

    def watched_linear(x, weight, bias=None):
        view.update([len(weight)] * (weight.shape[1] == 4))  # D
        return linear(x, weight, bias)

    monkeypatch.setattr(losses, "token_ce", watched_ce)
    monkeypatch.setattr(torch.nn.functional, "linear", watched_linear)
    for module in (network, losses):
        monkeypatch.setattr(module, "pads", lambda x: True)
    for a, b in zip(plain, value_and_gradients(loss, pieces, monkeypatch)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert head == {64} and view == ({64} if loss is dsl_loss else set())


def test_the_padded_head_is_cast_once_for_autocast():
    net = network_for(dsl_loss).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert net.padded_head().keywords["weight"].dtype == torch.bfloat16
    assert net.padded_head().keywords["weight"].dtype == torch.float32


@pytest.mark.parametrize("wide, size, times", [(5 * V + 3, 5, 2), (2**62, B * L, 1)])
def test_no_more_than_wide_numbers_are_held_at_a_time(wide, size, times, monkeypatch):
    """72 tokens in pieces of 5, each computed twice, forward and again in the backward pass; or the plain way, all at once."""
    monkeypatch.setattr(network, "WIDE", wide)
    net, rows = network_for(dsl_loss), {"head": [], "view": []}
    head, view = net.head, net.view.posterior_mean
    net.head = lambda h: rows["head"].append(len(h)) or head(h)
    net.view.posterior_mean = lambda z, slots: rows["view"].append(len(z)) or view(z, slots)
    dsl_loss(net, *batch()[dsl_loss])[0].backward()
    assert max(rows["head"]) == size and max(rows["view"]) == min(size, 3 * L)
    assert sum(rows["head"]) == times * B * L and sum(rows["view"]) == times * 3 * L


def test_pieces_lose_nothing_in_bfloat16(monkeypatch):
    """Under autocast the pieces' gradients are as near to those of float64 as the plain ones: within half as much again."""
    def error(pieces):
        monkeypatch.setattr(network, "WIDE", pieces)
        net = network_for(dsl_loss).float()
        x0, snr, eps = batch()[dsl_loss]
        with torch.autocast("cpu", torch.bfloat16):
            dsl_loss(net, x0, snr.float(), eps.float())[0].backward()
        found = torch.cat([p.grad.flatten().double() for p in net.parameters() if p.grad is not None])
        return ((found - exact).norm() / exact.norm()).item()

    exact = torch.cat([g.flatten() for g in value_and_gradients(dsl_loss, 2**62, monkeypatch)[1:]])
    plain = error(2**62)
    for padding in (False, True):
        for module in (network, losses):
            monkeypatch.setattr(module, "pads", lambda x, padding=padding: padding)
        assert 0 < error(7 * V) < 1.5 * plain < 0.1


def test_without_gradients_the_value_is_the_same(monkeypatch):
    with torch.no_grad():
        monkeypatch.setattr(network, "WIDE", 5 * V)
        pieces = dsl_loss(network_for(dsl_loss), *batch()[dsl_loss])[0]
    torch.testing.assert_close(pieces, value_and_gradients(dsl_loss, 2**62, monkeypatch)[0])


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("loss", [dsl_loss, mdlm_loss, ar_loss])
def test_the_loss_is_one_graph(loss, padding, monkeypatch):
    """No graph break, so torch.compile sees all of it: also with the pieces, and with a GPU's padding."""
    monkeypatch.setattr(network, "WIDE", 30 * V)
    for module in (network, losses):
        monkeypatch.setattr(module, "pads", lambda x: padding)
    torch._dynamo.reset()
    seen = torch._dynamo.explain(loss)(network_for(loss), *batch()[loss])
    assert seen.graph_count == 1 and seen.graph_break_count == 0, seen.break_reasons


@pytest.fixture
def graphs(monkeypatch):
    """A list that grows by one for every graph that torch.compile makes, here without a compiler."""
    made = []
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=lambda graph, inputs: made.append(graph) or graph))
    return made


@pytest.mark.parametrize("found, fast", [(dict(amx_tile=True, avx512_bf16=True, cpu_name="Intel"), True),
                                         (dict(avx512_bf16=True, cpu_name="Intel Xeon"), False), (dict(cpu_name="Apple M2"), False),
                                         (dict(avx512_bf16=True, cpu_name="AMD EPYC"), True), ({}, False)])
def test_bfloat16_by_itself_only_where_it_is_fast(found, fast, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: found.get("amx_tile", False))
    assert runtime.bfloat16_is_fast(torch.device("cpu")) == fast and runtime.bfloat16_is_fast(torch.device("mps"))
    for capability in ((7, 5), (8, 0), (9, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert runtime.bfloat16_is_fast(torch.device("cuda")) == (capability > (7, 5))
    with runtime.autocast(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if fast else torch.float32)


@pytest.mark.parametrize("dtype, compile, device, steps, fast, expected", [
    ("auto", "auto", "cpu", 2000, False, True), ("auto", "auto", "cpu", 1999, False, False), ("auto", "auto", "cpu", 2000, True, False),
    ("float32", "auto", "cpu", 2000, True, True), ("bfloat16", "auto", "cpu", 2000, False, False), ("auto", "on", "cpu", 1, True, True),
    ("auto", "auto", "cuda", 200, True, True), ("auto", "auto", "cuda", 199, True, False), ("auto", "off", "cuda", 9999, True, False)])
def test_compiled_by_itself_where_that_pays(cfg, monkeypatch, dtype, compile, device, steps, fast, expected):
    monkeypatch.setattr(torch, "compile", lambda f, **options: ("compiled", f))
    monkeypatch.setattr(runtime, "bfloat16_is_fast", lambda device: fast)
    monkeypatch.setattr(runtime.shutil, "which", lambda name: "/usr/bin/g++")
    monkeypatch.setattr(runtime.sys, "platform", "linux")
    found = runtime.compiled("f", replace(cfg, dtype=dtype, compile=compile), torch.device(device), steps)
    assert found == (("compiled", "f") if expected else "f")


@pytest.mark.parametrize("objective, endpoint", [("dsl", 0.5), ("dsl", 1.0), ("mdlm", 0.5), ("ar", 0.5)])
def test_training_compiles_once(cfg, graphs, objective, endpoint):
    train.main(replace(cfg, compile="on", objective=objective, endpoint=endpoint))
    assert len(graphs) == 1  # for 12 steps


def test_sampling_compiles_once_however_many_texts_have_changed(tmp_path, graphs):
    """A graph for one text, which torch keeps apart, and one for all other numbers of them."""
    made = checkpoint(tmp_path / "dsl.pt")
    model, _, cfg = load_for_sampling(parse_args(["--ckpt", made, "--device", "cpu", "--path", "mdlm", "--steps", "64", "--compile", "on"]))
    sent, hidden = [], model.hidden
    model.hidden = lambda h: sent.append(len(h)) or hidden(h)
    for _ in sample(model, range(9), cfg):
        pass
    assert len(set(sent)) > 4 and len(graphs) <= 2


@pytest.mark.parametrize("path", ["mdlm", "posterior", "hybrid"])
def test_static_shapes_change_no_text(tmp_path, path):
    """Every call has all 9 texts, and only those that had to be sent are counted."""
    made, found = checkpoint(tmp_path / "dsl.pt"), {}
    for static in ((), ("--static",)):
        model, _, cfg = load_for_sampling(parse_args(["--ckpt", made, "--device", "cpu", "--path", path, "--steps", "64", *static]))
        sent, hidden = [], model.hidden
        model.hidden = lambda h, sent=sent, hidden=hidden: sent.append(len(h)) or hidden(h)
        *_, state = sample(model, range(9), cfg)
        found[bool(static)] = state.x.tolist(), state.nfe.tolist(), sent
    assert found[True][:2] == found[False][:2] and set(found[True][2]) == {9} and len(set(found[False][2])) > 1
    assert sum(found[False][2]) == sum(found[True][1]) < sum(found[True][2])


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("loss", [dsl_loss, mdlm_loss])
def test_compiled_and_plain_gradients_agree(loss, monkeypatch):
    plain = value_and_gradients(loss, 7 * V, monkeypatch)
    torch._dynamo.reset()
    whole = value_and_gradients(torch.compile(loss), 7 * V, monkeypatch, batch()[loss])
    assert len(plain) == len(whole)
    for a, b in zip(plain, whole):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_the_view_of_every_token_is_what_a_lookup_gives(monkeypatch):
    """The loss that bench.py races against has the same value and gradients."""
    ours, dense = (value_and_gradients(loss, 2**62, monkeypatch, batch()[dsl_loss]) for loss in (dsl_loss, bench.dense_dsl_loss))
    assert len(ours) == len(dense)
    for a, b in zip(ours, dense):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_two_compiled_variants_cannot_differ_in_attention():
    argv = ["train", "--compile", "--attention", "math", "--vs", "attention=flash_attention"]
    with pytest.raises(Problem, match="one --attention at a time"):
        bench.main(bench.parse_args(argv), argv)


def test_a_step_that_runs_out_of_memory_leaves_the_others(capsys):
    def hungry(i):
        raise torch.OutOfMemoryError

    found = stopwatch.timed({"a": stopwatch.Step(lambda i: None, 10), "b": stopwatch.Step(hungry)}, 2, torch.device("cpu"))
    assert list(found) == ["a"] and found["a"]["tokens_per_s"] > 0 and "b: out of memory" in capsys.readouterr().out


def test_a_profile_names_what_takes_the_time():
    with pytest.raises(SystemExit):
        bench.parse_args(["prepare", "--profile"])  # which spends none of it in torch
    a, b = torch.randn(500, 500), torch.randn(10)
    share = stopwatch.profile(stopwatch.Step(lambda i: (a @ a, b + b)), torch.device("cpu"))
    assert next(iter(share)) == "aten::mm" and share["aten::mm"] > 0.5 and sum(share.values()) <= 1 + 1e-9


def test_a_peak_that_memory_does_not_allow_is_nan(monkeypatch, capsys):
    monkeypatch.setattr(bench.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, -9, "", ""))
    assert all(map(math.isnan, bench.peaks(bench.parse_args(["head"])).values()))
    assert capsys.readouterr().out.count("no peak, killed") == len(bench.WAYS)


@pytest.mark.parametrize("what, vs", [("sample", "top_p=1"), ("train", "attention=math"), ("head", "endpoint=1"), ("prepare", "workers=1")])
def test_bench_prints_a_table_and_writes_its_json(what, vs, tmp_path, capsys):
    shape = "--vocab_size 300 --length 16 --n_layer 1 --n_head 2 --d_model 16 --d_embed 4 --batch_size 2 --steps 4 --copies 3"
    rest = f"--repeats 1 --device cpu --tokenizer bytes --out {tmp_path}/b.json --vs {vs}"
    argv = [what, *shape.split(), *rest.split(), *["--profile"] * (what != "prepare")]
    bench.main(bench.parse_args(argv), argv)
    shown, names = capsys.readouterr().out, {
        "sample": ("ours", "remdm-cap", "posterior", "obvious"), "train": ("mdlm", "dsl", "dsl, obvious"), "head": tuple(bench.WAYS),
        "prepare": ("ours", "tiktoken's batch", "obvious")}[what]
    assert all(f"\n{name} " in shown and f"\n{name}, {vs} " in shown for name in names)
    found = json.loads((tmp_path / "b.json").read_text())
    assert len(found["times"]) == 2 * len(names) and all(t["median_s"] > 0 for t in found["times"].values())
    assert what != "prepare" or found["times"]["ours"]["tokens_per_s"] > 1e5
    assert set(found["memory_gib"]) == {"train": {"ours", "obvious"}, "head": set(bench.WAYS)}.get(what, set())
    assert set(found["shares"]) == (set() if what == "prepare" else set(found["times"]))
    assert all(0 < max(share.values()) <= 1 for share in found["shares"].values())
    assert network.WIDE == 2**26  # the obvious way has been put away again


def test_every_way_to_the_cross_entropy_is_the_same():
    net, x0 = network_for(dsl_loss), batch()[dsl_loss][0]
    h, found = torch.randn(*x0.shape, net.config.d_model, dtype=torch.float64, requires_grad=True), {}
    for name, way in bench.WAYS.items():
        ce = way(net, h, x0).flatten()
        found[name] = [ce.detach(), *torch.autograd.grad((ce * torch.arange(len(ce))).mean(), [h, net.out.weight, net.out.bias])]
    for name in found:
        torch.testing.assert_close(found[name], found["ours"])
