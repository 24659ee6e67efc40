"""Partition layers into groups that have a dictionary each.

A partition is a list of groups, a group the ascending list of its layers; groups stand in the order
of their first layers.

Groups do not make Matrix PCA better for the same number of atoms: atoms that all layers may use
capture at least as much as the same atoms shut up in groups. They keep what is shared local, and
their coefficients few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from masa_vit.layers import check_groups

__all__ = [
    'cluster_groups',
    'kl_groups',
    'layer_similarity',
    'optimal_groups',
    'uniform_groups',
]

Groups = list[list[int]]


def uniform_groups(num_layers: int, num_groups: int) -> Groups:
    """Cut the layers into runs whose sizes differ by one at most; the longer ones come first.

    Args:
        num_layers: L.
        num_groups: 1 <= G <= L.

    Raises:
        ValueError: For a number of groups out of range.
    """
    _check_count(num_layers, num_groups)
    size, longer = divmod(num_layers, num_groups)
    starts = [index * size + min(index, longer) for index in range(num_groups)]
    return _runs(starts, num_layers)


def kl_groups(distributions: Tensor, num_groups: int) -> Groups:
    """Cut the layers where the distributions of consecutive ones drift most, as the paper does.

    The drift from layer l to l + 1 is the Kullback-Leibler divergence ``KL(p_l || p_{l+1})`` of their
    logit-lens distributions. The paper says that groups are contiguous and drift little inside; its
    algorithm is not known. Ours cuts at the G - 1 largest drifts, the earlier where they are equal.

    Args:
        distributions: (L, C), rows of probabilities; see `logit_lens`.
        num_groups: 1 <= G <= L.

    Raises:
        ValueError: For a number of groups out of range, or rows that are no distributions.
    """
    probs = torch.as_tensor(distributions).detach().cpu().double()
    if probs.ndim != 2 or not (probs >= 0).all() or not ((probs.sum(1) - 1).abs() < 1e-3).all():
        raise ValueError(
            f'distributions of shape {tuple(probs.shape)}: expected (L, C), rows of probabilities '
            'that sum to 1; give logits through softmax first'
        )
    _check_count(len(probs), num_groups)
    tiny = 1e-12  # a class that a later layer gives no chance is a large drift, not an infinite one
    logs = probs.clamp(min=tiny).log()
    drift = (probs[:-1] * (logs[:-1] - logs[1:])).sum(1)
    cuts = drift.argsort(descending=True, stable=True)[: num_groups - 1]
    return _runs([0, *sorted((cuts + 1).tolist())], len(probs))


def optimal_groups(grams: Any, num_groups: int, num_atoms: int) -> Groups:
    """Cut the layers into the runs for which Matrix PCA loses least, exactly.

    Dynamic programming over the sum of the eigenvalues that every run and projection discards. Runs
    of at most `num_atoms` layers lose nothing. Of equal partitions, the one with the earlier cuts.

    Args:
        grams: Gram matrices (L, L) of the layers' weights, one per projection: a list, or a mapping.
        num_groups: 1 <= G <= L.
        num_atoms: S of every group and projection.

    Raises:
        ValueError: For numbers out of range, or matrices that are no Gram matrices of one size.
    """
    matrices = _check_grams(grams)
    num_layers = len(matrices[0])
    _check_count(num_layers, num_groups)
    if num_atoms < 1:
        raise ValueError(f'num_atoms={num_atoms}: expected at least 1')
    return _best_runs(_losses(matrices, num_atoms), num_groups)


def cluster_groups(grams: Any, num_groups: int, method: str = 'spectral') -> Groups:
    """Cluster the layers by how alike their weights are; groups need not be contiguous.

    Layers are alike by `layer_similarity`. The result depends on nothing drawn.

    Args:
        grams: As for `optimal_groups`.
        num_groups: 1 <= G <= L.
        method: 'spectral' or 'hierarchical' (agglomerative, average linkage), of scikit-learn.

    Raises:
        ValueError: For a number of groups or a method that there is not, Gram matrices as in
            `optimal_groups`, and layers that do not fall into as many groups.
        ImportError: If scikit-learn is missing.
    """
    similarity = layer_similarity(grams)
    num_layers = len(similarity)
    _check_count(num_layers, num_groups)
    if method not in ('spectral', 'hierarchical'):
        raise ValueError(f"method={method!r}: expected 'spectral' or 'hierarchical'")
    if num_groups in (1, num_layers):
        return uniform_groups(num_layers, num_groups)
    try:
        from sklearn.cluster import AgglomerativeClustering, SpectralClustering
    except ImportError:
        raise ImportError(
            'clustering layers needs scikit-learn: pip install "masa-vit[train]"'
        ) from None
    if method == 'spectral':
        # Layers without anything in common would leave a graph in pieces.
        affinity = similarity.clamp(min=1e-9).numpy()
        cluster = SpectralClustering(
            num_groups, affinity='precomputed', assign_labels='cluster_qr', random_state=0
        )
        labels = cluster.fit_predict(affinity).tolist()
    else:
        cluster = AgglomerativeClustering(num_groups, metric='precomputed', linkage='average')
        labels = cluster.fit_predict((1 - similarity).numpy()).tolist()
    groups = [[i for i, own in enumerate(labels) if own == label] for label in set(labels)]
    if len(groups) < num_groups:
        raise ValueError(
            f'the layers fall into {len(groups)} groups only, not {num_groups}: ask for fewer, or '
            "method='hierarchical'"
        )
    return check_groups(groups, num_layers)


def layer_similarity(grams: Any) -> Tensor:
    """Return how alike layers are: the mean over projections of the absolute cosine of their weights.

    The sign does not matter, since a coefficient can have either.

    Args:
        grams: As for `optimal_groups`.

    Returns:
        (L, L), float64, 0 to 1, ones on the diagonal.

    Raises:
        ValueError: As `optimal_groups`.
    """
    matrices = _check_grams(grams)
    total = torch.zeros_like(matrices[0])
    for gram in matrices:
        norms = gram.diagonal().clamp(min=torch.finfo(gram.dtype).tiny).sqrt()
        total += (gram / norms / norms[:, None]).abs()
    return (total / len(matrices)).clamp(max=1).fill_diagonal_(1)


def _check_count(num_layers: int, num_groups: int) -> None:
    if not 1 <= num_groups <= num_layers:
        raise ValueError(
            f'num_groups={num_groups}: expected 1 to {num_layers}, the number of layers'
        )


def _check_grams(grams: Any) -> list[Tensor]:
    values = grams.values() if isinstance(grams, Mapping) else grams
    matrices = [torch.as_tensor(gram).detach().cpu().double() for gram in values]
    shapes = [tuple(gram.shape) for gram in matrices]
    if not shapes or len({*shapes}) > 1 or len(shapes[0]) != 2 or shapes[0][0] != shapes[0][1]:
        raise ValueError(f'grams of shapes {shapes}: expected (L, L), one per projection')
    if not all(gram.isfinite().all() for gram in matrices):
        raise ValueError('grams: not finite, so the weights are not')
    return matrices


def _runs(starts: Sequence[int], num_layers: int) -> Groups:
    return [
        list(range(start, stop))
        for start, stop in zip(starts, [*starts[1:], num_layers], strict=True)
    ]


def _losses(grams: list[Tensor], num_atoms: int) -> dict[tuple[int, int], float]:
    """(start, stop) -> what a run of layers loses."""
    num_layers = len(grams[0])
    stacked = torch.stack(grams)
    losses = {}
    for start in range(num_layers):
        for stop in range(start + 1, num_layers + 1):
            values = torch.linalg.eigvalsh(stacked[:, start:stop, start:stop])  # ascending
            lost = values[:, : max(0, stop - start - num_atoms)]
            losses[start, stop] = float(lost.clamp(min=0).sum())
    return losses


def _best_runs(losses: dict[tuple[int, int], float], num_groups: int) -> Groups:
    """Cut into runs with the least loss."""
    num_layers = max(stop for _, stop in losses)
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}  # layers covered -> loss, starts
    for _ in range(num_groups):
        longer: dict[int, tuple[float, list[int]]] = {}
        for start, (lost, starts) in best.items():
            for stop in range(start + 1, num_layers + 1):
                way = (lost + losses[start, stop], [*starts, start])
                longer[stop] = min(way, longer.get(stop, way))
        best = longer
    return _runs(best[num_layers][1], num_layers)
