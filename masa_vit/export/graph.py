"""Graphs for other runtimes: ONNX and `torch.export`, for any number of images."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from masa_vit.export.parity import Exported, ExportError, Form, input_size, make_form
from masa_vit.utils.staging import staged

EXTRA = ('onnx', 'onnxruntime', 'onnxscript')
"""Packages of the extra `export`."""

_LARGEST_PROTOBUF = 2**31 - 2**20
"""Bytes that fit into one ONNX file, with room for the graph."""

_GRAPH = 2**20
"""Bytes that a graph without its weights stays below: it has some 130 for each node."""

_SMALL = 16
"""Constants up to this size are computed at export: shapes, never weights."""


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    shared: bool = False,
    dtype: str = 'fp32',
    force: bool = False,
) -> Exported:
    """Write an ONNX file: `images` (batch, C, H, W), float32, to `logits` (batch, classes).

    The file is checked by onnx and, for two numbers of images, by onnxruntime against the model. How
    images are normalised (`input`) and the names of the classes, if known, are in its metadata.

    Args:
        model: A timm model, MASA or not. Left as it is.
        path: The file, `.onnx`.
        shared: Store every atom once, and compose the weights by operations of the graph: a smaller
            file. Default: the folded weights of every layer.
        dtype: In which weights are stored: 'fp32', 'bf16', 'fp16'; the graph computes in float32.
            Tensors of one dimension stay float32.
        force: Replace the file.

    Raises:
        ImportError: If onnx, onnxruntime or onnxscript are not installed.
        ValueError: For weights that are not finite, more than 2 GiB of them, or `shared` where
            nothing is.
        OSError: If the file exists, or cannot be written.
        ExportError: If the file does not give the model's outputs; it is removed.
    """
    check_installed()
    path = check_suffix(path, '.onnx')
    with staged(path.parent, [path.name], force) as stage:
        form = make_form(model, shared=shared, dtype=dtype)
        weights = form.size()
        if weights > _LARGEST_PROTOBUF:
            raise ValueError(
                f'the weights take {weights / 2**30:.2f} GiB, and an ONNX file holds 2: use dtype bf16 '
                'or fp16, store atoms (shared), or use torch.export'
            )
        file = stage / path.name
        _write_onnx(form, model, file)
        size = file.stat().st_size
        if size > 1.02 * weights + _GRAPH:
            raise ExportError(
                f'the file has {size:,} bytes, the weights have {weights:,}: the exporter of these '
                'versions of torch and onnxscript wrote some of them more than once'
            )
        difference = form.check(_onnxruntime(file), 'the ONNX file in onnxruntime')
    return Exported(path, size, difference, form.rounding)


def export_torch(
    model: nn.Module,
    path: str | Path,
    *,
    shared: bool = False,
    dtype: str = 'fp32',
    force: bool = False,
) -> Exported:
    """Write an exported program, which ``torch.export.load(path).module()`` runs without this package.

    Args:
        model: As in `export_onnx`.
        path: The file, `.pt2`.
        shared: As in `export_onnx`.
        dtype: As in `export_onnx`.
        force: As in `export_onnx`.

    Raises:
        ValueError: As `export_onnx`, without a limit of size.
        OSError: As `export_onnx`.
        ExportError: As `export_onnx`.
    """
    path = check_suffix(path, '.pt2')
    with staged(path.parent, [path.name], force) as stage:
        form = make_form(model, shared=shared, dtype=dtype)
        file = stage / path.name
        torch.export.save(_export(form), file)
        size = file.stat().st_size
        program = torch.export.load(file).module()
        difference = form.check(program, 'the exported program')
    return Exported(path, size, difference, form.rounding)


def check_installed() -> None:
    """Raise ImportError unless the extra `export` is installed."""
    for package in EXTRA:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(
                f'ONNX needs {package}, which is not installed: pip install "masa-vit[export]"'
            ) from error


def check_suffix(path: str | Path, suffix: str) -> Path:
    """Return the path; ValueError if its name ends otherwise."""
    path = Path(path)
    if path.suffix != suffix:
        raise ValueError(f'{str(path)!r} is to be a file that ends in {suffix}, e.g. model{suffix}')
    return path


class _Stored(nn.Module):
    """A model whose weights are stored in another dtype than it computes in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        weights = {name: weight.float() for name, weight in self.model.named_parameters()}
        return torch.func.functional_call(self.model, weights, (images,))


def _export(form: Form) -> Any:
    module = form.model if form.dtype == torch.float32 else _Stored(form.stored()).eval()
    batch = torch.export.Dim('batch')
    with torch.no_grad():
        return torch.export.export(module, (form.images[-1],), dynamic_shapes=({0: batch},))


def _write_onnx(form: Form, source: nn.Module, file: Path) -> None:
    import onnx
    import onnxscript.optimizer

    program: Any = torch.onnx.export(
        _export(form),
        (),
        dynamo=True,
        input_names=['images'],
        output_names=['logits'],
        optimize=False,  # it would compose small weights, and write them layer by layer
        verbose=False,
    )
    onnxscript.optimizer.optimize(program.model, input_size_limit=_SMALL)
    proto = program.model_proto
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        part.doc_string = ''
        # where in the Python source a node comes from: most of the graph's bytes
        del part.metadata_props[:]
    onnx.helper.set_model_props(proto, _properties(source))
    onnx.save(proto, file)
    try:
        onnx.checker.check_model(file, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f'onnx refuses the file: {error}') from error


def _properties(model: Any) -> dict[str, str]:
    """Return the metadata of the file, as JSON."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    images = {key: list(cfg[key]) for key in ('mean', 'std') if key in cfg}
    properties: dict[str, Any] = {'input': {'size': list(input_size(model)), **images}}
    if cfg.get('label_names'):
        properties['label_names'] = cfg['label_names']
    return {key: json.dumps(value) for key, value in properties.items()}


def _onnxruntime(file: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(
            str(file), options, providers=['CPUExecutionProvider']
        )
    except Exception as error:
        raise ExportError(f'onnxruntime cannot load the file: {error}') from error

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(['logits'], {'images': images.numpy()})[0])

    return run
