"""The state and its moves, how a token is drawn, and what the loop promises of every path (see toys.py for the odds of a false alarm)."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from toys import EXACT, Z, ExactDenoiser, Wide, chi_square_p, final, frequencies, masked

from config import Problem
from dsl_loss import add_noise
from model import DSL, ModelConfig
from paths import PATHS
from sampler import load_for_sampling, sample
from sampler_config import PATH_NAMES, parse_args
from scores import mean_and_stderr
from state import PlainState, State, draw, sample_categorical, top_p


def test_forget_is_the_channel_at_the_lower_snr():
    toy, n = ExactDenoiser(), 40_000
    for start in (6.0, torch.inf):
        state = State(toy, range(n), EXACT, masked(toy, 1, n))
        token = torch.ones(n, 1, dtype=torch.long)
        state.snr.fill_(start)
        if start == torch.inf:
            state.x = token
        else:
            state.z = add_noise(toy.E[token], state.snr, torch.randn(n, 1, 4, generator=torch.Generator().manual_seed(0)).double())
        state.forget(torch.ones(n, 1, dtype=torch.bool), torch.full((n, 1), 1.5).double())
        assert (state.snr == 1.5).all() and (state.x == toy.mask_id).all()
        for d in range(4):
            for values, truth in ((state.z[:, 0, d], 1.5 * toy.E[1, d].item()),
                                  ((state.z[:, 0, d] - 1.5 * toy.E[1, d]) ** 2, 1.5)):
                mean, stderr = mean_and_stderr(values)
                assert abs(mean - truth) < Z * stderr


def test_forgetting_everything_is_the_mask():
    toy = ExactDenoiser()
    state = State(toy, [0], EXACT, masked(toy, 2))
    state.x, state.snr = torch.tensor([[0, 2]]), torch.full((1, 2), torch.inf).double()
    state.forget(torch.tensor([[True, False]]), torch.zeros(1, 2).double())
    assert state.x.tolist() == [[3, 2]] and state.snr.tolist() == [[0, torch.inf]] and (state.z == 0).all()


def test_leave_one_out_is_the_exact_conditional():
    """Of all 9 sequences, a call for each token; and in a text that begins with a prompt, only of what was written after it."""
    toy, p = ExactDenoiser(), ExactDenoiser().p.view(3, 3)
    state = State(toy, range(9), EXACT, masked(toy, 2, 9))
    state.x, state.snr = toy.sequences.clone(), torch.full_like(state.snr, torch.inf)
    first, second = toy.sequences.T
    exact = torch.stack([p[first, second] / p.sum(0)[second], p[first, second] / p.sum(1)[first]], 1)
    assert (state.leave_one_out() - exact).abs().max() < 1e-12 and (state.nfe == 2).all()
    state = State(toy, [0], EXACT, torch.tensor([[1, toy.mask_id]]))
    state.x, state.snr = torch.tensor([[1, 2]]), torch.full_like(state.snr, torch.inf)
    assert state.leave_one_out().tolist() == [[0, pytest.approx(exact[5, 1].item())]] and state.nfe.tolist() == [1]


def test_exact_doubt_of_a_text_without_a_token_yet_is_no_call():
    model = DSL(ModelConfig(7, 4, n_layer=1, n_head=1, d_model=8, d_embed=4)).eval()
    state = State(model, range(2), EXACT, masked(model, 4, 2))
    state.x[1, 2], state.snr[1, 2] = 5, torch.inf
    with torch.no_grad():
        assert (state.leave_one_out() > 0).nonzero().tolist() == [[1, 2]] and state.nfe.tolist() == [0, 1]


@pytest.mark.parametrize("path", ["posterior", "mend-recorded"])
def test_exact_doubt_asks_for_every_token(path):
    toy, calls = Wide(ExactDenoiser(), 24), []
    toy.hidden = lambda h, plain=toy.hidden: calls.append(len(h)) or plain(h)
    plain, asked = (sample(toy, range(3), replace(EXACT, length=24, path=path, steps=8, exact_doubt=how)) for how in (False, True))
    few, many = ([*states][-1].nfe for states in (plain, asked))
    assert (few <= 8).all() and (many > 8 + 24).all() and sum(calls) == few.sum() + many.sum()


@pytest.mark.parametrize("path, each", [("posterior", 2), ("mend-recorded", 1)])
def test_exact_doubt_takes_no_other_answer(path, each):
    """Two tokens that always agree, a pair that differs and three that agree: a certain token vouches for itself, so by its own doubt all 8
    are alike, by what its neighbour says the first pair alone is wrong. A share of 0.3 or 0.5 of 8 takes both; `mend` none side by side."""
    toy = ExactDenoiser(V=3, L=2)
    toy.log_p = torch.full((9,), -30.0).double()
    toy.log_p[[0, 4, 8]] = -math.log(3)
    for exact in (True, False):
        state = State(Wide(toy, 8), range(50), replace(EXACT, eta=1.0, gamma=1.0, exact_doubt=exact), masked(toy, 8, 50))
        state.x[:] = torch.tensor([0, 1, 1, 1, 2, 2, 0, 0])
        state.snr.fill_(torch.inf)
        state.recorded.fill_(1.0)
        lost = (PATHS[path](state, 6, 10) == 0).sum(0)
        assert lost[2:].sum() == 0 and lost.sum() == 50 * each if exact else lost[2:].sum() > 0


# ---- drawing -----------------------------------------------------------------------------------------------------------------


def test_sample_categorical_has_the_stated_frequencies_and_keeps_the_tail():
    p = torch.tensor([0.5, 0.3, 0.2, 0.0, 1e-12])
    u = torch.rand(50_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = torch.bincount(sample_categorical(p.expand(len(u), 5), u), minlength=5)
    assert chi_square_p(counts[:3].double(), 50_000 * p[:3].double()) > 1e-4
    assert counts[3] == 0
    p = torch.tensor([[0.5, 0.3, 1e-12, 0.2]], dtype=torch.float64)
    u = torch.tensor([0.8 + 5e-13], dtype=torch.float64) / p.sum()
    in_float32 = p.float().cumsum(-1)[0]
    assert sample_categorical(p, u) == 2 and in_float32[1] == in_float32[2]  # where it could never be drawn
    assert sample_categorical(p, torch.tensor([0.0]).double()) == 0


def test_top_p_by_both_rules():
    probs = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).double()
    assert (top_p(probs, 0.6) > 0).tolist() == [[False, True, False, True]]
    assert (top_p(probs, 0.5) > 0).tolist() == [[False, True, False, False]]
    assert (top_p(probs, 0.01) > 0).tolist() == [[False, True, False, False]]
    assert torch.equal(top_p(probs, 1.0), probs)
    assert (top_p(probs, 0.6, "remdm") > 0).tolist() == [[False, True, False, False]]  # 0.25 would cross 0.6
    assert (top_p(probs, 0.76, "remdm") > 0).tolist() == [[False, True, False, True]]
    assert (top_p(probs, 0.01, "remdm") > 0).tolist() == [[False, True, False, False]]  # but the likeliest always stays


def test_temperature():
    logits, u = torch.tensor([[0.0, 1.0, 0.5]]).expand(20_000, 3), torch.rand(20_000, generator=torch.Generator().manual_seed(1)).double()
    assert (draw(logits, u, replace(EXACT, temperature=0.0)) == 1).all()
    counts = torch.bincount(draw(logits, u, replace(EXACT, temperature=0.5)), minlength=3).double()
    assert chi_square_p(counts, 20_000 * (logits[0].double() / 0.5).softmax(0)) > 1e-4


@pytest.mark.parametrize("nucleus, temperature, drawn", [("usual", 1, {1, 3}), ("remdm", 1, {1}), ("usual", 3, {1, 2, 3}),
                                                         ("remdm", 3, {1, 3})])
def test_tokens_come_from_the_nucleus_of_what_temperature_leaves(nucleus, temperature, drawn):
    """0.5 and 0.25 make 0.75, which crosses 0.6; the cube roots, which temperature 3 leaves, are .328, .260 and .220, of which the third
    does. A token of the nucleus has at least 0.27 of it: 200 texts lack one in one of 10^26 seeds."""
    toy = ExactDenoiser(V=4, L=1)
    toy.log_p = torch.tensor([0.1, 0.5, 0.15, 0.25]).double().log()
    cfg = parse_args(["--path", "ar", "--steps", "1", "--top_p", "0.6", "--nucleus", nucleus, "--temperature", str(temperature)])
    *_, state = sample(toy, range(200), replace(cfg, length=1))
    assert set(state.x.flatten().tolist()) == drawn


@pytest.mark.parametrize("kind", [State, PlainState])
def test_cooling_draws_the_first_tokens_hotter_than_the_last(kind):
    """Two tokens left to right at c = 0.6: the first at 1.6 times the temperature, the second, given the first, at 0.4; by chi-square at
    p > 1e-4 against the table, and at p < 1e-4 against one temperature and against cooling the other way. In one step c does nothing."""
    toy, cfg = ExactDenoiser(V=3, L=2, seed=2), replace(EXACT, length=2, path="ar", steps=2, temperature=0.9)
    *_, state = sample(toy, range(6000), replace(cfg, cooling=0.6), kind=kind)

    def exact(first, second):
        alone = toy(toy.embed_ids(torch.tensor([[3, 3]])))[0, 0]
        after = toy(toy.embed_ids(torch.tensor([[v, 3] for v in range(3)])))[:, 1]
        return ((alone / 0.9 / first).softmax(-1)[:, None] * (after / 0.9 / second).softmax(-1)).flatten()

    seen = frequencies(toy, state.x)
    assert chi_square_p(seen, 6000 * exact(1.6, 0.4)) > 1e-4
    assert max(chi_square_p(seen, 6000 * exact(*factors)) for factors in ((1.0, 1.0), (0.4, 1.6))) < 1e-4
    once = [list(sample(toy, range(50), replace(cfg, steps=1, cooling=c), kind=kind))[-1].x for c in (0.0, 1.0)]
    assert torch.equal(*once)


# ---- the same text whatever its company; the network only where it is needed ---------------------------------------------------


def test_path_names_are_the_paths():
    assert tuple(PATHS) == PATH_NAMES


def test_the_defaults_can_be_reported():
    assert json.loads(json.dumps(asdict(parse_args([])), allow_nan=False))["clean_snr"] == 0  # JSON knows neither inf nor nan


@pytest.mark.parametrize("path", PATH_NAMES)
@pytest.mark.parametrize("clean_snr", [0.0, 1.0])
def test_only_what_is_needed_is_computed_and_nothing_else_changes(path, clean_snr):
    """The obvious loop (all texts, all positions, all draws, every step) gives the same texts draw for draw, at no fewer calls."""
    toy, cfg = Wide(ExactDenoiser(), 24), replace(EXACT, length=24, path=path, steps=7, top_p=0.9, eta=0.2, cooling=0.2,
                                           clean_snr=clean_snr)
    *_, fast = sample(toy, range(6), cfg)
    *_, plain = sample(toy, range(6), cfg, kind=PlainState)
    assert torch.equal(fast.x, plain.x) and (fast.nfe <= plain.nfe).all() and (fast.nfe <= 7).all()


@pytest.mark.parametrize("kind", [State, PlainState])
def test_clean_snr_shows_what_was_written_and_only_that_as_evidence(kind):
    """The last token of 6,000 texts is drawn where its neighbour, which was written, looks like evidence without noise at 0.4 t_c: the
    draws follow p(x_2 | z_1) for each neighbour and not p(x_2 | x_1), which a prompt still gives; by chi-square at p > 1e-4 and < 1e-4."""
    toy, cfg = ExactDenoiser(V=3, L=2, seed=2), replace(EXACT, length=2, path="ar", steps=2, clean_snr=0.4)
    *_, state = sample(toy, range(6000), cfg, kind=kind)
    first = state.x[:, 0]
    h = torch.zeros(3, 2, 3).double()
    h[:, 0] = toy.embed_noisy(0.4 * state.t_c * toy.E)
    for v, p in enumerate(toy(h)[:, 1].softmax(-1)):
        seen = torch.bincount(state.x[first == v, 1], minlength=3).double()
        assert seen.sum() > 500 and chi_square_p(seen, seen.sum() * p) > 1e-4
        assert chi_square_p(seen, seen.sum() * toy(toy.embed_ids(torch.tensor([[v, 3]])))[0, 1].softmax(-1)) < 1e-4
    *_, given = sample(toy, range(6000), cfg, given=torch.tensor([1, 3]), kind=kind)
    exact = toy(toy.embed_ids(torch.tensor([[1, 3]])))[0, 1].softmax(-1)
    assert chi_square_p(torch.bincount(given.x[:, 1], minlength=3).double(), 6000 * exact) > 1e-4


@pytest.mark.parametrize("path", PATH_NAMES)
def test_given_tokens_never_change(path):
    toy, given = Wide(ExactDenoiser(), 24), torch.full((24,), 3)
    given[:5], given[-3:] = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([2, 2, 0])
    cfg = replace(EXACT, path=path, steps=6, eta=0.3)
    for state in sample(toy, range(8), cfg, given=given):
        assert (state.x[:, :5] == given[:5]).all() and (state.x[:, -3:] == given[-3:]).all()
        assert state.snr[:, :5].isinf().all() and state.snr[:, -3:].isinf().all()
    assert state.clean.all() and (state.x < 3).all()


def test_a_given_token_conditions_the_others_exactly():
    """Chi-square at p > 1e-4 against the table's own conditional."""
    toy = ExactDenoiser(V=3, L=3, seed=1)
    *_, state = sample(toy, range(6000), replace(EXACT, path="random", steps=2), given=torch.tensor([3, 1, 3]))
    conditional = torch.where(toy.sequences[:, 1] == 1, toy.p, 0.0)
    assert chi_square_p(frequencies(toy, state.x), 6000 * conditional / conditional.sum()) > 1e-4


@pytest.mark.parametrize("path", PATH_NAMES)
def test_texts_depend_on_seed_and_index_alone(path):
    toy = Wide(ExactDenoiser(), 24)
    cfg = replace(EXACT, length=24, path=path, steps=6)

    def ids(samples, cfg=cfg):
        *_, state = sample(toy, samples, cfg)
        return state.x

    together = ids(range(5))
    assert torch.equal(together, torch.cat([ids([0, 1]), ids([2, 3, 4])]))
    assert torch.equal(together[3:4], ids([3]))
    assert not torch.equal(together, ids(range(5), replace(cfg, seed=1)))


def test_an_idle_step_costs_no_call():
    """With more steps than tokens most steps reveal nothing; a text then keeps its features, whatever its neighbours do."""
    toy, calls = ExactDenoiser(), []
    counting = ExactDenoiser()
    counting.hidden = lambda h: calls.append(len(h)) or toy.hidden(h)
    state = final(counting, 50, path="mdlm", steps=30)
    assert state.nfe.max() <= 2 and sum(calls) == state.nfe.sum()
    assert torch.equal(state.x, final(toy, 50, path="mdlm", steps=30).x)


def test_confidence_has_the_networks_precision_and_draws_their_own():
    """In bfloat16 the head that ranks revealed tokens is within the rounding of float32's, the head that draws them is float32's."""
    torch.manual_seed(0)
    net, found, seen = DSL(ModelConfig(50, 16, 1, 2, 16, 8)).eval(), {}, []
    torch.nn.init.normal_(net.out.weight)
    head, net.head = net.head, lambda h: seen.append(logits := head(h)) or logits
    for dtype in ("float32", "bfloat16"):
        state = State(net, range(4), replace(EXACT, length=16, dtype=dtype), masked(net, 16, 4))
        state.x[:, ::2] = torch.arange(32).view(4, 8)
        state.move(state.x < net.mask_id, torch.full_like(state.snr, torch.inf))
        with torch.no_grad():
            found[dtype] = state.confidence()
            state.decide(~state.clean)
    assert [logits.dtype for logits in seen] == [torch.float32, torch.float32, torch.bfloat16, torch.float32]
    assert (found["bfloat16"][:, ::2] > 0).all() and (found["bfloat16"][:, 1::2] == 0).all()
    assert 0 < (found["bfloat16"] - found["float32"]).abs().max() < 0.02


# ---- the command line --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [
    "--steps 0", "--top_p 0", "--top_p 1.5", "--num_samples 0", "--path nowhere", "--eta 2", "--steps x", "--infill whole",
    "--correct a --out b", "--prompt a --correct b", "--path hybrid --sde_steps 32", "--correct_snr 0", "--correct_snr inf",
    "--infill a[MASK*0]", "--infill [MASK*9999999999]", "--temperature nan", "--temperature 1e-310", "--cooling 1.1",
    "--out x.jsonl --report x.jsonl"])
def test_bad_flags_are_usage_errors_of_one_line(flags, capsys):
    with pytest.raises(SystemExit) as error:
        parse_args(flags.split())
    assert error.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_no_checkpoint_says_what_to_run(tmp_path):
    with pytest.raises(Problem, match="make demo"):
        load_for_sampling(parse_args(["--ckpt", str(tmp_path / "none.pt")]))
