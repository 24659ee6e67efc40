"""Pictures of a report hold its numbers."""

import numpy as np
import pytest
import torch

import masa_vit
from masa_vit.analysis import projection_weights, summarize
from masa_vit.inspection.figures import draw_model, draw_report, heatmaps


def images(figure):
    return [image for ax in figure.axes for image in ax.images]


def test_names_of_all_pictures(report):
    names = [name for name, _ in draw_report(report)]
    kinds = ['coefficients', 'shares', 'atoms', 'similarity', 'ranks', 'spectra', 'heads']
    assert names == [*(f'{kind}_{i}' for i in (1, 2) for kind in kinds), 'comparison']


def test_a_dense_model_has_the_pictures_of_its_weights(noisy):
    summary = summarize(projection_weights(masa_vit.fold(noisy())))
    names = [name for name, _ in draw_model(summary, 'dense')]
    assert names == ['similarity', 'ranks', 'spectra', 'heads']


def test_heatmaps_have_one_scale_centred_at_zero(report):
    arrays = report.models['two'].projections
    panels = {name: of_name['shares'] for name, of_name in arrays.items()}
    limit = max(float(matrix.abs().max()) for matrix in panels.values())
    shown = images(heatmaps(panels, 'title', 'atom', 'share'))
    assert len(shown) == 4
    for image, matrix in zip(shown, panels.values(), strict=True):
        np.testing.assert_array_equal(image.get_array(), matrix.numpy())
        assert image.get_clim() == pytest.approx((-limit, limit))
        assert image.get_cmap().name == 'PuOr'


def test_a_matrix_of_zeros_can_be_drawn():
    figure = heatmaps({'q': torch.zeros(3, 2)}, 'title', 'atom', 'share')
    assert images(figure)[0].get_clim() == (-1, 1)


@pytest.mark.parametrize(
    ('kind', 'start'), [('png', b'\x89PNG'), ('pdf', b'%PDF'), ('svg', b'<?xml')]
)
def test_pictures_can_be_written_in_every_format(report, tmp_path, kind, start):
    figures = dict(draw_report(report))
    for name in ('coefficients_1', 'comparison'):
        figures[name].savefig(tmp_path / f'{name}.{kind}', dpi=50)
        assert (tmp_path / f'{name}.{kind}').read_bytes().startswith(start)
