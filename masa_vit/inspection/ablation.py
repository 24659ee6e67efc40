"""The effect of each atom on the predictions: its removal."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from masa_vit.inspection.activations import Batch, split_batch
from masa_vit.layers import Dictionary, SharedLinear, bake_coefficients
from masa_vit.models import MasaVisionTransformer
from masa_vit.models.sharing_args import PROJECTIONS


class Effect(NamedTuple):
    """How predictions change, by layer and atom (L, S) or by atom (S,); float32, on the CPU."""

    kl: torch.Tensor
    """Mean over images of ``KL(p || p')`` in nats: p predicted by the whole model, p' without."""
    distance: torch.Tensor
    """Mean over images of ``|z - z'| / |z|``, of the logits z."""
    accuracy: torch.Tensor | None
    """Change of top-1 in percent points (negative: worse); None if no batch had classes."""


class AtomAblation(NamedTuple):
    """The effect of the removal of each atom; projections in the order q, k, v, o."""

    by_layer: dict[str, Effect]
    """Projection -> the effect of removing the atom from one layer, (L, S)."""
    everywhere: dict[str, Effect]
    """Projection -> the effect of removing it from all layers at once, (S,)."""
    accuracy: float | None
    """Top-1 of the whole model in percent, on the images with classes; None if there were none."""
    num_images: int


def ablate_atoms(model: nn.Module, batches: Iterable[Batch]) -> AtomAblation:
    """Remove every atom from the weights of one projection, and measure the change of the output.

    Atom s is removed from projection p in layer l by ``c_ls = 0``. Coefficients belong to one
    projection, also where several share a dictionary: each has its ablation. Residuals and biases stay.

    The effect depends on the basis: a rotation of the atoms, undone in the coefficients, leaves the
    model as it is and changes the effects (with S > 1).

    Costs one pass, and for each coefficient the blocks from its layer on: for a batch about
    ``S P (L / 2 + 1)`` passes, with P projections. The inputs of all blocks are held for one batch.

    Args:
        model: A model that shares, with a classifier. Left as it is: a copy is worked on.
        batches: Images, or tuples of images and classes (B,); read once.

    Returns:
        Its columns S are those of `masa_vit.inspection.coefficients`: where groups of layers have their
        banks, the atoms of all groups. The effect is exactly zero wherever a coefficient is zero.

    Raises:
        ValueError: If nothing is shared, the model has no classifier, there are no images, or classes
            are not one for each image.
        TypeError: If the model is a module that holds one.
    """
    vit = _copy_of(model)
    groups, depth = _groups(vit), len(vit.blocks)
    removals = [*_removals(vit, groups)]
    sums = {  # measure, layer (the last: everywhere), atom
        name: torch.zeros(3, depth + 1, sum(d.num_atoms for d in of_name), dtype=torch.float64)
        for name, of_name in groups.items()
    }
    num_images = num_classified = 0
    correct = 0.0
    for batch in batches:
        images, classes = split_batch(batch)
        if classes is not None and classes.shape != images.shape[:1]:
            raise ValueError(
                f'classes have shape {tuple(classes.shape)}, expected ({len(images)},): the number '
                'of its class for each image'
            )
        inputs, logits = _run(vit, images)
        right = _correct(logits, classes)
        num_images += len(images)
        num_classified += 0 if classes is None else len(images)
        correct += right
        for removal in removals:
            with removal.applied():
                ablated = _run_from(vit, inputs, removal.first_layer)
            cell = sums[removal.name][:, removal.row, removal.atom]
            cell[0] += F.kl_div(
                ablated.log_softmax(-1), logits.log_softmax(-1), reduction='sum', log_target=True
            )
            tiny = torch.finfo(torch.float32).tiny
            cell[1] += ((ablated - logits).norm(dim=-1) / logits.norm(dim=-1).clamp_min(tiny)).sum()
            cell[2] += _correct(ablated, classes) - right
    if not num_images:
        raise ValueError('no images: the batches are empty')

    def effects(rows: int | slice) -> dict[str, Effect]:
        return {
            name: Effect(
                (kl[rows] / num_images).float(),
                (distance[rows] / num_images).float(),
                (100 * gained[rows] / num_classified).float() if num_classified else None,
            )
            for name, (kl, distance, gained) in sums.items()
        }

    accuracy = 100 * correct / num_classified if num_classified else None
    return AtomAblation(effects(slice(depth)), effects(depth), accuracy, num_images)


def _copy_of(model: nn.Module) -> MasaVisionTransformer:
    """A copy with coefficients that can be set one by one, in evaluation mode."""
    if not isinstance(model, MasaVisionTransformer):
        kind = type(model).__name__
        if any(isinstance(module, SharedLinear) for module in model.modules()):
            raise TypeError(f'{kind} is not a MasaVisionTransformer: pass its inner model')
        raise ValueError(f'nothing is shared in this {kind}: there are no atoms to remove')
    if not model.num_classes:
        raise ValueError(
            'num_classes=0: there are no predictions to compare. Take a model with a classifier'
        )
    vit = copy.deepcopy(model).eval()
    bake_coefficients(vit)
    vit.set_grad_checkpointing(False)
    return vit


class _Removal(NamedTuple):
    """One atom of one projection, in one layer or everywhere."""

    name: str
    row: int  # of the sums: the layer, or the last
    atom: int  # column of the sums
    first_layer: int
    coefs: Sequence[torch.Tensor]
    position: int  # in the coefficients: of the atom in its bank

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Set the coefficients to zero, and back."""
        values = [coef[self.position].clone() for coef in self.coefs]
        with torch.no_grad():
            try:
                for coef in self.coefs:
                    coef[self.position] = 0
                yield
            finally:
                for coef, value in zip(self.coefs, values, strict=True):
                    coef[self.position] = value


def _groups(vit: MasaVisionTransformer) -> dict[str, list[Dictionary]]:
    """Projection -> the dictionaries of its groups of layers, in the order of their columns."""
    dictionaries = sorted(vit.dictionaries.values(), key=lambda d: sorted(d.layers))
    groups = {name: [d for d in dictionaries if name in d.names] for name in PROJECTIONS}
    return {name: of_name for name, of_name in groups.items() if of_name}


def _removals(
    vit: MasaVisionTransformer, groups: dict[str, list[Dictionary]]
) -> Iterator[_Removal]:
    """All removals whose coefficients are not zero."""
    for name, of_name in groups.items():
        start = 0
        for group in of_name:
            coefs = {layer: _coef(vit.blocks[layer], name) for layer in sorted(group.layers)}
            for position in range(group.num_atoms):
                atom = start + position
                drawing = {layer: c for layer, c in coefs.items() if c[position] != 0}
                for layer, coef in drawing.items():
                    yield _Removal(name, layer, atom, layer, [coef], position)
                if drawing:
                    every, row = [*drawing.values()], len(vit.blocks)
                    yield _Removal(name, row, atom, min(drawing), every, position)
            start += group.num_atoms


def _coef(block: Any, name: str) -> torch.Tensor:
    """The coefficients (S,) of a projection of a block: a parameter, or, if frozen, a buffer."""
    coef: torch.Tensor = getattr(block.attn.coef, name)
    return coef


@torch.no_grad()
def _run(
    vit: MasaVisionTransformer, images: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the input of every block, and the logits, float64 on the CPU."""
    inputs: list[torch.Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        for block in vit.blocks
    ]
    try:
        logits = vit(images.to(next(vit.parameters())))
    finally:
        for hook in hooks:
            hook.remove()
    return inputs, logits.cpu().double()


@torch.no_grad()
def _run_from(
    vit: MasaVisionTransformer, inputs: Sequence[torch.Tensor], first: int
) -> torch.Tensor:
    """Return the logits, float64 on the CPU, from the input of a block on."""
    x = inputs[first]
    for block in vit.blocks[first:]:
        x = block(x)
    return vit.forward_head(vit.norm(x)).cpu().double()


def _correct(logits: torch.Tensor, classes: torch.Tensor | None) -> float:
    """The number of images that are classified correctly."""
    return 0.0 if classes is None else float((logits.argmax(-1) == classes.cpu()).sum())
