"""Pictures hold the numbers of a report, on one scale."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import masa_vit
from masa_vit.inspection import (
    AtomRecord,
    compare,
    history_quantities,
    projection_weights,
    summarize,
)
from masa_vit.inspection.charts import Chart, Panel
from masa_vit.inspection.page import write_page
from masa_vit.inspection.plots import (
    draw_charts,
    draw_history,
    plot_coefficients,
    plot_curves,
    report_pictures,
    write_animation,
)
from masa_vit.inspection.report import Comparison, Report

EPOCHS = [0, 5, 10]


def images(figure):
    return [image for ax in figure.axes for image in ax.images]


@pytest.fixture(scope='module')
def figures(report):
    return dict(report_pictures(report))


def test_names_of_all_pictures(figures):
    kinds = ['coefficients', 'shares', 'similarity', 'ranks', 'spectra', 'heads', 'atoms']
    assert [*figures] == [*(f'{kind}_{i}' for i in (1, 2) for kind in kinds), 'comparison']


def test_a_dense_model_has_the_pictures_of_its_weights(noisy):
    summary = summarize(projection_weights(masa_vit.fold(noisy())))
    names = [name for name, _ in report_pictures(Report({'dense': summary}))]
    assert names == ['similarity', 'ranks', 'spectra', 'heads']


def test_pictures_show_the_numbers(figures, report):
    arrays = report.models['three'].projections
    for image, name in zip(images(figures['shares_2']), arrays, strict=True):
        np.testing.assert_array_equal(image.get_array(), arrays[name]['shares'].numpy())
    lines = [line.get_ydata() for line in figures['ranks_2'].axes[1].get_lines()]
    for line, name in zip(lines, arrays, strict=False):
        assert line.tolist() == arrays[name]['effective_rank'].tolist()
    use = report.models['two'].dictionaries['q']['atom_use']
    bars = figures['atoms_1'].axes[0].patches
    assert [bar.get_height() for bar in bars] == use.tolist()


@pytest.mark.parametrize(
    ('kind', 'start'), [('png', b'\x89PNG'), ('pdf', b'%PDF'), ('svg', b'<?xml')]
)
def test_pictures_can_be_written_in_every_format(figures, tmp_path, kind, start):
    for name in ('coefficients_1', 'comparison'):
        figures[name].savefig(tmp_path / f'{name}.{kind}', dpi=50)
        assert (tmp_path / f'{name}.{kind}').read_bytes().startswith(start)


@pytest.mark.parametrize(
    ('quantity', 'matrix', 'limits'),
    [('coefficients', torch.tensor([[1.0, -3.0]]), (-3, 3)),  # signed
     ('head_norms', torch.tensor([[1.0, 5.0]]), (1, 5)),
     ('coefficients', torch.zeros(3, 2), (-1, 1)),
     ('coefficients', torch.full((1, 1), float('nan')), (-1, 1))],
)  # fmt: skip
def test_panels_have_one_scale(quantity, matrix, limits):
    panels = [Panel(quantity, matrix), Panel(quantity, matrix[:, :1])]
    assert {image.get_clim() for image in images(draw_charts([Chart('any', panels)]))} == {limits}


def test_any_name_and_zero_weights_can_be_drawn(noisy, tmp_path):
    model = noisy()
    with torch.no_grad():
        for bank in model.banks.values():
            bank.atoms.zero_()
    weights = projection_weights(model)
    report = Report({r'$\a': summarize(weights), '$_$': summarize(weights)})
    report.comparisons = [Comparison(r'$\a', '$_$', compare(weights, weights))]
    for _, figure in report_pictures(report):
        figure.draw_without_rendering()
    write_page(report, tmp_path / 'report.html', 'zero')


def test_coefficients_can_be_drawn_on_a_given_scale():
    coefs = {'q': torch.tensor([[1.0, -3.0]]), 'k': torch.ones(1, 2)}
    assert {image.get_clim() for image in images(plot_coefficients(coefs))} == {(-3.0, 3.0)}
    assert {image.get_clim() for image in images(plot_coefficients(coefs, limit=5))} == {(-5, 5)}
    with pytest.raises(ValueError, match='nothing is shared'):
        plot_coefficients({})


def test_curves_show_what_the_histories_hold():
    histories = {
        'a': [{'epoch': 1, 'loss': 2.0, 'metrics': {'top1': 30.0}}, {'epoch': 2, 'loss': 1.0}],
        'b': [{'epoch': 1, 'loss': 3.0, 'metrics': {'top1': 20.0}}],
    }
    loss, top1 = plot_curves(histories, 'top1').axes
    assert [list(line.get_ydata()) for line in loss.get_lines()] == [[2.0, 1.0], [3.0]]
    assert [list(line.get_ydata()) for line in top1.get_lines()] == [[30.0], [20.0]]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ['a', 'b']


def history_of(**shapes):
    generator = torch.Generator().manual_seed(0)
    records = []
    for epoch in EPOCHS:
        coef = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        gram = {name: torch.eye(shape[1]).double() for name, shape in shapes.items()}
        records.append(AtomRecord(epoch, coef, gram, {name: name for name in coef}))
    return history_quantities(records)


@pytest.fixture
def history():
    return history_of(q=(4, 3), k=(4, 2))


def test_history_shows_all_coefficients_on_one_scale_and_the_effective_atoms(history):
    figure = draw_history(history, EPOCHS)
    images = [ax.images[0] for ax in figure.axes if ax.images]
    limit = max(float(each['coefficients'].abs().max()) for each in history.values())
    assert {image.get_clim() for image in images} == {(-limit, limit)}
    for image, each in zip(images, history.values(), strict=True):
        shown = np.asarray(image.get_array())
        assert shown.shape == (each['coefficients'][0].numel(), 3)
        for layer, atom, moment in ((0, 0, 0), (3, 1, 2), (2, 0, 1)):
            row = layer * each['coefficients'].shape[2] + atom
            assert shown[row, moment] == each['coefficients'][moment, layer, atom]
    curves = [ax.lines[0].get_ydata() for ax in figure.axes if ax.lines and not ax.images]
    for curve, each in zip(curves, history.values(), strict=True):
        assert curve.tolist() == each['effective_atoms'].mean(1).tolist()


def test_history_marks_layers_and_epochs(history):
    figure = draw_history(history, EPOCHS)
    figure.draw_without_rendering()
    upper, lower = figure.axes[0], figure.axes[2]
    assert upper.get_yticks().tolist() == [1, 4, 7, 10]
    assert [label.get_text() for label in upper.get_yticklabels()] == ['0', '1', '2', '3']
    shown = {t.get_position()[0]: t.get_text() for t in lower.get_xticklabels()}
    assert [shown[moment] for moment in range(3)] == ['0', '5', '10']
    assert {ax.get_title() for ax in figure.axes} >= {'Q', 'K'}


def test_a_single_epoch_of_a_deep_model_can_be_drawn():
    quantities = history_of(q=(48, 8))['q']
    figure = draw_history({'q': {key: value[:1] for key, value in quantities.items()}}, [3])
    figure.draw_without_rendering()
    assert len(figure.axes[0].get_yticks()) == 12


def pictures_of(path):
    """The frames, without their titles."""
    with Image.open(path) as gif:
        frames = [np.asarray(frame.convert('RGB')) for frame in ImageSequence.Iterator(gif)]
    return [frame[len(frame) // 5 :].astype(int) for frame in frames]


def differing(picture, other):
    """The share of the pixels with other colours, not only rounded to another palette."""
    return (abs(picture - other).max(axis=-1) > 60).mean()


def test_animation_has_a_frame_per_epoch_that_differ(history, tmp_path):
    path = write_animation(history, EPOCHS, tmp_path / 'new' / 'a.gif', fps=10)
    with Image.open(path) as gif:
        assert gif.n_frames == 3
        assert gif.info['duration'] == 100
        assert gif.info['loop'] == 0
    pictures = pictures_of(path)
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert differing(pictures[one], pictures[other]) > 0.05


def test_all_frames_have_one_scale(tmp_path):
    pattern = torch.tensor([[1.0, -1], [0, 1]])
    coef = torch.stack(
        [pattern, 2 * pattern, 3 * pattern]
    )  # one picture, if each had its own scale
    path = write_animation({'q': {'coefficients': coef}}, EPOCHS, tmp_path / 'a.gif')
    pictures = pictures_of(path)
    assert differing(pictures[0], pictures[2]) > 0.05


@pytest.mark.parametrize('draw', [draw_history, lambda h, e: write_animation(h, e, 'x.gif')])
def test_what_cannot_be_drawn(history, draw):
    with pytest.raises(ValueError, match='nothing is shared'):
        draw({}, EPOCHS)
    with pytest.raises(ValueError, match="'q' has 3 moments, `epochs` 2"):
        draw(history, EPOCHS[:2])


def test_only_gifs(history, tmp_path):
    with pytest.raises(ValueError, match=r'ends in \.gif'):
        write_animation(history, EPOCHS, tmp_path / 'a.mp4')
