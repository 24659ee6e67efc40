"""The cost of an error in a weight: statistics of a model on calibration images.

The error of a compressed weight is ``||Q_l^T (W_l - What_l) P_l||^2`` with, for layer l,

- ``P_l P_l^T = E[x x^T]``, the second moment of the inputs: the error of the output counts, not that
  of the weight (as in SVD-LLM, https://arxiv.org/abs/2403.07378, and the MASA paper's refinement);
- ``Q_l Q_l^T = E[g g^T]``, the second moment of the gradients at the output: an error counts by
  the sensitivity of the prediction. Both together are the Kronecker-factored Fisher matrix (K-FAC,
  https://arxiv.org/abs/1503.05671). Using it to fit shared atoms is our choice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from masa_vit.compression.source_weights import Weights, stack
from masa_vit.models.sharing_args import LAYOUT

WEIGHTINGS = ('none', 'input', 'fisher')
"""The weighting of errors: none, by the inputs, or by inputs and gradients."""

RIDGES = {'inputs': 0.01, 'gradients': 0.1}
"""Added to second moments, in units of their mean variance: directions that the calibration images do
not show are not free. With 1e-4 for inputs, the error of a small ViT's weights was five times their
energy, in directions that no image had shown, and top-1 no better. Gradients say what small errors
cost, and those of a compression are not small: with 1e-4 for them, two atoms and residuals lost six
points more."""


class Metric(NamedTuple):
    """Factors of the cost of an error in one projection of L layers; None: all directions alike."""

    left: torch.Tensor | None = None
    """Q (L, out, out)."""
    right: torch.Tensor | None = None
    """P (L, in, in)."""

    def whiten(self, weights: torch.Tensor) -> torch.Tensor:
        """Q^T W P, for weights (L, out, in)."""
        if self.left is not None:
            weights = self.left.mT @ weights
        return weights if self.right is None else weights @ self.right

    def whiten_back(self, weights: torch.Tensor) -> torch.Tensor:
        """Undo `whiten`."""
        if self.left is not None:
            weights = torch.linalg.solve_triangular(self.left.mT, weights, upper=True)
        if self.right is not None:
            weights = torch.linalg.solve_triangular(self.right, weights, upper=False, left=False)
        return weights

    def energy(self, weights: torch.Tensor) -> torch.Tensor:
        """The squared norm of each layer's weight (L,)."""
        return self.whiten(weights).square().sum((1, 2))

    def of(self, layers: Sequence[int]) -> Metric:
        """Pick layers."""
        return Metric(*(None if factor is None else factor[list(layers)] for factor in self))


class Statistics(NamedTuple):
    """Second moments on the calibration images, by projection, float64."""

    inputs: dict[str, torch.Tensor]
    """E[x x^T] over tokens, (L, in, in)."""
    gradients: dict[str, torch.Tensor]
    """E[g g^T] over tokens, (L, out, out); empty if none were asked for."""
    num_images: int

    def metrics(self, weights: Weights, weighting: str) -> dict[str, Metric]:
        """Make the metric of every projection.

        Under 'input' every weight counts alike: the relative errors of the outputs are added, for
        outputs of different layers have no common unit (ours). Under 'fisher' they have.
        """
        factors: dict[int, torch.Tensor] = {}  # q, k and v have the same inputs
        metrics = {}
        for name, rows in weights.items():
            moments = self.inputs[name]
            if id(moments) not in factors:
                factors[id(moments)] = _factors(moments, RIDGES['inputs'])
            right = factors[id(moments)]
            if weighting == 'fisher':
                left = _factors(self.gradients[name], RIDGES['gradients'])
                metrics[name] = Metric(left, right)
            else:
                energy = Metric(None, right).energy(stack(rows))
                scale = torch.where(energy > 0, energy, 1.0).sqrt()  # a weight may be zero
                metrics[name] = Metric(None, right / scale.view(-1, 1, 1))
        return metrics


def _factors(moments: torch.Tensor, ridge: float) -> torch.Tensor:
    """Cholesky factors of the second moments (L, d, d), with a ridge; ten times it where needed."""
    eye = torch.eye(moments.shape[-1], dtype=moments.dtype, device=moments.device)
    factors = []
    for moment in moments:
        # a projection without input or gradient: any metric will do
        variance = moment.diagonal().mean().clamp(min=1e-30)
        for strength in (ridge, 10 * ridge, 100 * ridge):
            factor, info = torch.linalg.cholesky_ex(moment + strength * variance * eye)
            if not info:
                break
        else:
            raise ValueError(
                'the second moments of the activations have no Cholesky factor: are the calibration '
                'images, and the weights, finite?'
            )
        factors.append(factor)
    return torch.stack(factors)


def collect_statistics(
    model: nn.Module, calibration: Iterable[torch.Tensor], gradients: bool = False, seed: int = 0
) -> Statistics:
    """Run a dense model on calibration images and take second moments in its attention layers.

    Gradients are those of the log-likelihood of classes drawn from the model's own prediction: no
    labels are needed, and their second moment is the Fisher matrix. For a model without a classifier
    (or with a single output) they are those of its outputs in random directions. Runs in float32.

    Args:
        model: A timm `VisionTransformer`; left as it is.
        calibration: Batches of images (B, C, H, W) as the model takes them.
        gradients: Take the second moments of gradients too; costs a backward pass.
        seed: Of the classes (or directions) drawn.

    Raises:
        ValueError: For images that are not finite or of a wrong shape, or too few: the moments of d
            inputs need at least d tokens.
    """
    runner: Any = copy.deepcopy(model).eval().float().requires_grad_(False)
    device = next(runner.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    num_images = 0
    with torch.inference_mode(False):
        collector = _Collector(runner, gradients)
        for images in calibration:
            images = check_images(images, runner).to(device, torch.float32, copy=True)
            with torch.set_grad_enabled(gradients):
                outputs = runner(images.requires_grad_(gradients))
                if gradients:
                    _scalar(outputs, runner, generator).backward()
            num_images += len(images)
    collector.check(num_images)
    return Statistics(collector.moments('inputs'), collector.moments('gradients'), num_images)


def check_images(images: Any, model: Any) -> torch.Tensor:
    """Return the images of a batch, which may be a pair of images and classes.

    Raises:
        ValueError: If they are not what the model takes.
    """
    if isinstance(images, (tuple, list)) and images:
        images = images[0]
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or not images.is_floating_point():
        what = tuple(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(
            f'a calibration batch is {what}, expected images as the model takes them: a floating '
            'tensor (batch, channels, height, width)'
        )
    expected = (
        model.patch_embed.proj.in_channels,
        *(model.patch_embed.img_size or images.shape[2:]),
    )
    fits = (
        images.shape[1] == expected[0] if model.dynamic_img_size else images.shape[1:] == expected
    )
    if not fits:
        raise ValueError(
            f'the calibration images are {tuple(images.shape[1:])}, expected {expected} (channels, '
            'height, width): prepare them as for the model'
        )
    if not torch.isfinite(images).all():
        raise ValueError('the calibration images hold NaN or infinity')
    return images.detach()


def _scalar(outputs: torch.Tensor, model: Any, generator: torch.Generator) -> torch.Tensor:
    """Return a scalar whose gradients have the Fisher matrix as second moment."""
    if model.num_classes > 1 and outputs.ndim == 2:
        drawn = torch.multinomial(outputs.detach().softmax(1).cpu(), 1, generator=generator)
        return F.cross_entropy(outputs, drawn[:, 0].to(outputs.device), reduction='sum')
    direction = torch.randn(outputs.shape, generator=generator).to(outputs.device)
    return (outputs * direction).sum()


class _Collector:
    """Hooks on the attention's linear layers, which add up second moments."""

    def __init__(self, model: Any, gradients: bool) -> None:
        self._depth = len(model.blocks)
        self._sums: dict[tuple[str, str, int], torch.Tensor] = {}
        self._tokens = 0
        for layer, block in enumerate(model.blocks):
            for path in LAYOUT:
                hook = self._hook(path, layer, gradients)
                block.get_submodule(path).register_forward_hook(hook)

    def _hook(self, path: str, layer: int, gradients: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            self._add('inputs', path, layer, args[0])
            if (layer, path) == (0, next(iter(LAYOUT))):
                self._tokens += args[0].numel() // args[0].shape[-1]
            if gradients:
                out.register_hook(lambda grad: self._add('gradients', path, layer, grad))

        return hook

    def _add(self, what: str, path: str, layer: int, values: torch.Tensor) -> None:
        rows = values.detach().flatten(0, -2).double()  # (tokens, features)
        # the gradient of qkv stacks those of q, k and v; their input is one
        names = LAYOUT[path] if what == 'gradients' else [LAYOUT[path]]
        for name, part in zip(names, rows.chunk(len(names), dim=1), strict=True):
            key = (what, name, layer)
            self._sums[key] = self._sums.get(key, 0) + part.T @ part

    def check(self, num_images: int) -> None:
        widths = [len(total) for (what, *_), total in self._sums.items() if what == 'inputs']
        widest = max(widths, default=1)
        if self._tokens < widest:
            least = -(-widest * max(num_images, 1) // max(self._tokens, 1))
            raise ValueError(
                f'{num_images} calibration images give {self._tokens} tokens, too few for {widest} '
                f'inputs of a projection: give at least {least} images, better some hundred'
            )

    def moments(self, what: str) -> dict[str, torch.Tensor]:
        """Of every projection; those with the same inputs have one tensor."""
        moments: dict[str, torch.Tensor] = {}
        for key in dict.fromkeys(key for of, key, _ in self._sums if of == what):
            totals = [self._sums[what, key, layer] for layer in range(self._depth)]
            moments.update(dict.fromkeys(key, torch.stack(totals) / self._tokens))
        return moments
