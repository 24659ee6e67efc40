"""The pictures of a report (matplotlib), for papers and slides.

Signed values have a diverging colour map that is safe for colour-blind readers, centred at zero;
others a sequential one. Panels of a figure have one scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from masa_vit.inspection import Summary
from masa_vit.inspection.plots.matrices import SEQUENTIAL, draw_matrix, heatmaps, value_range
from masa_vit.inspection.report import Arrays, Comparison, Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEMS = (
    'coefficients', 'shares', 'atoms', 'similarity', 'ranks', 'spectra', 'heads', 'ablation',
    'activations', 'attention', 'comparison', 'history',
)  # fmt: skip
"""Beginnings of the names of all pictures."""

_STYLES = ('-', '--', '-.', ':')
_MARKERS = 'osD^v'


def draw_report(report: Report) -> Iterator[tuple[str, Figure]]:
    """Draw everything: names for files, and figures."""
    for index, (name, summary) in enumerate(report.models.items()):
        stem = f'_{index + 1}' if len(report.models) > 1 else ''
        for kind, figure in draw_model(summary, name):
            yield f'{kind}{stem}', figure
    for index, comparison in enumerate(report.comparisons):
        stem = f'_{index + 1}' if len(report.comparisons) > 1 else ''
        yield f'comparison{stem}', draw_comparison(comparison, report)


def draw_model(summary: Summary, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw one model: kinds of pictures, and figures."""
    every = summary.projections
    shared = {name: arrays for name, arrays in every.items() if 'shares' in arrays}
    if shared:
        for kind, label in (('coefficients', 'coefficient'), ('shares', 'share of the weight')):
            panels = {name: arrays[kind] for name, arrays in shared.items()}
            yield kind, heatmaps(panels, label, 'atom', title)
        yield 'atoms', _draw_atoms(summary, title)
    if summary.depth > 1:
        alike = {name: arrays['weight_similarity'] for name, arrays in every.items()}
        label = 'cosine of weights'
        yield 'similarity', heatmaps(alike, label, 'layer', title, square=True, limits=(-1, 1))
    yield 'ranks', _draw_ranks(summary, title)
    yield 'spectra', _draw_spectra(summary, title)
    if all('head_norms' in arrays for arrays in every.values()):
        norms = {name: arrays['head_norms'] for name, arrays in every.items()}
        yield 'heads', heatmaps(norms, 'Frobenius norm', 'head', title, signed=False)
    if scores := {n: a['ablation_kl'] for n, a in every.items() if 'ablation_kl' in a}:
        label = 'KL without the atom, nats'
        yield 'ablation', heatmaps(scores, label, 'atom', title, signed=False)
    if summary.images:
        yield 'activations', _draw_activations(summary, title)
        yield 'attention', _draw_attention(summary, title)


def _lines(ax: Any, rows: Mapping[str, torch.Tensor], xlabel: str, ylabel: str) -> None:
    """Draw a line for each projection, distinguished by marker and style, too."""
    from matplotlib.ticker import MaxNLocator

    for index, (name, values) in enumerate(rows.items()):
        style = dict(linestyle=_STYLES[index % 4], marker=_MARKERS[index % 5], markersize=4)
        ax.plot(range(len(values)), values.numpy(), label=name.upper(), **style)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)


def _draw_ranks(summary: Summary, title: str) -> Figure:
    from matplotlib.figure import Figure

    every = summary.projections
    atoms = {n: a['effective_atoms'] for n, a in every.items() if 'effective_atoms' in a}
    figure = Figure(figsize=(8.0 if atoms else 4.4, 3.2), layout='constrained')
    axes = figure.subplots(1, 2 if atoms else 1, squeeze=False)[0]
    if atoms:
        _lines(axes[0], atoms, 'layer', 'effective number of atoms')
        axes[0].set_ylim(0.9, None)
    ranks = {name: arrays['effective_rank'] for name, arrays in every.items()}
    _lines(axes[-1], ranks, 'layer', 'effective rank of the weight')
    controls = {float(arrays['gaussian_effective_rank']) for arrays in every.values()}
    for control in controls:
        axes[-1].axhline(control, color='0.3', linewidth=1)
        axes[-1].annotate(
            'Gaussian matrix', (0.02, control), xycoords=('axes fraction', 'data'),
            va='bottom', fontsize='small', color='0.3',
        )  # fmt: skip
    axes[-1].set_ylim(0, 1.12 * max(controls))
    figure.legend(*axes[-1].get_legend_handles_labels(), loc='outside right upper')
    figure.suptitle(title)
    return figure


def _draw_spectra(summary: Summary, title: str) -> Figure:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    every = summary.projections
    figure = Figure(figsize=(1.6 + 2.2 * len(every), 3.0), layout='constrained')
    axes = figure.subplots(1, len(every), sharey=True, squeeze=False)[0]
    colours = colormaps[SEQUENTIAL]
    for ax, (name, arrays) in zip(axes, every.items(), strict=True):
        places = summary.indices[name]
        for layer, values in enumerate(arrays['singular_values'].tolist()):
            ax.plot(places, values, color=colours(layer / max(1, summary.depth - 1)), linewidth=1)
        control = arrays['gaussian_singular_values'].tolist()
        ax.plot(places, control, 'k--', linewidth=1.2, label='Gaussian')
        ax.set(title=name.upper(), xlabel='index', ylim=(0, None))
        ax.grid(alpha=0.3)
    axes[0].set_ylabel('singular value / norm')
    axes[0].legend(fontsize='small')
    layers = ScalarMappable(Normalize(0, summary.depth - 1), colours)
    figure.colorbar(layers, ax=axes, label='layer')
    figure.suptitle(title)
    return figure


def _draw_atoms(summary: Summary, title: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    count = len(summary.dictionaries)
    figure = Figure(figsize=(1.4 + 1.9 * count, 4.2), layout='constrained')
    rows = figure.subplots(2, count, sharey='row', squeeze=False)
    for index, (name, arrays) in enumerate(summary.dictionaries.items()):
        use = arrays['atom_use'].tolist()
        rows[0][index].bar(range(len(use)), use, color='0.4')
        rows[0][index].axhline(1 / len(use), color='0.6', linewidth=1, linestyle='--')
        rows[0][index].set(title=name.upper(), xlabel='atom')
        rows[0][index].xaxis.set_major_locator(MaxNLocator(integer=True))
        image = draw_matrix(
            rows[1][index], arrays['atom_overlap'], (0, 1), signed=False, square=True
        )
        rows[1][index].set_xlabel('atom')
    rows[0][0].set_ylabel('share of the use')
    rows[1][0].set_ylabel('atom')
    figure.colorbar(image, ax=rows[1], label='|cosine|')
    figure.suptitle(title)
    return figure


def _draw_activations(summary: Summary, title: str) -> Figure:
    from matplotlib.figure import Figure

    with_cka = 'cka' in summary.images
    figure = Figure(figsize=(8.0 if with_cka else 4.4, 3.4), layout='constrained')
    axes = figure.subplots(1, 2 if with_cka else 1, squeeze=False)[0]
    distance = summary.images['attention_distance']
    for head in range(distance.shape[1]):
        axes[0].plot(range(len(distance)), distance[:, head].numpy(), 'o', color='C0', alpha=0.6)
    axes[0].plot(range(len(distance)), distance.mean(1).numpy(), 'k-', label='mean over heads')
    top = 1.08 * float(distance.max())
    axes[0].set(xlabel='layer', ylabel='attention distance, pixels', ylim=(0, top))
    axes[0].legend(fontsize='small')
    if with_cka:
        image = draw_matrix(axes[1], summary.images['cka'], (0, 1), signed=False, square=True)
        axes[1].set(xlabel='layer', ylabel='layer')
        figure.colorbar(image, ax=axes[1], label='linear CKA')
    figure.suptitle(title)
    return figure


def _draw_attention(summary: Summary, title: str) -> Figure:
    """The attention of the first image: layers down, heads across, each map with its own scale."""
    from matplotlib.figure import Figure

    maps = summary.images['class_attention'][0]  # (L, H, rows, columns)
    depth, heads, rows, columns = maps.shape
    maps = maps / maps.amax(dim=(2, 3), keepdim=True).clamp(min=1e-30)
    picture = torch.full((depth, rows + 1, heads, columns + 1), math.nan)
    picture[:, :rows, :, :columns] = maps.permute(0, 2, 1, 3)
    figure = Figure(figsize=(1.6 + 0.55 * heads, 0.9 + 0.55 * depth), layout='constrained')
    ax = figure.subplots()
    flat = picture.reshape(depth * (rows + 1), heads * (columns + 1))
    image = draw_matrix(ax, flat, (0, 1), signed=False, square=True)
    ax.set_xticks(
        [(head + 0.5) * (columns + 1) - 1 for head in range(heads)],
        [str(head) for head in range(heads)],
    )
    ax.set_yticks(
        [(layer + 0.5) * (rows + 1) - 1 for layer in range(depth)],
        [str(layer) for layer in range(depth)],
    )
    ax.set(xlabel='head', ylabel='layer')
    figure.colorbar(image, ax=ax, label='attention / its largest')
    figure.suptitle(f'{title}, first image')
    return figure


def _label_partners(ax: Any, arrays: Arrays, second: Arrays) -> None:
    """Say below which atoms of the second model stand here, how alike they are, and which are left."""
    partners, cosines = arrays['matched_atom'].tolist(), arrays['matched_cosine'].tolist()
    texts = [
        '-' if partner < 0 else f'{partner}\n({cosine:.2f})'
        for partner, cosine in zip(partners, cosines, strict=True)
    ]
    ax.set_xticks(range(len(texts)), texts, fontsize='small' if len(texts) <= 4 else 5)
    left = sorted({*range(second['coefficients'].shape[1])} - {*partners})
    missing = f'\nnot matched: {", ".join(map(str, left))}' if left else ''
    ax.set_xlabel(f'its atom (cosine){missing}', fontsize='small')


def draw_comparison(comparison: Comparison, report: Report) -> Figure:
    """Draw what atoms add to layers in two models, matched atoms in one place; cosines of layers."""
    from matplotlib.figure import Figure

    first, second, projections = comparison
    matched = {n: a for n, a in projections.items() if 'matched_contributions' in a}
    cosines = {n: a['other_cosine'] for n, a in projections.items() if 'other_cosine' in a}
    figure = Figure(
        figsize=(1.6 + 2.0 * max(2, len(matched)), 7.5 if matched else 3), layout='constrained'
    )
    parts = (
        figure.subfigures(2, 1, height_ratios=[5, 2.4], squeeze=False)[:, 0]
        if matched
        else [figure]
    )
    if matched:
        rows = parts[0].subplots(2, len(matched), squeeze=False)
        pairs = [
            (report.models[first].projections[n]['contributions'], a['matched_contributions'])
            for n, a in matched.items()
        ]
        scale = value_range([matrix for pair in pairs for matrix in pair], signed=False)
        for column, (name, pair) in enumerate(zip(matched, pairs, strict=True)):
            for row, matrix in enumerate(pair):
                image = draw_matrix(rows[row][column], matrix, scale, signed=False)
            rows[0][column].set_title(name.upper())
            rows[0][column].set_xlabel('atom')
            _label_partners(rows[1][column], matched[name], report.models[second].projections[name])
        for row, name in enumerate((first, second)):
            rows[row][0].set_ylabel(f'layer of {name}', fontsize='small')
        parts[0].colorbar(image, ax=rows, label='norm of what the atom adds')
    ax = parts[-1].subplots()
    _lines(ax, cosines, 'layer', 'cosine of the weights')
    ax.set_ylim(-1.05, 1.05)
    if cosines:
        ax.legend(fontsize='small', ncols=4)
    figure.suptitle(f'{first} beside {second}')
    return figure
