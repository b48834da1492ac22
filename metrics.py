"""Numbers that compare texts with texts: MAUVE, entropy, n-gram distances. No network here.

MAUVE asks how much two clouds of features overlap (N texts, C features each); the others look at token ids. What the features are
and where the texts come from is the caller's business. Ids are ints; a text is a 1-D tensor, array or list of them.
"""

import math

import numpy as np
import torch
from torch.nn import functional as F

ROWS = 8192  # distances to all centroids are computed for so many points at a time

# ---- MAUVE (Pillutla et al., arXiv 2102.01454) -------------------------------------------------------------------------------


def mauve(p, q, seeds=range(5), buckets=0, scaling=5.0):
    """How well the samples' features p (n, C) cover those of the references q (m, C), and the reverse -> (len(seeds),) float64 in [0, 1].

    The published defaults: rows of length 1, PCA to 0.9 of the variance, k-means on the union, area under the divergence curve. One
    value per k-means seed; their spread says nothing about the spread over texts. Too few samples bias MAUVE, so give N beside it.
    `buckets` = 0 means min(n, m) / 10, at least 2. Works on the device of p. ValueError if the features cannot be compared.
    """
    if p.ndim != 2 or q.ndim != 2 or p.shape[1] != q.shape[1]:
        raise ValueError(f"MAUVE needs features (n, C) and (m, C) of one width, not {tuple(p.shape)} and {tuple(q.shape)}")
    if min(len(p), len(q)) < 2:
        raise ValueError(f"MAUVE needs at least 2 samples and 2 references, not {len(p)} and {len(q)}")
    x = torch.cat([p.double(), q.to(p.device).double()])
    if not x.isfinite().all():
        raise ValueError("MAUVE needs finite features, but some are nan or infinite")
    buckets = buckets or max(2, round(min(len(p), len(q)) / 10))
    if not 0 < buckets <= len(x):
        raise ValueError(f"MAUVE needs between 1 and n + m = {len(x)} buckets, not {buckets}")
    x = principal_components(F.normalize(x))
    labels = [kmeans(x, buckets, seed) for seed in seeds]
    areas = [area(divergence_curve(histogram(b[: len(p)], buckets), histogram(b[len(p) :], buckets), scaling)) for b in labels]
    return torch.tensor(areas, dtype=torch.float64)


def principal_components(x, share=0.9):
    """The fewest coordinates along principal axes that hold `share` of the variance: float64 x (N, C) -> (N, c)."""
    x = x - x.mean(0)
    variance, axes = torch.linalg.eigh(x.T @ x)  # ascending
    mass = variance.flip(0).clamp(min=0).cumsum(0)
    return x @ axes.flip(1)[:, : int((mass < share * mass[-1]).sum()) + 1]


def kmeans(x, k, seed, restarts=5):
    """Cluster x (N, c) into k -> labels (N,) of the best of some runs, by inertia (the sum of squared distances)."""
    g = torch.Generator().manual_seed(seed)  # on the CPU, so that every device starts from the same points
    return min((lloyd(x, k, g) for _ in range(restarts)), key=lambda run: run[0])[1]


def lloyd(x, k, generator, iterations=500):
    """Lloyd's algorithm from k random points of x (N, c) until no label changes -> inertia, labels (N,)."""
    centroids, label = x[torch.randperm(len(x), generator=generator)[:k]], None
    for _ in range(iterations):
        before, (distance, label) = label, nearest(x, centroids)
        if before is not None and torch.equal(before, label):
            break
        count = torch.bincount(label, minlength=k)
        total = torch.zeros_like(centroids).index_add_(0, label, x)
        centroids = torch.where(count[:, None] > 0, total / count[:, None], centroids)
        if (count == 0).any():
            split(centroids, count, label, generator)
    return distance.sum().item(), label


def split(centroids, count, label, generator):
    """Give each empty cluster half of another, drawn in proportion to its size as faiss does: a centroid just beside the other's.

    Copies of a text start as equal centroids, of which one gets every point. Where 30% of the samples were copies, MAUVE came out .02
    above the package's if new centroids were drawn as k-means++ does, and .02 below if clusters stayed empty.
    """
    donor = label.cpu()[torch.randperm(len(label), generator=generator)[: (count == 0).sum()]]
    sign = torch.randn(len(donor), centroids.shape[1], generator=generator).sign().to(centroids)
    centroids[count == 0] = centroids[donor] * (1 + sign / 1024)


def nearest(x, centroids):
    """Squared distance (N,) of each point of x (N, c) to its nearest centroid (k, c), and which that is (N,)."""
    half = centroids.square().sum(1) / 2  # |x - c|^2 / 2 = |c|^2 / 2 - x.c + a constant of the point
    label = torch.cat([(half - rows @ centroids.T).argmin(1) for rows in x.split(ROWS)])
    return (x - centroids[label]).square().sum(1), label


def histogram(label, k):
    """Labels (n,) in 0..k-1 -> their shares (k,), float64."""
    return torch.bincount(label, minlength=k).double() / len(label)


def divergence_curve(p, q, scaling=5.0):
    """(exp(-c KL(q|r)), exp(-c KL(p|r))) for mixtures r = w p + (1-w) q of two histograms (k,) -> (27, 2), falling from (0, 1) to (1, 0).

    MAUVE's equation 1 at 25 weights w, with c = `scaling`, and its two end points. Nothing is smoothed.
    """
    p, q = p[p + q > 0], q[p + q > 0]
    w = torch.linspace(1 - 1e-6, 1e-6, 25, dtype=p.dtype, device=p.device)[:, None]
    r = w * p + (1 - w) * q  # (25, k), nowhere 0
    kl = torch.stack([torch.xlogy(h, h / r).sum(1) for h in (q, p)], 1)
    ends = torch.eye(2, dtype=p.dtype, device=p.device)
    return torch.cat([ends[1:], torch.exp(-scaling * kl), ends[:1]])


def area(curve):
    """Area under a falling curve (27, 2), by trapezoids. Integrating x over y gives the same number, so their mean is this as well."""
    return torch.trapezoid(curve[:, 1], curve[:, 0]).item()


# ---- token ids ---------------------------------------------------------------------------------------------------------------


def entropy(texts):
    """Unigram entropy of each text's ids on its own, in nats: N texts or ids (N, L) -> (N,) float64. ReMDM's convention; 0 to ln L."""
    counts = [torch.as_tensor(text).unique(return_counts=True)[1].double() for text in texts]
    return torch.tensor([torch.xlogy(c / c.sum(), c.sum() / c).sum().item() for c in counts], dtype=torch.float64)


def conditional_entropy(texts, n):
    """Entropy in nats of a token given the n - 1 before it, of all texts pooled: of their n-grams less that of what these begin with.

    A finite sample's is too low: compare only at equal numbers of tokens. ValueError if there is no n-gram.
    """
    def joint(texts, n):
        count = np.bincount(ngrams(texts, n)[0])
        p = count[count > 0] / count.sum()
        return -(p * np.log(p)).sum().item()

    return joint(texts, n) - (joint([text[:-1] for text in texts], n - 1) if n > 1 else 0)


def ngrams(texts, n):
    """All n-grams within texts, numbered so that equal ones and only those have equal numbers -> number (M,), text (M,) it is from."""
    texts = [torch.as_tensor(text).cpu().numpy() for text in texts]
    text = np.repeat(np.arange(len(texts)), [len(ids) for ids in texts])
    ids = np.concatenate([np.zeros(0, np.int64), *texts]).astype(np.int64)
    number = ids = np.unique(ids, return_inverse=True)[1]
    for k in range(1, n):  # numbers stay below the number of tokens, so that the products fit an int64 whatever n and V
        number = np.unique(number[:-1] * (ids.max(initial=0) + 1) + ids[k:], return_inverse=True)[1]
    inside = text[: len(number)] == text[n - 1 :]
    if not inside.any():
        raise ValueError(f"there is no {n}-gram in {len(texts)} texts of at most {max(map(len, texts), default=0)} tokens")
    return number[inside], text[: len(number)][inside]


def js(p, q):
    """Jensen-Shannon divergence in nats between counts p and q (K,)."""
    p, q = p / p.sum(), q / q.sum()
    m = (p + q) / 2
    return 0.5 * sum((h[h > 0] * np.log(h[h > 0] / m[h > 0])).sum() for h in (p, q)).item()


def ngram_js(texts, references, n, groups=10):
    """Jensen-Shannon divergence between the n-grams of two lists of texts, each pooled -> (nats, standard error): 0 if equal, ln 2 if
    disjoint. The error is a jackknife that leaves out every tenth text of both sides in turn, up to 1.4 times too large where they hardly
    differ; nan with fewer than two groups.

    A finite sample is far from itself: compare only at equal numbers of tokens. ValueError if either list has no n-gram.
    """
    texts, references = list(texts), list(references)
    number, text = ngrams([*texts, *references], n)
    ours = text < len(texts)
    groups, K = max(1, min(groups, len(texts), len(references))), number.max() + 1
    sides = []  # counts (groups, K) of both
    for of, name in ((ours, "texts"), (~ours, "references")):
        if not of.any():
            raise ValueError(f"there is no {n}-gram in the {name}")
        sides.append(np.bincount(number[of] + text[of] % groups * K, minlength=groups * K).reshape(groups, K))
    p, q = (side.sum(0) for side in sides)
    left = [js(p - a, q - b) for a, b in zip(*sides) if a.sum() < p.sum() and b.sum() < q.sum()]
    error = math.sqrt((len(left) - 1) * np.var(left)) if len(left) > 1 else math.nan
    return js(p, q), error


def ngram_codes(texts, n):
    """The n-grams of ids (..., L) -> (..., L - n + 1) int64, equal where they are. ValueError where no int64 tells all of them apart."""
    texts, base = np.asarray(texts, np.int64), int(2 ** (63 / n))
    if texts.max(initial=0) >= base:
        raise ValueError(f"{n}-grams of ids up to {texts.max()} do not fit 64 bits: take a smaller n")
    L = max(0, texts.shape[-1] - n + 1)
    return sum(texts[..., k : k + L] * base ** (n - 1 - k) for k in range(n))


def ngram_shares(tokens, n):
    """The n-grams of a corpus (M,), for `ngram_mmd` -> their codes, ascending, and the share of each."""
    code, count = np.unique(ngram_codes(tokens, n), return_counts=True)
    return code, count / count.sum()


def ngram_mmd(texts, references, corpus, n, floor=2**-16):
    """How far the n-grams of texts (N, L) are from those of references (M, L), as if there were endlessly many of both -> float.

    sum_g (p_g - q_g)^2 / (8 (r_g + floor)), r the `ngram_shares` of a third corpus: a squared maximum mean discrepancy, by the unbiased
    estimator of Gretton et al. (2012), which pairs different texts only. Where p, q and r are nearly the same, and frequent, it is the
    Jensen-Shannon divergence of p and q. That of two finite samples is too high, and less so of cold texts, which hold fewer different
    n-grams; this is 0 in the mean for any number of texts of one source, so it may be negative. ValueError for fewer than two texts, texts
    too short for an n-gram, or ids too large for it.
    """
    sides = [ngram_codes(np.stack([np.asarray(text) for text in side]), n) for side in (texts, references)]
    if min(map(len, sides)) < 2 or not sides[0].size:
        raise ValueError(f"an unbiased distance of {n}-grams needs two texts on either side, and {n} tokens in each")
    gram, number = np.unique(np.concatenate([side.ravel() for side in sides]), return_inverse=True)
    known, share = corpus
    at = np.searchsorted(known, gram).clip(max=len(known) - 1)
    weight = 1 / (8 * (np.where(known[at] == gram, share[at], 0) + floor))

    def moments(number):  # unbiased estimates of p_g and p_g^2
        N, M = number.shape
        of_text, count = np.unique(number + len(gram) * np.arange(N)[:, None], return_counts=True)
        total, same = np.bincount(number.ravel(), minlength=len(gram)), np.bincount(of_text % len(gram), count**2.0, len(gram))
        return total / (N * M), (total**2.0 - same) / (N * (N - 1) * M**2)

    (p, pp), (q, qq) = (moments(part.reshape(side.shape)) for part, side in zip(np.split(number, [sides[0].size]), sides))
    return float(((pp - 2 * p * q + qq) * weight).sum())


def distinct(texts, n):
    """Different n-grams / all n-grams, pooled over texts (distinct-n of arXiv 1510.03055); it falls with their number."""
    number, _ = ngrams(texts, n)
    return len(np.unique(number)) / len(number)


def repetition(texts, n=4):
    """The share of each text's n-grams that have occurred earlier in it -> float64 tensor in [0, 1), of the texts that have any."""
    number, text = ngrams(texts, n)
    total, first = np.bincount(text), np.bincount(np.unique(text * (number.max() + 1) + number) // (number.max() + 1))
    return torch.from_numpy(1 - first[total > 0] / total[total > 0])
