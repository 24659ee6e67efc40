"""Sources of the coefficients C (L, S), one per block.

- `DirectCoefficients`: trainable numbers;
- `ChannelCoefficients`: trainable numbers, one for each output row of an atom;
- `FrozenCoefficients`: given numbers that do not train; one-hot rows express schemes in which layers
  share whole matrices (Sequential, Repeat-all-over);
- `MlpCoefficients`: the paper's source, a trainable embedding of the block through a three-layer
  MLP, the `CoefficientGenerator`, which all blocks share and `masa_vit.bake` drops after training.

Coefficients are signed and unconstrained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from masa_vit.layers.bank import NOT_MATERIALIZED, no_autocast
from masa_vit.layers.dictionaries import Dictionaries


@torch.fx.wrap  # one node in traced graphs, as `compose`
def generate(embedding: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    """Run the coefficient MLP, in the dtype of its weights even under autocast.

    Args:
        embedding: (..., embed_dim).
        weights: Weight and bias of the three layers, in order.

    Returns:
        The coefficients of all projections, (..., sum of S).
    """
    w1, b1, w2, b2, w3, b3 = weights
    if w1.is_meta and not embedding.is_meta:
        raise RuntimeError(NOT_MATERIALIZED)
    with no_autocast(embedding.device):
        hidden = F.gelu(F.linear(F.gelu(F.linear(embedding, w1, b1)), w2, b2))
        return F.linear(hidden, w3, b3)


class CoefficientSource(nn.Module):
    """The coefficients of the shared projections of one block; calling it returns them by name."""

    def __init__(self, num_atoms: Mapping[str, int]) -> None:
        """Serve the projections named in `num_atoms`, each with its number of atoms S."""
        super().__init__()
        self.num_atoms = dict(num_atoms)

    def forward(self) -> dict[str, torch.Tensor]:
        """Return the coefficients, projection -> (S,)."""
        return {name: getattr(self, name) for name in self.num_atoms}

    @torch.no_grad()
    def values(self) -> dict[str, torch.Tensor]:
        """Return a detached copy of the coefficients, projection -> (S,)."""
        return {name: row.detach().clone() for name, row in self().items()}

    def extra_repr(self) -> str:
        """Return the projections, for the printout of a model."""
        return ', '.join(f'{name}: {num}' for name, num in self.num_atoms.items())


class DirectCoefficients(CoefficientSource):
    """Trainable coefficients, one vector (S,) per projection."""

    def __init__(self, values: Mapping[str, torch.Tensor]) -> None:
        """Start from `values`, projection -> (S,)."""
        super().__init__({name: row.numel() for name, row in values.items()})
        for name, row in values.items():
            self.register_parameter(name, nn.Parameter(row.detach().clone()))


class ChannelCoefficients(CoefficientSource):
    """Trainable coefficients, one per atom and output row: (S, out) per projection.

    A layer scales each row of an atom with its own coefficient: S d numbers instead of S.
    """

    def __init__(self, values: Mapping[str, torch.Tensor], rows: Mapping[str, int]) -> None:
        """Start from `values`, projection -> (S,), for all of `rows`, projection -> out."""
        super().__init__({name: row.numel() for name, row in values.items()})
        for name, row in values.items():
            full = row.detach()[:, None].repeat(1, rows[name])  # (S, out)
            self.register_parameter(name, nn.Parameter(full))

    def forward(self) -> dict[str, torch.Tensor]:
        """Return the coefficients, projection -> (S, out, 1)."""
        return {name: row.unsqueeze(-1) for name, row in super().forward().items()}


class FrozenCoefficients(CoefficientSource):
    """Given coefficients, one vector (S,) per projection, saved with the model but not trained."""

    def __init__(
        self,
        values: Mapping[str, torch.Tensor],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Store `values`, projection -> (S,); `reset_parameters` restores them."""
        super().__init__({name: row.numel() for name, row in values.items()})
        self._given = {name: row.tolist() for name, row in values.items()}
        for name, row in values.items():
            self.register_buffer(name, row.detach().to(device=device, dtype=dtype, copy=True))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Write the given values again, e.g. after a model came from the meta device."""
        for name, row in self._given.items():
            getattr(self, name).copy_(torch.tensor(row, device='cpu'))


class CoefficientGenerator(nn.Module):
    """Three-layer MLP from the embedding of a block to the coefficients of its projections.

    The paper only names the three layers. Ours: GELU between them, `embed_dim` and `hidden_dim` of
    64, one MLP for all projections of an attention. Its weights are parameters of this module
    instead of `nn.Linear` children, so that they are not taken for layers of the network by
    initialization, quantization, or a search for the classifier.
    """

    def __init__(
        self,
        num_atoms: Mapping[str, int],
        embed_dim: int = 64,
        hidden_dim: int = 64,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the MLP embed_dim -> hidden_dim -> hidden_dim -> sum of the numbers of atoms.

        Raises:
            ValueError: If a width is not positive.
        """
        super().__init__()
        if embed_dim < 1 or hidden_dim < 1:
            raise ValueError(
                'the widths of the coefficient MLP must be >= 1, got '
                f'embed_dim={embed_dim}, hidden_dim={hidden_dim}'
            )
        self.num_atoms = dict(num_atoms)
        self.embed_dim = embed_dim

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        num_outputs = sum(num_atoms.values())
        self.weight1, self.bias1 = parameter(hidden_dim, embed_dim), parameter(hidden_dim)
        self.weight2, self.bias2 = parameter(hidden_dim, hidden_dim), parameter(hidden_dim)
        self.weight3, self.bias3 = parameter(num_outputs, hidden_dim), parameter(num_outputs)
        for weight in (self.weight1, self.weight2, self.weight3):
            nn.init.kaiming_uniform_(weight, a=5**0.5)
        for bias in (self.bias1, self.bias2, self.bias3):
            nn.init.zeros_(bias)

    def forward(self, embedding: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map embeddings (..., embed_dim) to the coefficients, projection -> (..., S)."""
        coef = generate(
            embedding, self.weight1, self.bias1, self.weight2, self.bias2, self.weight3, self.bias3
        )
        rows, start = {}, 0
        for name, num in self.num_atoms.items():  # fx can trace slices, but not split
            rows[name] = coef[..., start : start + num]
            start += num
        return rows

    @torch.no_grad()
    def fit(self, embeddings: torch.Tensor, targets: torch.Tensor) -> None:
        """Draw the MLP again and solve its last layer, so that it starts at `targets` (ours).

        A freshly drawn MLP maps all embeddings to nearly the same, nearly zero coefficients: all
        layers would start alike, with vanishing weights. Instead the last layer is the least-norm
        solution of ``W_3 hidden = targets``, exact when hidden_dim >= L.

        Args:
            embeddings: (L, embed_dim).
            targets: (L, sum of S), columns in the order of `num_atoms`.
        """
        if self.weight1.is_meta:
            return
        hidden = embeddings.cpu().double()  # no QR in half precision, no least-norm lstsq on CUDA
        for weight in (self.weight1, self.weight2):
            drawn = torch.empty(weight.shape, dtype=torch.float64, device='cpu')
            weight.copy_(nn.init.orthogonal_(drawn, gain=2**0.5))
            hidden = F.gelu(hidden @ weight.cpu().double().T)
        solution = torch.linalg.lstsq(hidden, targets.cpu().double(), driver='gelsd').solution
        self.weight3.copy_(solution.T)
        for bias in (self.bias1, self.bias2, self.bias3):
            nn.init.zeros_(bias)


class MlpCoefficients(CoefficientSource):
    """Coefficients from a trainable embedding of the block, through the generator of the stack."""

    def __init__(
        self,
        generator: CoefficientGenerator,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Own the embedding (embed_dim,); `SharedBlocks` owns the generator."""
        super().__init__(generator.num_atoms)
        self._references = (generator,)  # in a tuple: not a child
        self.embedding = nn.Parameter(torch.empty(generator.embed_dim, device=device, dtype=dtype))
        self.reset_parameters()

    @property
    def generator(self) -> CoefficientGenerator:
        """The MLP that all blocks share."""
        return self._references[0]

    def reset_parameters(self) -> None:
        """Draw the embedding from a standard normal distribution (ours)."""
        nn.init.normal_(self.embedding)

    def forward(self) -> dict[str, torch.Tensor]:
        """Return the coefficients, projection -> (S,)."""
        return self.generator(self.embedding)


def orthogonal_coefficients(num_rows: int, num_atoms: int) -> torch.Tensor:
    """Draw rows of coefficients (rows, S): unit rows, orthonormal within each run of S rows.

    Float32 on the CPU, independent of the default device and dtype.
    """
    runs = -(-num_rows // num_atoms)
    empty = torch.empty(runs, num_atoms, num_atoms, dtype=torch.float32, device='cpu')
    return torch.cat([nn.init.orthogonal_(run) for run in empty])[:num_rows]


def draw_coefficients(dictionaries: Dictionaries, num_layers: int) -> dict[str, list[torch.Tensor]]:
    """Draw an initial C for every projection: L rows (S,), where S may differ between groups.

    Unit rows keep the variance of every W_l at that of the atoms; orthogonal rows keep the weights
    of neighbouring layers, and those of projections with a common dictionary, uncorrelated
    (orthogonal coefficients: Savarese & Maire, ICLR 2019, https://arxiv.org/abs/1902.09701; the
    choice is ours, the MASA paper does not name one).
    """
    coefs: dict[str, list[torch.Tensor]] = {}
    for names, layers, num_atoms in dictionaries.values():
        rows = orthogonal_coefficients(len(layers) * len(names), num_atoms)
        of_layer = rows.view(len(layers), len(names), num_atoms)
        for i, name in enumerate(names):
            drawn = coefs.setdefault(name, [rows.new_empty(0)] * num_layers)
            for layer, row in zip(layers, of_layer[:, i], strict=True):
                drawn[layer] = row
    return coefs


@torch.no_grad()
def assign_coefficients(
    sources: Sequence[CoefficientSource],
    coefs: Mapping[str, torch.Tensor | Sequence[torch.Tensor]],
) -> None:
    """Set the trainable coefficients of the blocks of a stack; frozen ones stay as given.

    Args:
        sources: The source of each block, in order.
        coefs: Projection -> C (L, S), or its rows.
    """
    mlp = [source for source in sources if isinstance(source, MlpCoefficients)]
    if mlp:
        targets = torch.cat([torch.stack([*coefs[name]]) for name in mlp[0].num_atoms], dim=1)
        for generated in mlp:
            generated.reset_parameters()
        embeddings = torch.stack([generated.embedding for generated in mlp])
        mlp[0].generator.fit(embeddings, targets.to(embeddings.device))
    for index, source in enumerate(sources):
        if isinstance(source, (DirectCoefficients, ChannelCoefficients)):
            for name in source.num_atoms:
                row = coefs[name][index]  # (S,)
                own = getattr(source, name)  # (S,) or (S, out)
                own.copy_(row if own.ndim == 1 else row[:, None].expand_as(own))
