"""Partition layers into groups that have a dictionary each.

A partition is a list of groups, a group the ascending list of its layers, in the order of their first
layers. For the same number of atoms, groups do not make Matrix PCA better: atoms that all layers may
use capture at least as much. They keep sharing local, and their coefficients few.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from masa_vit.compression.pca import gram_matrix
from masa_vit.compression.source_weights import Weights
from masa_vit.inspection.activations import evaluating
from masa_vit.layers import check_groups

GROUPINGS = ('uniform', 'kl', 'optimal', 'spectral', 'hierarchical')
"""Ways to find groups of layers."""

Groups = list[list[int]]


def find_groups(
    how: str,
    num_groups: int,
    model: nn.Module,
    weights: Weights,
    num_atoms: int,
    batches: Iterable[Tensor] = (),
) -> Groups:
    """Find groups of layers.

    Args:
        how: One of `GROUPINGS`.
        num_groups: G, at most the number of layers.
        model: For 'kl': a `VisionTransformer` with a head.
        weights: Of the projections that share.
        num_atoms: S, for 'optimal'.
        batches: For 'kl': calibration images (B, C, H, W).

    Raises:
        ValueError: If there are fewer layers than groups, no head or images for 'kl', or the layers do
            not fall into as many clusters.
        ImportError: If scikit-learn is missing, for clustering.
    """
    depth = len(next(iter(weights.values())))
    if num_groups > depth:
        raise ValueError(f'num_groups={num_groups}: expected 1 to {depth}, the number of layers')
    if how == 'uniform':
        return uniform_groups(depth, num_groups)
    if how == 'kl':
        return kl_groups(logit_lens(model, batches), num_groups)
    grams = torch.stack([gram_matrix(rows).cpu() for rows in weights.values()])
    if how == 'optimal':
        return optimal_groups(grams, num_groups, num_atoms)
    return cluster_groups(grams, num_groups, how)


def uniform_groups(num_layers: int, num_groups: int) -> Groups:
    """Cut the layers into runs whose sizes differ by at most one; the longer ones come first."""
    size, longer = divmod(num_layers, num_groups)
    return _runs([g * size + min(g, longer) for g in range(num_groups)], num_layers)


def kl_groups(distributions: Tensor, num_groups: int) -> Groups:
    """Cut the layers where the distributions of consecutive ones drift most, as the paper does.

    The drift from layer l to l + 1 is ``KL(p_l || p_{l+1})`` of their logit-lens distributions. The
    paper describes contiguous groups with small drift inside and does not give its algorithm. Ours
    cuts at the G - 1 largest drifts; of equal ones at the earlier.

    Args:
        distributions: (L, C), rows of probabilities; see `logit_lens`.
        num_groups: G.
    """
    logs = distributions.clamp(min=1e-12).log()  # a large drift for a class without a chance
    # (L - 1,): drift[l] is the divergence of layer l + 1 from layer l
    drift = (distributions[:-1] * (logs[:-1] - logs[1:])).sum(1)
    cuts = drift.argsort(descending=True, stable=True)[: num_groups - 1]
    return _runs([0, *sorted((cuts + 1).tolist())], len(distributions))


@torch.no_grad()
def logit_lens(model: Any, batches: Iterable[Tensor]) -> Tensor:
    """Return the class distribution of every block's output, averaged over images: (L, C), float64.

    The output of each block goes through the model's final norm, pooling and head; the softmax is
    averaged over the images. The last row is the prediction of the model.

    Raises:
        ValueError: If the model has no head, there are no images, or an output is not finite.
    """
    if isinstance(model.head, nn.Identity):
        raise ValueError(
            "groups='kl' needs a model with a head (num_classes): choose another grouping, or lists"
        )
    total = torch.zeros(len(model.blocks), model.num_classes, dtype=torch.float64, device='cpu')
    seen = 0

    def add(index: int, output: Tensor) -> None:
        logits = model.forward_head(model.norm(output))
        total[index] += logits.cpu().double().softmax(-1).sum(0)

    hooks = [
        block.register_forward_hook(lambda _, __, output, index=index: add(index, output))
        for index, block in enumerate(model.blocks)
    ]
    param = next(model.parameters())
    try:
        with evaluating(model):
            for images in batches:
                seen += len(images)
                model(images.to(param))
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise ValueError('no calibration images: the batches are empty')
    if bad := (~total.isfinite()).any(1).nonzero().flatten().tolist():
        raise ValueError(f'blocks {bad} give values that are not finite for these images')
    return total / seen


def optimal_groups(grams: Tensor, num_groups: int, num_atoms: int) -> Groups:
    """Cut the layers into the runs for which Matrix PCA loses least, exactly.

    Dynamic programming over the sum of the eigenvalues that every run and projection discards. Of
    equal partitions, the one with the earlier cuts.

    Args:
        grams: Gram matrices of the layers' weights, (projections, L, L).
        num_groups: G.
        num_atoms: S of every group and projection.
    """
    depth = grams.shape[-1]
    losses = {}  # run [start, stop) -> energy that S atoms for each projection lose
    for start in range(depth):
        for stop in range(start + 1, depth + 1):
            values = torch.linalg.eigvalsh(grams[:, start:stop, start:stop])  # ascending
            lost = values[:, : max(0, stop - start - num_atoms)]
            losses[start, stop] = float(lost.clamp(min=0).sum())
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}  # layers covered -> loss, starts
    for _ in range(num_groups):
        longer: dict[int, tuple[float, list[int]]] = {}
        for start, (lost_so_far, starts) in best.items():
            for stop in range(start + 1, depth + 1):
                way = (lost_so_far + losses[start, stop], [*starts, start])
                longer[stop] = min(way, longer.get(stop, way))
        best = longer  # after g rounds: partitions into exactly g runs
    return _runs(best[depth][1], depth)


def cluster_groups(grams: Tensor, num_groups: int, method: str) -> Groups:
    """Cluster the layers by the similarity of their weights; groups need not be contiguous.

    The similarity of two layers is the mean over projections of the absolute cosine of their weights,
    since a coefficient can have either sign. The result is deterministic.

    Args:
        grams: As for `optimal_groups`.
        num_groups: G.
        method: 'spectral' or 'hierarchical' (agglomerative, average linkage), of scikit-learn.

    Raises:
        ValueError: If the layers do not fall into as many groups.
        ImportError: If scikit-learn is missing.
    """
    norms = grams.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(grams.dtype).tiny).sqrt()
    cosines = (grams / norms[:, :, None] / norms[:, None]).abs().mean(0)
    similarity = cosines.clamp(max=1).fill_diagonal_(1)  # (L, L)
    depth = len(similarity)
    if num_groups in (1, depth):
        return uniform_groups(depth, num_groups)
    try:
        from sklearn.cluster import AgglomerativeClustering, SpectralClustering
    except ImportError:
        raise ImportError('clustering needs scikit-learn: pip install "masa-vit[train]"') from None
    if method == 'spectral':
        # layers without similarity would leave a graph in pieces
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
            f'the layers fall into {len(groups)} groups only, not {num_groups}: choose fewer, or '
            "groups='hierarchical'"
        )
    return check_groups(groups, depth)


def _runs(starts: Sequence[int], num_layers: int) -> Groups:
    stops = [*starts[1:], num_layers]
    return [[*range(start, stop)] for start, stop in zip(starts, stops, strict=True)]
