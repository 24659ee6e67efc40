"""Spectra: known answers, and agreement with torch's SVD."""

import pytest
import torch

from masa_vit import inspection


@pytest.mark.parametrize('shape', [(3, 8, 5), (2, 5, 8)])
def test_singular_values_are_those_of_an_svd(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(
        inspection.singular_values(matrices), torch.linalg.svdvals(matrices), rtol=1e-7, atol=1e-7
    )


def test_ranks_of_known_matrices():
    matrices = torch.stack(
        [torch.eye(4), torch.diag(torch.tensor([1.0, 0, 0, 0])), torch.zeros(4, 4)]
    )
    values = inspection.singular_values(matrices)
    assert inspection.effective_rank(values).tolist() == pytest.approx([4, 1, 0])
    assert inspection.stable_rank(values).tolist() == pytest.approx([4, 1, 0])


def test_the_gaussian_control_has_norm_one_and_the_known_effective_rank():
    values = inspection.gaussian_values((64, 64))
    assert values.square().sum().item() == pytest.approx(1)
    # exp(entropy) of the quarter circle law: 0.8408... of the size
    sizes = torch.linspace(0, 2, 100001, dtype=torch.float64)[1:-1]
    density = (4 - sizes**2).sqrt()
    density /= density.sum()
    mean = (density * sizes).sum()
    law = (-(density * sizes / mean * (sizes / mean).log()).sum()).exp()
    assert inspection.effective_rank(values).item() / 64 == pytest.approx(law.item(), rel=0.02)
    assert torch.equal(values, inspection.gaussian_values((64, 64)))


def test_head_norms_take_rows_of_inputs_and_columns_of_outputs():
    weight = torch.zeros(1, 4, 4)
    weight[0, 2:, 0] = 3.0
    assert inspection.head_norms(weight, 2).tolist() == [pytest.approx([0, 18**0.5])]
    assert inspection.head_norms(weight, 2, output=True).tolist() == [pytest.approx([18**0.5, 0])]


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match='num_heads=3'):
        inspection.head_norms(torch.zeros(1, 4, 4), 3)
