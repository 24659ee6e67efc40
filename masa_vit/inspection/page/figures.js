// Figures of one model from its weights. `build(width)` gives data and layout for plotly.

const markedPanels = (names, value) =>
  names.map((name) => ({
    title: label(name), z: value(name), bold: names.length > 1 && name === state.projection,
  }));

const words = (name) => name.replaceAll('_', ' ');
const SIGNED = [
  'coefficients', 'shares', 'canonical_coefficients', 'ablation_accuracy', 'composed_similarity',
];

function coefficientPanels(width) {
  const names = projectionsWith(state.quantity);
  const atom = state.quantity === 'canonical_coefficients' ? 'principal atom' : 'atom';
  return heatmapPanels(markedPanels(names, (name) => arrays(name)[state.quantity]), {
    width, xTitle: atom, mark: state.layer, signed: SIGNED.includes(state.quantity),
    title: words(state.quantity).replace('canonical ', '').replace(/s$/, ''),
    hover: `layer %{y}, ${atom} %{x}<br><b>%{z:.4g}</b>`,
  });
}

/** Similarities of layers as squares, with the tree of the weights at their left. */
function layerSimilarities(width) {
  const { weight_similarity: weights, coefficient_similarity: rows, linkage } = arrays();
  const depth = weights.length;
  const { leaves, lines } = tree(linkage, depth);
  const byTree = state.order === 'leaves';
  const order = byTree ? leaves : range(depth);
  const squares = [['weights', weights], ['rows of C', rows]].filter(([, matrix]) => matrix);

  const margin = { l: byTree ? 12 : 58, r: 96, t: 34, b: 54 };
  const room = width - margin.l - margin.r;
  const left = byTree ? Math.min(190, room * 0.22) : 0;
  const gap = byTree ? 50 : 0; // for the names of layers between tree and square
  const beside = squares.length > 1 && room - left > 620;
  const side = Math.min(470, beside ? (room - left - gap - 56) / 2 : room - left - gap);
  const inner = left + gap + side * (beside ? 2 : 1) + (beside ? 56 : 0);
  const stacked = beside ? 1 : squares.length;
  const high = stacked * side + (stacked - 1) * 84;
  const layout = baseLayout(inner + margin.l + margin.r, high + margin.t + margin.b, margin, {
    coloraxis: colourAxis(null, { signed: true, top: 1, title: 'cosine' }),
  });
  const names = order.map(String);
  const data = squares.map(([title, matrix], index) => {
    const start = (left + gap + (beside ? index * (side + 56) : 0)) / inner;
    const top = beside ? 0 : index * (side + 84);
    layout[axisName('x', index)] = {
      type: 'category', domain: [start, Math.min(1, start + side / inner)],
      anchor: axisId('y', index), showgrid: false,
      title: { text: 'layer', standoff: 6 }, tickangle: depth > 16 ? -90 : 0,
      tickfont: { size: depth > 16 ? 11 : 14 }, dtick: depth > 24 ? 2 : 1,
    };
    layout[axisName('y', index)] = {
      type: 'category', domain: [Math.max(0, 1 - (top + side) / high), 1 - top / high],
      anchor: axisId('x', index), showgrid: false,
      autorange: 'reversed', tickfont: { size: depth > 16 ? 11 : 14 }, dtick: depth > 24 ? 2 : 1,
    };
    layout.annotations.push(panelTitle(index, title));
    layout.shapes.push(frame(index, order.indexOf(state.layer), true));
    const z = order.map((layer) => order.map((other) => matrix[layer][other]));
    return heatmap(index, z, 'layers %{y} and %{x}<br><b>%{z:.4g}</b>', { x: names, y: names });
  });
  const texts = data.flatMap(({ z }, index) =>
    cellTexts(index, z, layout.coloraxis, true, side, side, names));
  data.push(...texts);
  if (!byTree) {
    layout.yaxis.title = { text: 'layer', standoff: 6 };
    return { data, layout };
  }
  const [x, y] = [axisName('x', squares.length), axisName('y', squares.length)];
  layout[x] = {
    domain: [0, left / inner], anchor: axisId('y', squares.length), autorange: 'reversed',
    rangemode: 'tozero', nticks: 4,
    title: { text: '1 − cosine', standoff: 6 }, zeroline: false, gridcolor: '#eceff2',
  };
  layout[y] = {
    domain: layout.yaxis.domain, anchor: axisId('x', squares.length), range: [depth - 0.5, -0.5],
    visible: false,
  };
  return { data: [...data, treeLines(lines, squares.length)], layout };
}

function treeLines(lines, index) {
  const x = [];
  const y = [];
  for (const { distance, ends: [one, other] } of lines) {
    x.push(one.from, distance, distance, other.from, null);
    y.push(one.place, one.place, other.place, other.place, null);
  }
  return {
    type: 'scatter', mode: 'lines', x, y, xaxis: axisId('x', index), yaxis: axisId('y', index),
    line: { color: INK, width: 1.8 }, hovertemplate: 'joined at %{x:.4g}<extra></extra>',
  };
}

function effectiveAtoms(width) {
  const names = projectionsWith('effective_atoms');
  const data = names.map((name, index) =>
    curve(index, label(name), range(model().depth), arrays(name).effective_atoms,
      `${label(name)}, layer %{x}: <b>%{y:.4g}</b> atoms<br>by entropy %{customdata:.4g}`,
      { customdata: arrays(name).effective_atoms_entropy }));
  const stored = new Set(names.map((name) => arrays(name).coefficients[0].length));
  return chart(data, {
    width, title: 'Effective atoms of a layer', legend: names.length > 1,
    x: layerAxis(model().depth), y: { title: 'effective number', rangemode: 'tozero' },
    shapes: [rule({ x: state.layer }), ...[...stored].map((y) => rule({ y, color: INK }))],
  });
}

function effectiveRanks(width) {
  const names = projectionsWith('effective_rank');
  const data = names.map((name, index) =>
    curve(
      index, label(name), range(model().depth), arrays(name).effective_rank,
      `${label(name)}, layer %{x}: <b>%{y:.4g}</b>`,
    ));
  for (const value of new Set(names.map((name) => arrays(name).gaussian_effective_rank))) {
    const layers = range(model().depth);
    data.push(control('Gaussian', layers, layers.map(() => value)));
  }
  return chart(data, {
    width, title: 'Effective rank of the weight', shapes: [rule({ x: state.layer })],
    x: layerAxis(model().depth), y: { title: 'effective rank', rangemode: 'tozero' },
  });
}

const spectrumAxes = () => ({
  x: { title: 'index of the singular value (0: largest)', rangemode: 'tozero' },
  y: {
    title: 'singular value / norm', type: state.scale,
    ...(state.scale === 'log' ? { exponentformat: 'power', dtick: 1 } : { rangemode: 'tozero' }),
  },
});

function weightSpectra(width) {
  const { singular_values: values, gaussian_singular_values: gaussian } = arrays();
  const index = model().indices[state.projection];
  const hover = (layer) => `layer ${layer}, value %{x}: <b>%{y:.4g}</b>`;
  const others = range(values.length).filter((layer) => layer !== state.layer);
  const data = others.map((layer) => faintCurve(index, values[layer], hover(layer)));
  data.push(control('Gaussian', index, gaussian));
  data.push(boldCurve(`layer ${state.layer}`, index, values[state.layer], hover(state.layer)));
  return chart(data, { width, title: 'Weights of the layers', ...spectrumAxes() });
}

function atomSpectra(width) {
  const index = model().indices[state.projection];
  const values = dictionary().atom_singular_values;
  const data = values.map((of, atom) =>
    curve(
      atom, `atom ${atom}`, index, of, `atom ${atom}, value %{x}: <b>%{y:.4g}</b>`,
      { mode: 'lines' },
    ));
  data.push(control('Gaussian', index, arrays().gaussian_singular_values));
  return chart(data, { width, title: 'Atoms', ...spectrumAxes(), legend: values.length <= 12 });
}

function headNorms(width) {
  const names = projectionsWith('head_norms');
  const norms = names.map((name) => arrays(name).head_norms);
  return heatmapPanels(markedPanels(names, (name) => arrays(name).head_norms), {
    width, xTitle: 'head', mark: state.layer, title: 'Frobenius norm', low: smallest(norms),
    hover: 'layer %{y}, head %{x}<br><b>%{z:.4g}</b>',
  });
}

/** Use of the atoms, their overlap, and their rank: three panels of one dictionary. */
function atomPanels(width) {
  const { atom_use: use, atom_overlap: overlap, atom_effective_rank: rank } = dictionary();
  const margin = { l: 70, r: 24, t: 34, b: 54 };
  const place = placePanels(3, { width, margin, narrowest: 190, panelHeight: 280, gap: 90 });
  const layout = baseLayout(width, place.height, margin, {
    coloraxis: colourAxis(overlap, { title: '', top: 1 }),
  });
  const titles = ['share of the use', 'overlap', 'effective rank'];
  titles.forEach((title, index) => {
    const { x, y } = place.places[index];
    const bars = index !== 1;
    layout[axisName('x', index)] = {
      domain: x, anchor: axisId('y', index), title: { text: 'atom', standoff: 6 }, showgrid: false,
      range: [-0.5, use.length - 0.5], ...whole(use.length, 8),
    };
    layout[axisName('y', index)] = {
      domain: y, anchor: axisId('x', index),
      ...(bars
        ? { gridcolor: '#eceff2', rangemode: 'tozero' }
        : { range: [use.length - 0.5, -0.5], ...whole(use.length) }),
    };
    layout.annotations.push(panelTitle(index, title));
  });
  const { x, y } = place.places[1];
  Object.assign(
    layout.coloraxis.colorbar,
    { x: x[1] + 0.005, y: mean(y), yanchor: 'middle', len: y[1] - y[0], thickness: 10 },
  );
  layout.shapes.push(rule({ y: arrays().gaussian_effective_rank, index: 2, color: INK }));
  const bar = (index, values) => ({
    type: 'bar', x: range(values.length), y: values, xaxis: axisId('x', index),
    yaxis: axisId('y', index),
    marker: { color: COLOURS[0] }, hovertemplate: 'atom %{x}: <b>%{y:.4g}</b><extra></extra>',
  });
  const overlaps = heatmap(1, overlap, 'atoms %{y} and %{x}<br><b>%{z:.4g}</b>');
  const texts = cellTexts(1, overlap, layout.coloraxis, false, place.panelWidth, 280);
  return { data: [bar(0, use), overlaps, bar(2, rank), ...texts], layout };
}
