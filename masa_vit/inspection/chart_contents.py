"""The charts of a report: the panels of each, and the selection of the page that shows them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch

from masa_vit.inspection.charts import Chart, Panel
from masa_vit.inspection.report import Arrays, Comparison, History, Report
from masa_vit.inspection.summary import Summary

STEMS = (
    'coefficients', 'shares', 'atoms', 'similarity', 'ranks', 'spectra', 'heads', 'ablation',
    'activations', 'attention', 'comparison', 'history',
)  # fmt: skip
"""Beginnings of the names of all picture files."""


def report_charts(report: Report) -> Iterator[Chart]:
    """Yield all charts of a report."""
    for name, summary in report.models.items():
        yield from model_charts(name, summary)
    for comparison in report.comparisons:
        yield from comparison_charts(comparison, report)
    if report.history is not None:
        yield from history_charts(report.history)


def model_charts(model: str, summary: Summary) -> Iterator[Chart]:
    """Yield the charts of one model."""
    choice = {'model': model}
    every = summary.projections
    for quantity, file in (
        ('coefficients', 'coefficients'), ('contributions', ''), ('shares', 'shares'),
        ('canonical_coefficients', ''),
    ):  # fmt: skip
        if panels := _per_projection(quantity, every):
            shown = choice | {'show': quantity.replace('_', ' ')}
            yield Chart('coefficients', panels, shown, file=file)
    if summary.depth > 1:
        for name, arrays in every.items():
            yield from _layer_charts(arrays, choice | {'projection': _upper(name)}, name)
    yield Chart('effective', [*_effective_panels(every)], choice, file='ranks')
    for name in every:
        yield _spectra_chart(summary, name, choice | {'projection': _upper(name)})
    if panels := _per_projection('head_norms', every):
        yield Chart('heads', panels, choice, file='heads')
    drawn = set()
    for name, key in summary.dictionary_of.items():
        chosen = choice | {'projection': _upper(name)}
        panels = _atom_panels(summary.dictionaries[key], every[name], key)
        yield Chart('atoms', panels, chosen, file='' if key in drawn else 'atoms')
        drawn.add(key)
    if summary.images:
        yield from _attention_charts(summary.images['class_attention'], choice)
        yield Chart(
            'activations', [*_activation_panels(summary.images)], choice, file='activations'
        )
    for measure in ('kl', 'logits', 'accuracy'):
        quantity = f'ablation_{measure}'
        panels = _per_projection(quantity, every)
        panels += _per_projection(f'{quantity}_everywhere', every, kind='bars')
        if panels:
            shown = choice | {'measure': panels[0].label}
            file = 'ablation' if measure == 'kl' else ''
            yield Chart('ablation', panels, shown, columns=len(panels) // 2, file=file)


def _upper(projection: str) -> str:
    return projection.upper() if len(projection) == 1 else projection


def _per_projection(
    quantity: str, projections: Mapping[str, Arrays], kind: str = 'heatmap'
) -> list[Panel]:
    return [
        Panel(quantity, arrays[quantity] if kind == 'heatmap' else arrays[quantity][None],
              f'{_upper(name)}, all layers' if kind == 'bars' else _upper(name), kind)
        for name, arrays in projections.items()
        if quantity in arrays and arrays[quantity].numel()  # no principal atoms of zero weights
    ]  # fmt: skip


def _layer_charts(arrays: Arrays, choice: Mapping[str, str], name: str) -> Iterator[Chart]:
    """The similarities of layers in two orders: clustered, with the tree, and by depth."""
    from scipy.cluster.hierarchy import dendrogram

    tree = dendrogram(arrays['linkage'].numpy(), no_plot=True)
    depth = len(arrays['weight_similarity'])
    for order, leaves in (('similarity', tree['leaves']), ('depth', [*range(depth)])):
        labels = [str(layer) for layer in leaves]
        panels = [
            Panel(quantity, arrays[quantity][leaves][:, leaves], f'{_upper(name)}, {title}',
                  row_labels=labels, column_labels=labels, limits=(-1, 1))
            for quantity, title in
            (('weight_similarity', 'weights'), ('coefficient_similarity', 'rows of C'))
            if quantity in arrays
        ]  # fmt: skip
        if order == 'similarity':
            places = torch.tensor(tree['icoord']) / 10 - 0.5  # scipy's leaves are at 5, 15, ...
            distances = torch.tensor(tree['dcoord'])
            branches = Panel('linkage', places, 'tree', 'tree', places=distances, x='1 - cosine')
            panels = [branches, *panels]
        file = 'similarity' if order == 'depth' else ''
        yield Chart('layers', panels, {**choice, 'order': f'by {order}'}, file=file)


def _effective_panels(projections: Mapping[str, Arrays]) -> Iterator[Panel]:
    sharing = {name: arrays for name, arrays in projections.items() if 'effective_atoms' in arrays}
    if sharing:
        atoms = torch.stack([arrays['effective_atoms'] for arrays in sharing.values()])
        stored = sorted({arrays['coefficients'].shape[1] for arrays in sharing.values()})
        references = {f'{n} atoms': torch.full(atoms.shape[1:], float(n)) for n in stored}
        yield Panel(
            'effective_atoms', atoms, 'effective atoms of a layer', 'lines',
            [_upper(name) for name in sharing], references=references,
        )  # fmt: skip
    ranks = torch.stack([arrays['effective_rank'] for arrays in projections.values()])
    controls = sorted({float(a['gaussian_effective_rank']) for a in projections.values()})
    references = {f'Gaussian ({c:.0f})': torch.full(ranks.shape[1:], c) for c in controls}
    yield Panel(
        'effective_rank', ranks, 'effective rank of the weight', 'lines',
        [_upper(name) for name in projections], references=references,
    )  # fmt: skip


def _spectra_chart(summary: Summary, name: str, choice: Mapping[str, str]) -> Chart:
    arrays, places = summary.projections[name], summary.indices[name]
    gaussian = {'Gaussian': arrays['gaussian_singular_values']}
    spectra = [('singular_values', arrays['singular_values'], 'layer')]
    if name in summary.dictionary_of:
        values = summary.dictionaries[summary.dictionary_of[name]]['atom_singular_values']
        spectra.append(('atom_singular_values', values, 'atom'))
    panels = [
        Panel(
            quantity, values, f'{_upper(name)}, {of}s', 'lines',
            [f'{of} {index}' for index in range(len(values))], places,
            gaussian, x='index of the singular value',
        )
        for quantity, values, of in spectra
    ]  # fmt: skip
    return Chart('spectra', panels, choice, file='spectra')


def _atom_panels(atoms: Arrays, layers: Arrays, name: str) -> list[Panel]:
    count = len(atoms['atom_use'])
    rank = layers['gaussian_effective_rank'].float().expand(count)
    return [
        Panel('atom_use', atoms['atom_use'][None], f'{_upper(name)}, use', 'bars',
              references={'equal': torch.full((count,), 1 / count)}),
        Panel('atom_effective_rank', atoms['atom_effective_rank'][None], 'effective rank', 'bars',
              references={'Gaussian': rank}),
        Panel('atom_overlap', atoms['atom_overlap'], 'overlap', limits=(0, 1)),
    ]  # fmt: skip


def _attention_charts(maps: torch.Tensor, choice: Mapping[str, str]) -> Iterator[Chart]:
    """Maps (images, L, H, rows, columns): a panel a head, and all of the first image as a picture."""
    for image, of_image in enumerate(maps):
        for layer, heads in enumerate(of_image):
            panels = [
                Panel('class_attention', attention, f'head {head}', limits=(0, float(heads.max())))
                for head, attention in enumerate(heads)
            ]
            chosen = {**choice, 'image': str(image), 'layer': str(layer)}
            yield Chart('attention', panels, chosen, columns=min(8, len(panels)))
    depth, heads, rows, columns = maps.shape[1:]
    relative = maps[0] / maps[0].amax(dim=(2, 3), keepdim=True).clamp(min=1e-30)
    mosaic = torch.full((depth, rows + 1, heads, columns + 1), math.nan)
    mosaic[:, :rows, :, :columns] = relative.permute(0, 2, 1, 3)
    panel = Panel(
        'class_attention', mosaic.reshape(depth * (rows + 1), heads * (columns + 1)),
        'first image, each map relative to its largest value', limits=(0, 1), x='head', y='layer',
        row_labels=_in_the_middle(depth, rows + 1), column_labels=_in_the_middle(heads, columns + 1),
    )  # fmt: skip
    yield Chart('attention', [panel], choice, file='attention', in_page=False)


def _in_the_middle(count: int, size: int) -> list[str]:
    """Labels of `count` groups of `size` rows: one in the middle of each, '' elsewhere."""
    return [str(i // size) if i % size == size // 2 else '' for i in range(count * size)]


def _activation_panels(images: Arrays) -> Iterator[Panel]:
    distances = images['attention_distance']  # (L, H)
    names = [f'head {head}' for head in range(distances.shape[1])]
    mean = {'mean over heads': distances.mean(1)}
    yield Panel(
        'attention_distance', distances.T, 'attention distance', 'points', names,
        references=mean, x='layer',
    )  # fmt: skip
    if 'cka' in images:
        yield Panel('cka', images['cka'], 'CKA between outputs of blocks', limits=(0, 1))


def comparison_charts(comparison: Comparison, report: Report) -> Iterator[Chart]:
    """Yield the contributions of matched atoms, then cosines of layers and angles of subspaces."""
    first, second, projections = comparison
    pair = {'pair': f'{first} vs {second}'}
    for name, arrays in projections.items():
        if 'matched_atom' in arrays:
            stored = report.models[second].projections[name]['coefficients'].shape[1]
            partners = arrays['matched_atom'].tolist()
            left = sorted({*range(stored)} - {*partners})
            labels = [
                '-' if partner < 0 else f'{partner} ({cosine:.2f})'
                for partner, cosine in zip(partners, arrays['matched_cosine'].tolist(), strict=True)
            ]
            title = 'matched atom (cosine)'
            title += f'; not matched: {", ".join(map(str, left))}' if left else ''
            contributions = report.models[first].projections[name]['contributions']
            panels = [
                Panel('contributions', contributions, f'{_upper(name)}, {first}'),
                Panel('matched_contributions', arrays['matched_contributions'],
                      f'{_upper(name)}, {second}', column_labels=labels, x=title),
            ]  # fmt: skip
            yield Chart('matched', panels, pair | {'projection': _upper(name)}, file='comparison')
    panels = [
        Panel(quantity, torch.stack([each for _, each in found]), title, 'lines',
              [_upper(name) for name, _ in found], x=x)
        for quantity, title, x in (
            ('other_cosine', 'cosine of the weights', 'layer'),
            ('other_distance', 'relative distance of the weights', 'layer'),
            ('subspace_angles', 'angles between the spans of the atoms', 'angle'),
            ('coefficient_angles', 'angles between the spans of C', 'angle'),
        )
        if (found := _equally_long(quantity, projections))
    ]  # fmt: skip
    if panels:
        yield Chart('compared', panels, pair, columns=2, file='comparison')


def _equally_long(
    quantity: str, projections: Mapping[str, Arrays]
) -> list[tuple[str, torch.Tensor]]:
    """The values of a quantity in projections, with nan up to the longest."""
    found = [(name, arrays[quantity]) for name, arrays in projections.items() if quantity in arrays]
    longest = max((len(values) for _, values in found), default=0)
    return [
        (name, torch.cat([values.double(), torch.full((longest - len(values),), math.nan)]))
        for name, values in found
    ]


def history_charts(history: History) -> Iterator[Chart]:
    """Yield the matrices of a run, a frame an epoch, and its effective atoms and use over epochs."""
    epochs = [str(epoch) for epoch in history.epochs]
    shown = ('coefficients', 'contributions', 'shares', 'composed_similarity', 'atom_overlap')
    for quantity in shown:
        found = {
            name: arrays[quantity]  # (epochs, rows, columns)
            for name, arrays in history.projections.items()
            if quantity in arrays
        }
        if found:
            panels = [Panel(quantity, each[-1], _upper(name)) for name, each in found.items()]
            frames = {
                epoch: [each[moment] for each in found.values()]
                for moment, epoch in enumerate(epochs)
            }
            yield Chart('history', panels, {'show': quantity.replace('_', ' ')}, frames=frames)
    lines = (('effective_atoms', 'effective atoms', 'layer'), ('atom_use', 'use', 'atom'))
    for name, arrays in history.projections.items():
        panels = [
            Panel(quantity, arrays[quantity].T, f'{_upper(name)}, {title}', 'lines',
                  [f'{of} {index}' for index in range(arrays[quantity].shape[1])], history.epochs,
                  {'mean': arrays[quantity].mean(1)} if of == 'layer' else {}, x='epoch')
            for quantity, title, of in lines
            if quantity in arrays
        ]  # fmt: skip
        if panels:
            yield Chart('over-epochs', panels, {'projection': _upper(name)})
