// Figures of a model on images, of two models, and of a run.

const square = (z) => z.length / z[0].length;

/** Attention of all heads to the patches, one panel a head. */
function attentionMaps(width) {
  const heads = images().class_attention[state.image][state.layer];
  const margin = { l: 12, r: 96, t: 34, b: 12 };
  const place = placePanels(heads.length, {
    width, margin, narrowest: heads.length > 8 ? 110 : 150, gap: 14, rowGap: 36,
    panelHeight: (panelWidth) => Math.min(280, panelWidth * square(heads[0])),
  });
  const layout = baseLayout(
    width, place.height, margin, { coloraxis: colourAxis(heads, { title: 'attention' }) },
  );
  const data = heads.map((z, head) => {
    const { x, y } = place.places[head];
    layout[axisName('x', head)] = {
      domain: x, anchor: axisId('y', head), visible: false, constrain: 'domain',
    };
    layout[axisName('y', head)] = {
      domain: y, anchor: axisId('x', head), visible: false, autorange: 'reversed',
      scaleanchor: axisId('x', head), constrain: 'domain',
    };
    layout.annotations.push(panelTitle(head, `head ${head}`));
    return heatmap(
      head, z, `head ${head}, row %{y}, column %{x}<br><b>%{z:.4g}</b>`, { xgap: 0, ygap: 0 },
    );
  });
  return { data, layout };
}

function attentionDistances(width) {
  const values = images().attention_distance;
  const data = values.map((of, layer) => ({
    ...curve(
      layer === state.layer ? 5 : 0, '', of.map(() => layer), of,
      `layer ${layer}, head %{customdata}: <b>%{y:.4g}</b> pixels`,
    ),
    mode: 'markers', customdata: range(of.length),
    marker: {
      size: 9, opacity: 0.75, color: layer === state.layer ? COLOURS[5] : COLOURS[0],
      symbol: layer === state.layer ? 'diamond' : 'circle',
    },
  }));
  return chart(data, {
    width, title: 'Attention distance of the heads', legend: false, height: 420,
    x: layerAxis(values.length), y: { title: 'mean distance, pixels', rangemode: 'tozero' },
  });
}

function blockSimilarity(width) {
  const { cka } = images();
  const panel = { title: '<b>CKA between outputs of blocks</b>', z: cka };
  const { data, layout } = heatmapPanels([panel], {
    width, xTitle: 'layer', mark: state.layer, title: 'CKA', top: 1,
    hover: 'layers %{y} and %{x}<br><b>%{z:.4g}</b>',
  });
  layout.height = 420;
  return { data, layout };
}

const MEASURES = {
  ablation_kl: 'KL divergence, nats',
  ablation_logits: 'relative change of logits',
  ablation_accuracy: 'change of top-1, points',
};

function ablationPanels(width) {
  const names = projectionsWith(state.measure);
  return heatmapPanels(markedPanels(names, (name) => arrays(name)[state.measure]), {
    width, xTitle: 'atom', mark: state.layer, signed: SIGNED.includes(state.measure),
    title: MEASURES[state.measure],
    hover: 'without atom %{x} in layer %{y}<br><b>%{z:.4g}</b>',
  });
}

function ablationEverywhere(width) {
  const quantity = `${state.measure}_everywhere`;
  const names = projectionsWith(quantity);
  const margin = { l: 76, r: 96, t: 34, b: 54 };
  const place = placePanels(names.length, { width, margin, narrowest: 170, panelHeight: 190 });
  const layout = baseLayout(width, place.height, margin);
  const data = names.map((name, index) => {
    const values = arrays(name)[quantity];
    const { x, y, first } = place.places[index];
    layout[axisName('x', index)] = {
      domain: x, anchor: axisId('y', index), title: { text: 'atom', standoff: 6 },
      ...whole(values.length, 8),
    };
    layout[axisName('y', index)] = {
      domain: y, anchor: axisId('x', index), gridcolor: '#eceff2', zerolinecolor: '#98a3ad',
      showticklabels: first,
      title: { text: first ? MEASURES[state.measure] : '', standoff: 6 },
      ...(index ? { matches: 'y' } : { rangemode: 'tozero' }),
    };
    const bold = names.length > 1 && name === state.projection;
    layout.annotations.push(panelTitle(index, `${label(name)}, everywhere`, bold));
    return {
      type: 'bar', x: range(values.length), y: values, xaxis: axisId('x', index),
      yaxis: axisId('y', index),
      marker: { color: COLOURS[0] },
      hovertemplate: 'without atom %{x} in any layer<br><b>%{y:.4g}</b><extra></extra>',
    };
  });
  return { data, layout };
}

const compared = () => comparison()?.projections[state.projection] ?? {};
const ofFirst = () => report.models[comparison()?.first]?.projections[state.projection] ?? {};

/** Contributions in two models, the atoms of the second in the order of those they match. */
function matchedContributions(width) {
  const { first, second } = comparison();
  const {
    matched_atom: partner, matched_cosine: cosine, matched_contributions: other,
  } = compared();
  const text = partner.map((atom, index) => {
    if (atom < 0) return '–';
    return partner.length > 10 ? atom : `${atom}<br>(${cosine[index].toFixed(2)})`;
  });
  const panels = [
    { title: plain(first), z: ofFirst().contributions },
    {
      title: plain(second), z: other,
      ticks: { tickmode: 'array', tickvals: range(partner.length), ticktext: text },
      customdata: other.map(
        () => partner.map((atom, index) => [atom < 0 ? 'none' : atom, cosine[index]]),
      ),
      hover: 'layer %{y}, atom %{customdata[0]} matched to %{x}<br><b>%{z:.4g}</b>'
        + '<br>cosine of the atoms %{customdata[1]:.4g}',
    },
  ];
  const built = heatmapPanels(panels, {
    width, xTitle: 'atom', mark: state.layer, title: 'contribution',
    hover: 'layer %{y}, atom %{x}<br><b>%{z:.4g}</b>',
  });
  built.layout.margin.b += 16;
  built.layout.height += 16;
  return built;
}

function weightCosines(width) {
  const of = Object.entries(comparison().projections).filter(
    ([, values]) => 'other_cosine' in values,
  );
  const data = of.map(([name, { other_cosine: y, other_distance: customdata }], index) =>
    curve(
      index, label(name), range(y.length), y,
      `${label(name)}, layer %{x}: <b>%{y:.4g}</b><br>distance %{customdata:.4g}`, { customdata },
    ));
  return chart(data, {
    width, title: 'Cosine between the weights of the two', shapes: [rule({ x: state.layer })],
    legend: of.length > 1,
    x: layerAxis(of[0][1].other_cosine.length), y: { title: 'cosine', rangemode: 'tozero' },
  });
}

const ANGLES = {
  subspace_angles: 'spans of the atoms',
  coefficient_angles: 'spans of the columns of C',
};
const angleNames = () => Object.keys(ANGLES).filter((name) => name in compared());

function spanAngles(width) {
  const data = angleNames().map((name, index) => {
    const [title, y] = [ANGLES[name], compared()[name]];
    return curve(index, title, range(y.length), y, `angle %{x} of ${title}: <b>%{y:.4g}°</b>`);
  });
  return chart(data, {
    width, title: `Principal angles, ${label(state.projection)}`,
    x: { title: 'angle', ...whole(Math.max(...data.map(({ y }) => y.length))) },
    y: { title: 'degrees', range: [-3, 93], dtick: 30 },
  });
}

const PANELS = ['coefficients', 'contributions', 'shares', 'composed_similarity', 'atom_overlap'];
const recordedNames = () =>
  PANELS.filter(
    (name) => Object.values(report.history?.projections ?? {}).some((of) => name in of),
  );

/** A quantity of the run at one epoch, on the scale of all epochs. */
function recordedPanels(width) {
  const of = Object.entries(report.history.projections).filter(
    ([, values]) => state.recorded in values,
  );
  const panels = of.map(([name, values]) => ({
    title: label(name), z: values[state.recorded][state.epoch],
    bold: of.length > 1 && name === state.projection,
  }));
  const yTitle = state.recorded === 'atom_overlap' ? 'atom' : 'layer';
  const xTitle = state.recorded === 'composed_similarity' ? 'layer' : 'atom';
  return heatmapPanels(panels, {
    width, xTitle, yTitle, mark: yTitle === 'layer' ? state.layer : undefined,
    title: `${words(state.recorded)}, epoch ${report.history.epochs[state.epoch]}`,
    signed: SIGNED.includes(state.recorded), values: of.map(([, values]) => values[state.recorded]),
    hover: `${yTitle} %{y}, ${xTitle} %{x}<br><b>%{z:.4g}</b>`,
  });
}

const epochAxis = () => ({ title: 'epoch', zeroline: false });
const epochRule = () => rule({ x: report.history.epochs[state.epoch], color: INK });

function recordedAtoms(width) {
  const { epochs } = report.history;
  const values = historyOf().effective_atoms;
  const hover = (what) => `${what}, epoch %{x}: <b>%{y:.4g}</b>`;
  const data = range(values[0].length).map(
    (layer) => faintCurve(epochs, column(values, layer), hover(`layer ${layer}`)),
  );
  data.push(boldCurve('mean of the layers', epochs, values.map(mean), hover('mean')));
  return chart(data, {
    width, title: `Effective atoms, ${label(state.projection)}`, x: epochAxis(),
    y: { title: 'effective number' }, shapes: [epochRule()],
  });
}

function recordedUse(width) {
  const { epochs } = report.history;
  const { atom_use: use } = historyOf();
  const data = range(use[0].length).map((atom) =>
    curve(
      atom, `atom ${atom}`, epochs, column(use, atom), `atom ${atom}, epoch %{x}: <b>%{y:.4g}</b>`,
      { mode: 'lines' },
    ));
  return chart(data, {
    width, title: `Use of the atoms, ${label(state.projection)}`, x: epochAxis(),
    y: { title: 'share', rangemode: 'tozero' },
    shapes: [epochRule()], legend: use[0].length <= 12,
  });
}
