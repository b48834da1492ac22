"""MAUVE against its authors' package; entropy, n-gram distances and standard errors against cases worked out by hand."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from metrics import area, conditional_entropy, distinct, divergence_curve, entropy, mauve, ngram_js, ngram_mmd, principal_components
from metrics import ngram_shares, repetition

SHIFTS = {"same": 0.0, "shifted": 2.0, "disjoint": 60.0}  # distance of the two centres; the clouds have standard deviation 1


def clouds(N, D, shift=0.0, seed=0):
    p, q = torch.randn(2, N, D, generator=torch.Generator().manual_seed(seed))
    return p - shift / 2 / D**0.5, q + shift / 2 / D**0.5


def copies(N, D):
    """A sampler that is stuck: 90% of its texts are the same."""
    p, q = clouds(N, D)
    p[: 9 * N // 10] = p[0]
    return p, q


def packaged(p, q, seeds=range(5)):
    """mauve-text's number. It stacks its second argument first; the rows are in our order because MAUVE does not tell p from q."""
    package = pytest.importorskip("mauve")
    features = {"p_features": q.numpy(), "q_features": p.numpy()}
    return torch.tensor([package.compute_mauve(**features, verbose=False, seed=s).mauve for s in seeds])


@pytest.fixture
def our_starts(monkeypatch):
    """faiss's k-means with its 5 restarts, iterations and choice, but from the points that ours starts from."""
    faiss = pytest.importorskip("faiss")
    kmeans = faiss.Kmeans

    class Started:
        def __init__(self, d, k, seed, nredo, **options):
            self.k, self.g = k, torch.Generator().manual_seed(seed - 2)  # the package adds 2 to its seed
            self.runs = [kmeans(d, k, **options) for _ in range(nredo)]

        def train(self, x):
            for run in self.runs:
                run.train(x, init_centroids=x[torch.randperm(len(x), generator=self.g)[: self.k].numpy()])
            self.index = min(self.runs, key=lambda run: run.obj[-1]).index

    monkeypatch.setattr(faiss, "Kmeans", Started)


# ---- MAUVE -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SHIFTS)
@pytest.mark.parametrize("N, D", [(200, 8), (200, 64), (200, 256), (1000, 64), (2000, 8), (2000, 256)])
def test_mauve_is_the_package_s_number(N, D, kind, our_starts):
    """From equal starts, because 5 seeds decide nothing: from its own starts either one moves by .02 a seed at N = 200, by .1 where the
    clouds half overlap. No chance is involved; what differs is a float32 distance here and there, which faiss rounds and we don't."""
    p, q = clouds(N, D, SHIFTS[kind])
    ours, theirs = mauve(p, q), packaged(p, q)
    assert abs(ours.mean() - theirs.mean()) <= 0.01
    assert (ours - theirs).abs().median() < 1e-6  # most seeds agree to the digit


@pytest.mark.parametrize("what, seeds", [("same", 240), ("far", 60), ("copies", 200)])
def test_our_starts_are_as_good_as_faiss_s(what, seeds):
    """From own starts, so at 4 standard errors: a false alarm in 15,000 cells. In `copies` clusters start empty, which
    metrics.split cures as faiss does: leaving them empty, or drawing centroids as k-means++ does, gives .0159 or .0171 instead of .0151."""
    p, q = {"same": clouds(200, 64), "far": clouds(200, 8, 3.0), "copies": copies(300, 16)}[what]
    ours, theirs = mauve(p, q, range(seeds)), packaged(p, q, range(seeds))
    assert abs(ours.mean() - theirs.mean()) < 4 * ((ours.var() + theirs.var()) / seeds).sqrt() < 0.01


def test_mauve_is_1_for_equal_clouds_and_0_for_disjoint_ones():
    p, q = clouds(300, 16)
    assert (mauve(p, p.flip(0)) > 1 - 1e-9).all()  # equal histograms, whatever the clusters
    assert (mauve(*clouds(300, 16, 60.0)) < 0.005).all()
    assert 0.9 < mauve(p, q).mean() < 1  # too few samples to look alike


def test_mauve_ignores_the_length_of_rows_and_depends_on_its_seeds_alone():
    p, q = clouds(100, 8, 1.0)
    scores = mauve(p, q)
    assert torch.equal(scores, mauve(p, q)) and torch.equal(scores[2:3], mauve(p, q, seeds=[2]))
    assert torch.equal(scores, mauve(p * 2.0 ** torch.arange(-9, 11).repeat(5)[:, None], 8 * q))
    assert scores.std() > 0 and scores.dtype == torch.float64
    assert not torch.equal(scores, mauve(p, q, buckets=20)) and (mauve(p, q, scaling=1.0) > scores).all()


def test_mauve_of_few_different_texts_needs_no_more_clusters_than_texts():
    """3 different rows, 20 buckets: the histograms are the shares of the rows, so that no seed matters."""
    rows = torch.eye(3)
    p, q = rows[torch.arange(200) % 2], rows[torch.arange(200) % 4 % 3]
    expected = area(divergence_curve(torch.tensor([0.5, 0.5, 0]).double(), torch.tensor([0.5, 0.25, 0.25]).double()))
    assert mauve(p, q).sub(expected).abs().max() < 1e-12
    assert mauve(rows[:1].expand(10, 3), rows[:1].expand(10, 3)).allclose(torch.ones(5).double())  # no variance at all


def test_mauve_says_what_it_cannot_compare():
    p, q = clouds(10, 4)
    broken = p.clone()
    broken[3, 2] = torch.nan
    cases = [(p[:1], q, 0, "at least 2"), (p, q[:1], 0, "at least 2"), (p, q[:, :3], 0, "one width"), (p[0], q, 0, "one width")]
    cases += [(broken, q, 0, "finite"), (p, broken / 0, 0, "finite"), (p, q, -1, "1 and n . m = 20 buckets"), (p, q, 21, "not 21")]
    for a, b, buckets, why in cases:
        with pytest.raises(ValueError, match=why):
            mauve(a, b, buckets=buckets)
    assert mauve(p, q, buckets=20).max() < 0.005  # a bucket for every text: no two meet


def test_principal_components_keep_the_variance_asked_for():
    """Variances 80, 15, 5: one axis holds 0.8, two hold 0.95; distances within them stay."""
    x = torch.linalg.qr(clouds(50, 3)[0].double() - clouds(50, 3)[0].double().mean(0))[0] * torch.tensor([80.0, 15, 5]).sqrt()
    x = x @ torch.linalg.qr(clouds(3, 3)[0].double())[0] + 7
    assert [principal_components(x, share).shape[1] for share in (0.79, 0.81, 0.94, 0.96)] == [1, 2, 2, 3]
    assert torch.allclose(torch.pdist(principal_components(x, 0.96)), torch.pdist(x))


def test_the_curve_s_area_is_a_direct_integral():
    """Two histograms of two buckets: 25 trapezoids against 200,001 of x(w), y(w), written out; the package's two ways to sort agree."""
    p, q = torch.tensor([0.7, 0.3, 0]).double(), torch.tensor([0.4, 0.6, 0]).double()
    w = np.linspace(0, 1, 200_001)
    r, s = 0.7 * w + 0.4 * (1 - w), 0.3 * w + 0.6 * (1 - w)
    x = np.exp(-5 * (0.4 * np.log(0.4 / r) + 0.6 * np.log(0.6 / s)))
    y = np.exp(-5 * (0.7 * np.log(0.7 / r) + 0.3 * np.log(0.3 / s)))
    exact = np.trapezoid(y[::-1], x[::-1]) + x[-1] * 1  # y is 1 from x = 0 to the curve's end, and then falls to 0 at x = 1
    curve = divergence_curve(p, q)
    assert curve.shape == (27, 2) and curve[0].tolist() == [0, 1] and curve[-1].tolist() == [1, 0]
    assert abs(area(curve) - exact) < 1e-3
    assert abs(area(curve) - area(curve.flip(0, 1))) < 1e-12  # x over y
    assert abs(area(divergence_curve(p, p)) - 1) < 1e-9
    apart = area(divergence_curve(torch.tensor([1.0, 0]).double(), torch.tensor([0, 1.0]).double()))
    assert abs(apart - 1 / 252) < 2e-4  # ((1-w)^5, w^5): the integral of y dx is the beta function 5 B(6, 5) = 1/252


# ---- token ids ---------------------------------------------------------------------------------------------------------------


def test_entropy_of_known_texts():
    texts = [torch.zeros(8).long(), torch.arange(8), torch.tensor([3, 50257] * 4), [1, 1, 1, 2]]
    assert entropy(texts).tolist() == pytest.approx([0, math.log(8), math.log(2), math.log(4) - 0.75 * math.log(3)])
    assert torch.equal(entropy(torch.stack(texts[:3])), entropy(texts[:3])) and entropy([]).shape == (0,)


def test_conditional_entropy_of_known_texts():
    coin = list(itertools.product((0, 1), repeat=4))
    assert [conditional_entropy(coin, n) for n in (1, 2, 3)] == pytest.approx([math.log(2)] * 3)
    assert [conditional_entropy([[0, 1] * 4, [1, 0] * 4], n) for n in (1, 2)] == pytest.approx([math.log(2), 0])
    parity = [(a, b, a ^ b) for a, b in itertools.product((0, 1), repeat=2)]  # a third token that only both others tell
    assert [conditional_entropy(parity, n) for n in (1, 2, 3)] == pytest.approx([math.log(2), math.log(2), 0])
    by_hand = 0.75 * (math.log(3) - 2 / 3 * math.log(2))  # of the four bigrams 00, 01, 01, 10 three begin with 0
    assert conditional_entropy([[0, 0, 1], [0, 1, 0]], 2) == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="no 3-gram"):
        conditional_entropy([[0, 1]], 3)


def js_of(*what):
    return ngram_js(*what)[0]


def test_ngram_js_of_known_texts():
    texts, references = [[1, 2, 3], [2, 3]], torch.tensor([[2, 3, 1, 2, 3]])
    assert js_of(texts, references, 1) == js_of(texts, texts, 2) == 0
    by_hand = 0.5 * (math.log(8 / 7) + 0.75 * math.log(6 / 7) + 0.25 * math.log(2))  # 1/3, 2/3, 0 and 1/4, 1/2, 1/4 of 12, 23, 31
    assert js_of(texts, references, 2) == pytest.approx(by_hand)  # 31 would be across a border of `texts`
    assert js_of([[1, 2, 1]], [[1, 1, 2]], 2) == pytest.approx(0.5 * math.log(2))  # {12, 21} and {11, 12}: 12 is shared
    assert js_of([[1, 2]], [[2, 1]], 2) == pytest.approx(math.log(2)) and js_of([[1, 2]], [[2, 1]], 1) == 0
    for texts, references in (([[1, 2]], [[1, 2, 3]]), ([[1, 2, 3]], [[1, 2], []]), ([], [[1, 2, 3]]), ([], [])):
        with pytest.raises(ValueError, match="no 3-gram"):
            ngram_js(texts, references, 3)


def test_ngram_mmd_is_right_in_the_mean():
    """Over all triples of texts against all pairs with their probabilities, from two sources and from one, beside a corpus that lacks some
    2-grams."""
    corpus, floor = ngram_shares(np.array([0, 1, 0, 0, 1, 0, 0]), 2), 0.1
    all_texts, g = np.array(list(itertools.product((0, 1), repeat=3))), np.random.default_rng(0)
    p, q = g.dirichlet(np.ones(8), 2)
    counts = np.stack([np.bincount(2 * text[:-1] + text[1:], minlength=4) for text in all_texts]) / 2
    exact = ((p - q) @ counts) ** 2 @ (1 / (8 * (np.array([2, 2, 2, 0]) / 6 + floor)))
    triples, pairs = (list(itertools.combinations_with_replacement(range(8), k)) for k in (3, 2))
    found = np.array([[ngram_mmd(all_texts[list(a)], all_texts[list(b)], corpus, 2, floor) for b in pairs] for a in triples])

    def chances(sets, of):  # a set comes in as many orders as it has
        return np.array([len(set(itertools.permutations(texts))) * of[list(texts)].prod() for texts in sets])

    assert chances(triples, p) @ found @ chances(pairs, q) == pytest.approx(exact) and exact > 1e-3
    assert chances(triples, q) @ found @ chances(pairs, q) == pytest.approx(0, abs=1e-12) and found.min() < 0 < found.max()


def test_ngram_mmd_of_sources_nearby_is_their_js_divergence():
    """100,000 texts of one token each from either source, a tenth of the corpus's shares above and below it: 0.1^2 / 2. JS has 0.17% more,
    and off MMD is taken what two such samples of four tokens differ by chance, 3 / (4 x 100,000) or 0.15%. None is involved here."""
    r, sign = np.array([0.4, 0.3, 0.2, 0.1]), np.array([1, -1, -1, 1])  # r @ sign = 0
    corpus, texts, references = (np.repeat(np.arange(4), np.rint(100_000 * r * (1 + 0.1 * s * sign)).astype(int)) for s in (0, 1, -1))
    assert ngram_js([texts], [references], 1)[0] == pytest.approx(0.005, rel=0.005)
    assert ngram_mmd(texts[:, None], references[:, None], ngram_shares(corpus, 1), 1) == pytest.approx(0.005, rel=0.005)


def test_ngram_js_likes_cold_texts_and_ngram_mmd_does_not():
    """40 texts of 12 letters by Zipf's law beside 40 at temperature 0.75, 1 and 1.4, 200 times. The mean at 1 is within 4 standard errors
    of 0 but in 1 seed of 16,000; all other differences are 6 to 30."""
    zipf, g = 1 / np.arange(1, 61), np.random.default_rng(0)

    def draw(temperature, shape=(40, 12)):
        p = zipf ** (1 / temperature)
        return g.choice(len(p), shape, p=p / p.sum())

    corpus, trials = ngram_shares(draw(1, 100_000), 2), []
    for _ in range(200):
        real = draw(1)
        trials.append([(ngram_js(texts, real, 2)[0], ngram_mmd(texts, real, corpus, 2)) for texts in map(draw, (0.75, 1, 1.4))])
    js, mmd = np.array(trials).transpose(2, 1, 0)  # (measure, temperature, trial)

    def errors(x):
        return x.mean() / (x.std() / len(x) ** 0.5)

    assert errors(js[1] - js[0]) > 4  # nearer to the source than its own texts are
    assert abs(errors(mmd[1])) < 4 < min(errors(mmd[0] - mmd[1]), errors(mmd[2] - mmd[1]))


def test_ngram_mmd_refuses_what_it_cannot_compare():
    corpus = ngram_shares(np.arange(9), 2)
    for texts, n, match in (([[1, 2]], 2, "needs two texts"), ([[1, 2], [3, 4]], 3, "3 tokens in each"),
                            ([[1, 2, 3], [4, 5, 6]], 5, "5 tokens in each"), ([[1, 2], [3, 60_000]], 4, "64 bits")):
        with pytest.raises(ValueError, match=match):
            ngram_mmd(texts, texts, corpus, n)


def js(a, b):
    p, q = ({key: count / c.total() for key, count in c.items()} for c in (a, b))
    return 0.5 * sum(h[k] * math.log(2 * h[k] / (p.get(k, 0) + q.get(k, 0))) for h in (p, q) for k in h)


def count_ngrams(texts, n):
    return Counter(tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_ngrams_are_counted_exactly_and_within_texts(n):
    """Against a Counter of tuples; half of the tokens are among the largest ids, whose 4-grams would overflow an int64 as V^4."""
    rng = np.random.default_rng(n)
    ids = np.array([0, 1, 2, 50_255, 50_256, 50_257])
    texts, references = ([ids[rng.integers(len(ids), size=size)] for size in rng.integers(0, 60, 40)] for _ in range(2))
    a, b = count_ngrams(texts, n), count_ngrams(references, n)
    assert js_of(texts, references, n) == pytest.approx(js(a, b), abs=1e-12)
    assert js_of(references, texts, n) == pytest.approx(js(a, b), abs=1e-12)
    assert distinct([torch.tensor(text) for text in texts], n) == len(a) / a.total()
    shares = [1 - len(c) / c.total() for c in (count_ngrams([text], n) for text in texts) if c]
    assert repetition(texts, n).mean() == pytest.approx(np.mean(shares))


def test_distinct_and_repetition_of_known_texts():
    texts = [[1, 1, 1, 1], [1, 2, 3, 4], [9]]
    assert distinct(texts, 1) == 5 / 9 and distinct(texts, 2) == 4 / 6  # 11, 12, 23, 34 of 11 11 11 12 23 34
    assert repetition(texts, 2).tolist() == pytest.approx([2 / 3, 0])  # the last has no pair
    assert repetition([[7] * 1024, [1, 2, 3, 4] * 2, range(9)]).tolist() == pytest.approx([1 - 1 / 1021, 0.2, 0])


def test_the_error_of_js_is_a_jackknife_of_both_sides():
    """Written out from its definition, and against the spread of 200 independent draws: within 25%, four standard errors of a spread of
    200 numbers and the jackknife's own noise over 200 runs; one false alarm in 10,000."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
    runs = [[rng.choice(5, (40, 20), p=h) for h in (p, q)] for _ in range(200)]
    a, b = runs[0]
    left = [js_of(np.delete(a, np.s_[j::10], 0), np.delete(b, np.s_[j::10], 0), 1) for j in range(10)]
    assert ngram_js(a, b, 1)[1] == pytest.approx((0.9 * np.square(np.array(left) - np.mean(left)).sum()) ** 0.5)
    values, errors = np.array([ngram_js(a, b, 1) for a, b in runs]).T
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(), rel=0.25)
    assert math.isnan(ngram_js(a[:1], b, 1)[1])
