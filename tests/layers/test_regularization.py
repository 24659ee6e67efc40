from __future__ import annotations

import pytest
import torch
from torch import nn

from masa_vit.layers import share_linears
from masa_vit.layers.regularization import atom_correlation, coefficient_l1


@pytest.fixture(params=['direct', 'channel', 'mlp'])
def blocks(request):
    blocks = [nn.ModuleDict({'qk': nn.Linear(4, 8)}) for _ in range(3)]
    return share_linears(blocks, {'qk': 'qk'}, {'q': 'q', 'k': 'k'}, 2, request.param)


def test_the_penalty_on_coefficients_is_their_mean(blocks):
    rows = torch.cat([r.flatten() for b in blocks for r in b.coef.values().values()])
    torch.testing.assert_close(coefficient_l1(blocks), rows.abs().mean())
    coefficient_l1(blocks).backward()
    assert all(p.grad is not None for n, p in blocks.named_parameters() if 'coef' in n)


def test_orthogonal_atoms_have_no_penalty(blocks):
    flat = torch.stack([b.atoms.detach().flatten(1) for b in blocks.banks.values()])  # (2, S, 16)
    cosines = nn.functional.cosine_similarity(flat[:, 0], flat[:, 1], dim=1)
    torch.testing.assert_close(atom_correlation(blocks), cosines.square().mean())
    with torch.no_grad():
        for bank in blocks.banks.values():
            bank.atoms.zero_()
            bank.atoms[0, 0] = bank.atoms[1, 1] = 1
    assert atom_correlation(blocks) == 0
    atom_correlation(blocks).backward()


def test_models_without_atoms_are_refused():
    with pytest.raises(ValueError, match='no coefficients to penalize'):
        coefficient_l1(nn.Linear(2, 2))
    with pytest.raises(ValueError, match='no dictionary with two atoms'):
        atom_correlation(nn.Linear(2, 2))
