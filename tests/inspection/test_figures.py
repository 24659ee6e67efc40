"""Pictures of a report hold its numbers."""

import pytest

import masa_vit
from masa_vit.inspection import projection_weights, summarize
from masa_vit.inspection.figures import draw_model, draw_report


def images(figure):
    return [image for ax in figure.axes for image in ax.images]


@pytest.fixture(scope='module')
def figures(report):
    return dict(draw_report(report))


def test_names_of_all_pictures(figures):
    kinds = ['coefficients', 'shares', 'atoms', 'similarity', 'ranks', 'spectra', 'heads']
    assert [*figures] == [*(f'{kind}_{i}' for i in (1, 2) for kind in kinds), 'comparison']


def test_a_dense_model_has_the_pictures_of_its_weights(noisy):
    summary = summarize(projection_weights(masa_vit.fold(noisy())))
    names = [name for name, _ in draw_model(summary, 'dense')]
    assert names == ['similarity', 'ranks', 'spectra', 'heads']


@pytest.mark.parametrize(
    ('kind', 'start'), [('png', b'\x89PNG'), ('pdf', b'%PDF'), ('svg', b'<?xml')]
)
def test_pictures_can_be_written_in_every_format(figures, tmp_path, kind, start):
    for name in ('coefficients_1', 'comparison'):
        figures[name].savefig(tmp_path / f'{name}.{kind}', dpi=50)
        assert (tmp_path / f'{name}.{kind}').read_bytes().startswith(start)
