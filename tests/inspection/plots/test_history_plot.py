"""Pictures of a history: what they show, and that the animation moves."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from masa_vit.inspection import AtomRecord, history_quantities
from masa_vit.inspection.plots import draw_history, write_animation

EPOCHS = [0, 5, 10]


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
