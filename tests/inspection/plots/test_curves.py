"""Curves of trainings."""

from masa_vit.inspection.plots import plot_curves


def test_curves_show_what_the_histories_hold():
    histories = {
        'a': [{'epoch': 1, 'loss': 2.0, 'metrics': {'top1': 30.0}}, {'epoch': 2, 'loss': 1.0}],
        'b': [{'epoch': 1, 'loss': 3.0, 'metrics': {'top1': 20.0}}],
    }
    loss, top1 = plot_curves(histories, 'top1').axes
    assert [list(line.get_ydata()) for line in loss.get_lines()] == [[2.0, 1.0], [3.0]]
    assert [list(line.get_ydata()) for line in top1.get_lines()] == [[30.0], [20.0]]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ['a', 'b']
