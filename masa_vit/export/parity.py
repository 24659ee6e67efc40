"""Prepare a model for export and verify the exported outputs."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.layers import to_2tuple
from torch import nn

from masa_vit.export.baking import bake
from masa_vit.export.folding import fold
from masa_vit.layers import SharedLinear
from masa_vit.utils.messages import first_lines, first_of

_logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest difference of an output from the source model's, as a share of the largest output."""

BATCH_SIZES = (1, 3)
"""Of the random images that outputs are compared on: a file must take any number of images."""

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
"""In which weights are stored."""


class ExportError(RuntimeError):
    """The exported files differ from the model; none was kept, and none was replaced."""


class Exported(NamedTuple):
    """The result of an export."""

    path: Path
    """The file or folder."""
    size: int
    """Of all files, in bytes."""
    difference: float
    """Largest difference of an output from the model's (rounded to the dtype of the file)."""
    rounding: float
    """Largest change of an output by that rounding. Both are shares of the largest output."""


class Form(NamedTuple):
    """A model in its exported form, and its outputs for random images."""

    model: nn.Module
    """A copy on the CPU, in float32, for evaluation; its weights have the values of the file."""
    dtype: torch.dtype
    """Of the weights in the file."""
    images: list[torch.Tensor]
    """(B, C, H, W) each."""
    outputs: list[torch.Tensor]
    rounding: float
    """How far rounding the weights to `dtype` moved an output, as a share of the largest."""

    def stored(self) -> Any:
        """Copy the model with its weights in the dtype of the file; those that stay float32 are not."""
        model = copy.deepcopy(self.model)
        for weight in _weights(model):
            weight.data = weight.data.to(self.dtype)
        return model

    def size(self) -> int:
        """Bytes of the weights in the file."""
        saved = sum(
            weight.numel() * (weight.element_size() - self.dtype.itemsize)
            for weight in _weights(self.model)
        )
        tensors = self.model.state_dict().values()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors) - saved

    @torch.no_grad()
    def check(self, run: Callable[[torch.Tensor], Any], what: str) -> float:
        """Compare the written files, as a function of images, with the model.

        Returns:
            The largest difference of an output, as a share of the largest output.

        Raises:
            ExportError: If it is more than `TOLERANCE`, or `run` fails.
        """
        try:
            outputs = [run(images) for images in self.images]
        except Exception as error:
            raise ExportError(f'{what} does not run: {first_lines(error, 1)}') from error
        difference = output_difference(outputs, self.outputs)
        if not difference <= TOLERANCE:
            raise ExportError(
                f'the outputs of {what} differ from those of the model by {difference:.3g} of the '
                f'largest, more than {TOLERANCE:g}; nothing was written'
            )
        return difference


def make_form(model: nn.Module, *, shared: bool, baked: bool = True, dtype: str = 'fp32') -> Form:
    """Copy a model in the form in which it is to be written, and check that the form computes the same.

    Args:
        model: A timm model, left as it is.
        shared: Whether atoms stay atoms, or every layer gets its weights.
        baked: For `shared`: whether a coefficient MLP is replaced by the coefficients.
        dtype: Of the weights in the file, a key of `DTYPES`. Computed is in float32.

    Raises:
        ValueError: For another dtype, weights that it cannot hold, or `shared` where nothing is.
        ExportError: If the form does not give the outputs of the model.
    """
    if dtype not in DTYPES:
        raise ValueError(f'dtype={dtype!r} is unknown, expected one of {", ".join(DTYPES)}')
    is_shared = any(isinstance(module, SharedLinear) for module in model.modules())
    if shared and not is_shared:
        raise ValueError(
            f'nothing is shared in this {type(model).__name__}, so there are no atoms to write: '
            'export it folded (formats folded, onnx, torch-export), or compress it first '
            '(masa_vit.compress)'
        )
    _check_finite(model, 'the model')
    form: Any = copy.deepcopy(model).cpu().float().eval()
    if hasattr(form, 'set_grad_checkpointing'):
        form.set_grad_checkpointing(False)
    images = _random_images(form)
    outputs = _run(form, images)
    if is_shared and not shared:
        form = fold(form)
    elif is_shared and baked:
        form = bake(form)
    made = Form(form, DTYPES[dtype], images, outputs, 0.0)
    made.check(lambda batch: _run(form, [batch])[0], 'the model, folded or baked,')
    if made.dtype == torch.float32:
        return made
    with torch.no_grad():
        for weight in _weights(form):
            weight.copy_(weight.to(made.dtype))
    _check_finite(form, f'the model rounded to {dtype}', ': use bf16, which has the range of fp32')
    rounded = _run(form, images)
    return made._replace(outputs=rounded, rounding=output_difference(rounded, outputs))


def input_size(model: Any) -> tuple[int, int, int]:
    """Channels, height and width of a timm model's images."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    channels, *size = cfg.get('input_size', (3, 224, 224))
    embeds: Any = (getattr(module, 'patch_embed', None) for module in model.modules())
    size = next((embed.img_size for embed in embeds if getattr(embed, 'img_size', None)), size)
    return (getattr(model, 'in_chans', channels), *to_2tuple(size))


def _random_images(model: nn.Module) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = input_size(model)
    return [torch.randn(batch, *shape, generator=generator) for batch in BATCH_SIZES]


@torch.no_grad()
def _run(model: nn.Module, images: list[torch.Tensor]) -> list[torch.Tensor]:
    outputs = [model(batch) for batch in images]
    if not all(isinstance(output, torch.Tensor) for output in outputs):
        raise TypeError(
            f'this {type(model).__name__} gives no tensor but {type(outputs[0]).__name__}: export the '
            'classifier or feature extractor itself, created without features_only'
        )
    if len(outputs) > 1 and torch.equal(outputs[-1][:-1], outputs[-1][1:]):
        _logger.warning('the model gives the same output for every image: the check is weak')
    return outputs


def _weights(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are stored in the file's dtype.

    Biases, norms and coefficients stay float32, and so does the MLP that makes coefficients: they are
    few, and rounding a coefficient is an error in every weight of its layer.
    """
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and parameter.is_floating_point() and '_generator.' not in name
    ]


def _check_finite(model: nn.Module, what: str, advice: str = '') -> None:
    bad = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if bad:
        raise ValueError(f'{what} has values that are not finite, in {first_of(bad)}{advice}')


def output_difference(outputs: Sequence[Any], expected: Sequence[torch.Tensor]) -> float:
    """Largest difference over the largest expected value; infinite for other shapes."""
    if [tuple(o.shape) for o in outputs] != [tuple(e.shape) for e in expected]:
        return float('inf')
    largest = max(float(e.abs().max()) for e in expected)
    error = max(float((o.float() - e).abs().max()) for o, e in zip(outputs, expected, strict=True))
    return error / largest if largest else (0.0 if error == 0 else float('inf'))
