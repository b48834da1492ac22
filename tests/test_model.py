"""The network's own promises: the sphere, the two doors, the blocks; and what a checkpoint guarantees."""

import math

import pytest
import torch

from config import Problem
from dsl_loss import add_noise, dsl_loss
from model import DSL, ModelConfig, load_checkpoint, save_checkpoint
from runtime import autocast

TINY = ModelConfig(vocab_size=7, length=6, n_layer=2, n_head=2, d_model=16, d_embed=4)


def tiny(**changes):
    """A small network whose gates and head are not zero, so that everything it computes shows."""
    torch.manual_seed(0)
    model = DSL(ModelConfig(**{**TINY.__dict__, **changes}))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "gate" in name or name == "out.weight":
                p.normal_()
    return model


def test_embeddings_stay_on_the_sphere_after_any_optimiser_step():
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    x0 = torch.randint(7, (3, 6))
    before = model.E.detach().clone()
    dsl_loss(model, x0, torch.full((3, 6), 2.0), torch.randn(3, 6, 4))[0].backward()
    optimizer.step()
    assert (model.E - before).abs().max() > 0.01
    assert (model.E.norm(dim=-1) - 1).abs().max() < 1e-6


def test_both_doors_agree_at_the_endpoints():
    model, x0 = tiny().double(), torch.randint(7, (2, 6))
    mask = model.embed_ids(torch.full((2, 6), model.mask_id))
    assert (mask - model.embed_noisy(torch.zeros(2, 6, 4).double())).abs().max() < 1e-12
    z = add_noise(model.E[x0], torch.full((2, 6), 1e6).double(), torch.randn(2, 6, 4).double())
    assert (model.embed_ids(x0) - model.embed_noisy(z)).abs().max() < 1e-9
    weights = torch.randn(2, 6, TINY.d_model).double()
    for ids, evidence in ((torch.full((2, 6), model.mask_id), torch.zeros(2, 6, 4).double()), (x0, z.detach())):
        doors = [(h * weights).sum() for h in (model.embed_ids(ids), model.embed_noisy(evidence))]
        for a, b in zip(*(torch.autograd.grad(door, [model.view.value, model.view.bias]) for door in doors)):
            assert (a - b).abs().max() < 1e-9


def test_the_mask_has_its_stated_share_of_the_view():
    for share in (0.5, 0.99):
        weights = tiny(mask_share=share).view.bias.softmax(-1)
        assert weights[-1].item() == pytest.approx(share, abs=1e-5)
        assert weights[:-1].std() < 1e-8


def test_a_new_network_predicts_its_bias():
    model = DSL(TINY)
    logits = model(model.embed_ids(torch.randint(8, (2, 6))))
    assert (logits - model.out.bias).abs().max() == 0


def test_head_of_some_rows_is_the_rows_of_the_whole():
    model = tiny()
    h = model.hidden(model.embed_ids(torch.randint(8, (2, 6))))
    where = torch.rand(2, 6) < 0.5
    assert torch.allclose(model.head(h[where]), model.head(h)[where], atol=1e-6)


def test_rotary_makes_attention_depend_on_distance_alone():
    """The product of rotated equal queries and keys hangs on their distance, and on nothing else."""
    from model import rotary_table, rotate

    torch.manual_seed(0)
    cos, sin = rotary_table(12, 8)
    q, k = torch.randn(8).expand(1, 12, 1, 1, 8), torch.randn(8).expand(1, 12, 1, 1, 8)
    scores = rotate(q, cos, sin)[0, :, 0, 0] @ rotate(k, cos, sin)[0, :, 0, 0].T  # (12, 12)
    for offset in (-3, 0, 5):
        diagonal = scores.diagonal(offset)
        assert (diagonal - diagonal[0]).abs().max() < 1e-4
    assert (scores.diagonal(1)[0] - scores.diagonal(4)[0]).abs() > 1e-3


@pytest.mark.parametrize("causal", [True, False])
def test_only_a_causal_model_is_blind_to_the_future(causal):
    model, x = tiny(causal=causal), torch.randint(7, (1, 6))
    changed = x.clone()
    changed[0, 4] = (x[0, 4] + 1) % 7
    difference = (model(model.embed_ids(x)) - model(model.embed_ids(changed))).abs().amax(-1)[0]
    assert difference[4:].min() > 1e-4
    assert (difference[:4].max() == 0) if causal else (difference[:4].min() > 1e-6)


def test_bfloat16_stays_close_to_float32():
    model, x0 = tiny(), torch.randint(7, (8, 6))
    snr, eps = torch.rand(8, 6) * 300, torch.randn(8, 6, 4)
    exact, _ = dsl_loss(model, x0, snr, eps)
    with autocast(torch.device("cpu"), "bfloat16"):
        rounded, _ = dsl_loss(model, x0, snr, eps)
    assert rounded != exact and abs(rounded - exact) < 0.02 * exact


def test_bfloat16_does_not_round_the_view_s_scores():
    """Two embeddings at a cosine of 0.995 and an SNR of 300: their scores differ by 1.5, which bfloat16's steps of 2 would swallow."""
    view = tiny().view
    with torch.no_grad():
        view.raw_E[1] = view.raw_E[0] + 0.1 * view.raw_E[0].norm() * torch.linalg.qr(view.raw_E[:2].T)[0][:, 1]
        z = 300 * view.E[:2]
        exact = view.embed_noisy(z)
        with autocast(torch.device("cpu"), "bfloat16"):
            rounded = view.embed_noisy(z)
    assert (exact[0] - exact[1]).abs().max() > 0.1 and (rounded - exact).abs().max() < 0.02 * exact.abs().max()


# ---- checkpoints -------------------------------------------------------------------------------------------------------------


def test_checkpoint_round_trip(tmp_path):
    model, average = tiny(), tiny()
    with torch.no_grad():
        average.out.bias.add_(1)
    save_checkpoint(tmp_path / "a" / "ckpt.pt", model, ema=average.state_dict(), step=3, config={}, tokenizer="bytes")
    loaded, ckpt = load_checkpoint(tmp_path / "a" / "ckpt.pt")
    assert ckpt["step"] == 3 and ckpt["tokenizer"] == "bytes" and not loaded.training
    x = torch.randint(8, (2, 6))
    assert torch.equal(loaded(loaded.embed_ids(x)), average.eval()(average.embed_ids(x)))
    assert torch.equal(ckpt["model"]["out.bias"], model.out.bias)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["ckpt.pt"]


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "ckpt.pt"
    save_checkpoint(path, tiny(), step=1, config={}, tokenizer="bytes")
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(path, tiny(), step=2, what=lambda: 0)
    assert load_checkpoint(path)[1]["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt.pt"]


def test_bad_checkpoints_are_named(tmp_path):
    path = tmp_path / "ckpt.pt"
    with pytest.raises(Problem, match="make demo"):
        load_checkpoint(path)
    save_checkpoint(path, tiny(), config={}, tokenizer="bytes")
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(broken)
        with pytest.raises(Problem, match="not a readable checkpoint"):
            load_checkpoint(path)
    for stranger in ({"state_dict": {}}, tiny().state_dict(), [1.0]):
        torch.save(stranger, path)
        with pytest.raises(Problem, match="not a checkpoint of train.py: it lacks config, model, model_config, tokenizer"):
            load_checkpoint(path)
    state = tiny().state_dict()
    torch.save({"model": state, "model_config": {**TINY.__dict__, "vocab_size": 9}, "config": {}, "tokenizer": "bytes"}, path)
    with pytest.raises(Problem, match="do not fit"):
        load_checkpoint(path)


def test_loading_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (math.exp, (1,))

    torch.save({"model": Trap(), "model_config": {}}, tmp_path / "ckpt.pt")
    with pytest.raises(Problem, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "ckpt.pt")
