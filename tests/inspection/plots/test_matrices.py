"""Heatmaps hold the numbers, on one scale."""

import numpy as np
import pytest
import torch

from masa_vit.inspection.plots import heatmaps, plot_coefficients


def images(figure):
    return [image for ax in figure.axes for image in ax.images]


def test_panels_have_one_scale_centred_at_zero():
    panels = {name: torch.randn(4, 2) for name in 'qkvo'}
    limit = max(float(matrix.abs().max()) for matrix in panels.values())
    shown = images(heatmaps(panels, 'share', 'atom', 'title'))
    assert len(shown) == 4
    for image, matrix in zip(shown, panels.values(), strict=True):
        np.testing.assert_array_equal(image.get_array(), matrix.numpy())
        assert image.get_clim() == pytest.approx((-limit, limit))
        assert image.get_cmap().name == 'PuOr'


def test_values_without_sign_go_from_the_least_to_the_greatest():
    (image,) = images(heatmaps({'q': torch.tensor([[1.0, 5.0]])}, 'norm', 'head', signed=False))
    assert image.get_clim() == (1, 5)


@pytest.mark.parametrize('matrix', [torch.zeros(3, 2), torch.full((1, 1), float('nan'))])
def test_nothing_to_tell_apart_can_be_drawn(matrix):
    assert images(heatmaps({'q': matrix}, 'share', 'atom'))[0].get_clim() == (-1, 1)


def test_coefficients_can_be_drawn_on_a_given_scale():
    coefs = {'q': torch.tensor([[1.0, -3.0]]), 'k': torch.ones(1, 2)}
    assert {image.get_clim() for image in images(plot_coefficients(coefs))} == {(-3.0, 3.0)}
    assert {image.get_clim() for image in images(plot_coefficients(coefs, limit=5))} == {(-5, 5)}
    with pytest.raises(ValueError, match='nothing is shared'):
        plot_coefficients({})
