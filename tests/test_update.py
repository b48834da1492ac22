"""What a step of training is made of: its batch, the gradient that AdamW gets, its rate, the average; and that MDLM's training learns."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import Z

import train
from data import load_meta, load_tokens, train_windows
from model import DSL
from scores import mean_and_stderr
from validate import bits_per_byte

CPU = torch.device("cpu")


def load(path):
    return torch.load(path, weights_only=True)


def tokens(cfg):
    return load_tokens(cfg.dataset, "train", cfg.data_dir)


def batch(cfg, samples):
    return train.batch(cfg, samples, tokens(cfg), load_meta(cfg.dataset, cfg.data_dir), CPU)


def windows(cfg, samples, eos=None):
    return torch.from_numpy(train_windows(tokens(cfg), cfg.length, cfg.seed, samples, eos))


# ---- the batch ---------------------------------------------------------------------------------------------------------------


def test_a_batch_of_mdlm_is_windows_at_evenly_spread_times_with_uniform_draws(cfg):
    """2,000 times within 1e-3 of an even spread over [1e-3, 1], where independent ones would be some 0.02 off, and u uniform whatever the
    time: three comparisons within Z standard errors, 2 false alarms in 100,000 of other seeds."""
    cfg, samples = replace(cfg, objective="mdlm", seed=3), range(500, 2500)
    x0, t, u = batch(cfg, samples)
    assert torch.equal(x0, windows(cfg, samples))
    even = 1e-3 + (1 - 1e-3) * (torch.arange(2000) + 0.5) / 2000
    assert 1e-3 <= t.min() and t.max() <= 1 and (t.sort().values - even).abs().max() < 1e-3
    for values, truth in ((u, 0.5), (u**2, 1 / 3), ((t - t.mean()) * (u.mean(1) - 0.5), 0.0)):
        mean, stderr = mean_and_stderr(values.flatten())
        assert abs(mean - truth) < Z * stderr
    assert all(torch.equal(part[200:202], own) for part, own in zip((x0, t, u), batch(cfg, range(700, 702))))


def test_a_batch_of_dsl_begins_with_endpoint_sequences_and_every_row_is_its_sample_s(cfg):
    """Windows and noise are reordered alike, or a text would be trained under the noise of another, which no loss shows."""
    cfg = replace(cfg, endpoint=0.25, seed=3)
    order = [8, 12, 9, 10, 11, 13, 14, 15]  # every fourth is an endpoint sequence
    x0, snr, eps = batch(cfg, range(8, 16))
    assert torch.equal(x0, windows(cfg, order)) and eps.shape == (6, 16, 4)
    assert ((snr[:2] == 0) | snr[:2].isinf()).all() and ((snr[2:] > 0) & snr[2:].isfinite()).all()
    alone = [torch.cat(rows) for rows in zip(*(batch(cfg, [sample]) for sample in order))]
    assert all(torch.equal(a, b) for a, b in zip((x0, snr, eps), alone))


def test_the_corruption_s_flags_reach_the_batch(cfg):
    def localized(**changes):
        return batch(replace(cfg, endpoint=0.25, snr_median=0.7, **changes), range(8))[1][2:]

    own, wide, median, common = localized(), localized(snr_sigma=2.4), localized(snr_sigma=0.0), localized(common=1.0)
    torch.testing.assert_close(median, torch.full((6, 16), 0.7 * 2 * math.log(257)))  # t_c = 2 ln V
    torch.testing.assert_close((wide / median).log(), 2 * (own / median).log())  # twice the default of 1.2
    assert (common == common[:, :1]).all() and len(common.unique()) == 6 and len(own.unique()) == 6 * 16


def test_a_batch_is_framed_where_that_is_asked(cfg):
    for objective in ("dsl", "mdlm", "ar"):
        x0 = batch(replace(cfg, objective=objective, frame_eos=True, endpoint=1.0), range(4))[0]
        assert torch.equal(x0, windows(cfg, range(4), 256)) and (x0[:, [0, -1]] == 256).all()


# ---- the update --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip, given", [(1.0, [0.6, 0.8]), (9.0, [3.0, 4.0])])
def test_an_update_clips_the_mean_gradient_of_its_passes(cfg, clip, given):
    """In plain numbers: passes of gradients (6, 0) and (0, 8), so (3, 4) of norm 5, of which a clip of 1 leaves (0.6, 0.8), one of 9 all.
    AdamW's steps are alike for any scale of the gradient; its first moment, a tenth of what it was given, is not."""
    cfg, model = replace(cfg, batch_size=2, micro_batch=1, clip=clip, dtype="float32"), torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    run = train.Run(model, copy.deepcopy(model), optimizer, "", 0, {}, None, {}, 0, 1, CPU, 1.0)
    passes = iter(2 * [(torch.tensor([6.0, 0.0]), torch.tensor(3.0)), (torch.tensor([0.0, 8.0]), torch.tensor(math.nan))])

    def update(step):
        return train.update(cfg, run, lambda x, bound: (model(x).sum(), bound), passes, step).tolist()

    assert update(0) == [7, 3, 5]  # the one pass without a bound is left out
    assert (10 * optimizer.state[model.weight]["exp_avg"]).tolist() == [pytest.approx(given, rel=1e-5)]
    assert update(1)[2] == 5  # nothing of the step before


def test_weights_step_at_the_schedule_s_rate_and_the_average_follows_them(cfg):
    """Every step recomputed from the checkpoints, to float32's rounding. For the first five the average forgets faster than at ema."""
    cfg = replace(cfg, ema=0.4, beta2=0.95, weight_decay=0.3, save_every=1, keep=12, dtype="float32")
    start = train.build(cfg, tokens(cfg), load_meta(cfg.dataset, cfg.data_dir)).state_dict()
    before = {"model": start, "ema": start}
    train.main(cfg)
    for step, memory in enumerate([1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, *[0.4] * 7]):
        after, lr = load(f"{cfg.out_dir}/ckpt-{step + 1:08d}.pt"), train.learning_rate(cfg, step)
        (group,) = after["optimizer"]["param_groups"]
        assert (group["lr"], group["betas"], group["weight_decay"]) == (lr, (0.9, 0.95), 0.3)
        for number, (name, weights) in enumerate(after["model"].items()):
            state = after["optimizer"]["state"][number]
            mean, square = state["exp_avg"] / (1 - 0.9 ** (step + 1)), state["exp_avg_sq"] / (1 - 0.95 ** (step + 1))
            stepped = (1 - 0.3 * lr) * before["model"][name] - lr * mean / (square.sqrt() + 1e-8)
            average = memory * before["ema"][name] + (1 - memory) * weights
            torch.testing.assert_close(weights, stepped, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(after["ema"][name], average, rtol=1e-6, atol=1e-6)
        before = after


# ---- what it comes to --------------------------------------------------------------------------------------------------------


def test_bits_per_byte_are_paid_for_the_tokens_of_a_split_and_shared_by_its_bytes():
    meta = {"train": {"tokens": 3, "bytes": 3}, "val": {"tokens": 10, "bytes": 40}}
    assert bits_per_byte(meta, "val", math.log(2)) == 0.25 and bits_per_byte(meta, "train", math.log(4)) == 2


def test_bits_per_byte_count_the_tokens_of_text(cfg):
    """With frames a window of 16 holds 14: the nats of a model that knows nothing and is charged for all 16 are paid by 14 tokens, and in
    the validation split, not in that for training, by twice as many bytes."""
    model, meta = DSL(train.shape(cfg, 257)).eval(), load_meta("toy", cfg.data_dir) | {"val": {"tokens": 4000, "bytes": 8000}}
    for p in model.out.parameters():
        torch.nn.init.zeros_(p)
    for framed, text in ((False, 16), (True, 14)):
        scores = train.evaluate(replace(cfg, frame_eos=framed), model, meta, CPU)
        assert scores["roar"][0] == pytest.approx(16 * math.log2(257) / text / 2, rel=1e-4)


def test_mdlm_learns_a_language_to_nearly_its_entropy(cfg):
    """Four letters, each like the one before with p = 0.9, else one of the others: 2 bits for the first of a window and 0.63 for each of
    the next, in whatever order a network fills it. The random-order bound is not below that, nor above by 0.1 bits, by more than Z standard
    errors, 7 false alarms in a million; a network that looks at no neighbour stays at 2 bits, 1.2 above."""
    rng, meta = np.random.default_rng(0), load_meta("toy", cfg.data_dir)
    for split in ("train", "val"):
        moves = np.where(rng.random(40_000) < 0.9, 0, rng.integers(1, 4, 40_000))
        (97 + moves.cumsum() % 4).astype(np.uint16).tofile(f"{cfg.data_dir}/toy/{split}.bin")
        meta[split] = {"tokens": 40_000, "bytes": 40_000}
    with open(f"{cfg.data_dir}/toy/meta.json", "w") as f:
        json.dump(meta, f)
    cfg = replace(cfg, objective="mdlm", dtype="float32", length=8, d_model=32, batch_size=32, lr=1e-2, warmup=20, max_steps=400)
    train.main(replace(cfg, save_every=400, log_every=100, eval_windows=4000))
    bound, stderr = load(f"{cfg.out_dir}/ckpt.pt")["validation"]["roar"]
    entropy = (2 + 7 * (0.9 * math.log2(1 / 0.9) + 0.1 * math.log2(3 / 0.1))) / 8
    assert entropy - Z * stderr < bound < entropy + 0.1 + Z * stderr
