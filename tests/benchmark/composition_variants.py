"""Training step of two ways to compose weights, over that of the dense model.

    python tests/benchmark/composition_variants.py vit_base_masa_s4 --batch-size 4 --rounds 20

'layer': every layer composes its weight when it is called, as the package does. 'joint': one product
per dictionary composes the weights of all layers before the first block, and `unbind` hands them
out. The three models run in turn, the order rotates; each ratio is that of one round.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import Any

import timm
import torch

from masa_vit.layers import SharedLinear
from masa_vit.models import create_timm_model, dense_architecture
from masa_vit.utils.arguments import parse_pair

_compose = SharedLinear.compose_weight


def compose_weight(self: SharedLinear) -> torch.Tensor:
    """Use the parts that `joint` has composed, if there are any."""
    parts = self.__dict__.get('_parts')
    if parts is None:
        return _compose(self)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def joint(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Compose the weights of all layers, and run the model with them."""
    coefs = [block.attn.coef() for block in model.blocks]
    weights = {
        name: bank(torch.stack([coef[name] for coef in coefs])).unbind()  # L x (out, in)
        for name, bank in model.banks.items()
    }
    layers = [(i, layer) for i, b in enumerate(model.blocks) for layer in (b.attn.qkv, b.attn.proj)]
    for index, layer in layers:
        layer._parts = [weights[name][index] for name in layer.names]
    try:
        return model(images)
    finally:
        for _, layer in layers:
            layer._parts = None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model')
    parser.add_argument('--model-args', nargs='+', type=parse_pair, default=[])
    parser.add_argument('--batch-size', type=int, default=4)
    parser.add_argument('--rounds', type=int, default=20)
    args = parser.parse_args()
    SharedLinear.compose_weight = compose_weight  # type: ignore[method-assign]
    kwargs = dict(args.model_args)
    models: dict[str, Any] = {
        'dense': timm.create_model(dense_architecture(args.model), **kwargs),
        'layer': create_timm_model(args.model, kwargs),
    }
    models['joint'] = copy.deepcopy(models['layer'])
    optimizers = {
        name: torch.optim.AdamW(model.train().parameters(), lr=1e-6)
        for name, model in models.items()
    }
    size = models['dense'].patch_embed.img_size
    images = torch.randn(args.batch_size, 3, *size)
    targets = torch.zeros(args.batch_size, dtype=torch.long)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    names = list(models)
    for number in range(-1, args.rounds):  # one round to warm up
        for name in names[number % 3 :] + names[: number % 3]:
            start = time.perf_counter()
            optimizers[name].zero_grad()
            model = models[name]
            logits = joint(model, images) if name == 'joint' else model(images)
            torch.nn.functional.cross_entropy(logits, targets).backward()
            optimizers[name].step()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    for name in ('layer', 'joint'):
        pairs = zip(seconds[name], seconds['dense'], strict=True)
        low, middle, high = statistics.quantiles([ours / dense for ours, dense in pairs], n=4)
        print(f'{name}: {middle:.3f} of dense, quartiles {low:.3f} to {high:.3f}')


if __name__ == '__main__':
    main()
