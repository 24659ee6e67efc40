// Parts that figures are made of: colours, panels, heatmaps and lines, as plotly takes them.

// Brewer's PuOr: diverging, and safe for colour-blind readers; Okabe and Ito's palette for lines.
const PUOR = [
  '#7f3b08', '#b35806', '#e08214', '#fdb863', '#fee0b6', '#f7f7f7', '#d8daeb', '#b2abd2', '#8073ac',
  '#542788', '#2d004b',
].map((colour, index) => [index / 10, colour]);
const COLOURS = ['#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00', '#000000'];
const SYMBOLS = ['circle', 'square', 'diamond', 'triangle-up', 'cross', 'x', 'star'];
const DASHES = ['solid', 'dash', 'dot', 'dashdot'];
const INK = '#1c2126';
const FAINT = '#c3cad0';
const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif";

/** A name as plotly shows it: it reads tags and entities in texts. */
const plain = (text) => String(text).replaceAll('&', '&amp;').replaceAll('<', '&lt;');

const axisName = (kind, index) => `${kind}axis${index ? index + 1 : ''}`;
const axisId = (kind, index) => `${kind}${index ? index + 1 : ''}`;

/** Ticks at whole numbers, few enough to read. */
const whole = (count, most = 12) => ({
  tick0: 0, dtick: Math.max(1, Math.ceil(count / most)), zeroline: false,
});

const layerAxis = (count) => ({ title: 'layer', range: [-0.5, count - 0.5], ...whole(count) });

function baseLayout(width, height, margin, rest = {}) {
  return {
    width, height, margin,
    font: { family: FONT, size: 14, color: INK },
    paper_bgcolor: '#fff', plot_bgcolor: '#fff',
    hoverlabel: { font: { size: 15, family: FONT }, bgcolor: '#fff', bordercolor: INK },
    hovermode: 'closest', showlegend: false, dragmode: false, bargap: 0.3,
    annotations: [], shapes: [],
    ...rest,
  };
}

/** Places of panels in rows and columns: domains of their axes, for a figure of that width. */
function placePanels(count, { width, narrowest, panelHeight, margin, gap = 44, rowGap = 84 }) {
  const inner = width - margin.l - margin.r;
  const columns = Math.max(1, Math.min(count, Math.floor((inner + gap) / (narrowest + gap))));
  const rows = Math.ceil(count / columns);
  const panelWidth = (inner - gap * (columns - 1)) / columns;
  const high = typeof panelHeight === 'function' ? panelHeight(panelWidth) : panelHeight;
  const innerHeight = rows * high + (rows - 1) * rowGap;
  const places = range(count).map((index) => {
    const left = (index % columns) * (panelWidth + gap);
    const top = Math.floor(index / columns) * (high + rowGap);
    return {
      x: [left / inner, Math.min(1, (left + panelWidth) / inner)],
      y: [Math.max(0, 1 - (top + high) / innerHeight), 1 - top / innerHeight],
      first: index % columns === 0,
    };
  });
  return { places, panelWidth, panelHeight: high, height: innerHeight + margin.t + margin.b };
}

function panelTitle(index, text, bold = false) {
  return {
    text: bold ? `<b>${text}</b>` : text, showarrow: false, font: { size: 16 },
    xref: `${axisId('x', index)} domain`, yref: `${axisId('y', index)} domain`,
    x: 0.5, xanchor: 'center', y: 1, yanchor: 'bottom', yshift: 3,
  };
}

/** A frame around the row of a layer in panel `index`, in a colour that the scale has not. */
function frame(index, place, signed) {
  return {
    type: 'rect', xref: `${axisId('x', index)} domain`, yref: axisId('y', index),
    x0: 0, x1: 1, y0: place - 0.5, y1: place + 0.5,
    line: { color: signed ? '#000' : COLOURS[5], width: 3 },
  };
}

/** A line across the figure: at a layer or an epoch (`x`), or at a value (`y`). */
function rule({ x, y, index = 0, dash = 'dot', color = '#8a949d' }) {
  const line = { color, width: 1.5, dash };
  const across = x === undefined
    ? { xref: `${axisId('x', index)} domain`, yref: axisId('y', index), x0: 0, x1: 1, y0: y, y1: y }
    : {
      xref: axisId('x', index), yref: `${axisId('y', index)} domain`,
      x0: x, x1: x, y0: 0, y1: 1,
    };
  return { type: 'line', layer: 'below', line, ...across };
}

/** One colour scale for a figure: diverging around zero, or from `low` (default 0). */
function colourAxis(values, { signed, title, low = 0, top }) {
  const limit = top ?? (largest(values) || 1);
  return {
    colorscale: signed ? PUOR : 'Cividis',
    cmin: signed ? -limit : low, cmax: limit,
    colorbar: {
      title: { text: title, side: 'right' }, thickness: 14, len: 1, outlinewidth: 0, x: 1.015,
      xpad: 0, ticksuffix: '\u00a0\u00a0', // keeps the title off the numbers
    },
  };
}

function heatmap(index, z, hover, rest = {}) {
  return {
    type: 'heatmap', z, coloraxis: 'coloraxis', xaxis: axisId('x', index),
    yaxis: axisId('y', index),
    xgap: 1, ygap: 1, hovertemplate: `${hover}<extra></extra>`, ...rest,
  };
}

/** The numbers in the cells of a panel, if they fit; places may have `names` on its axes. */
function cellTexts(index, z, { cmin, cmax }, signed, panelWidth, panelHeight, names) {
  const crowded = panelWidth / z[0].length < 46 || panelHeight / z.length < 19;
  if (crowded || z.length * z[0].length > 150) return [];
  const place = (value) => (value - cmin) / (cmax - cmin);
  const dark = signed ? (at) => at < 0.16 || at > 0.78 : (at) => at < 0.5;
  const cells = z.flatMap((row, y) => row.map((value, x) => ({ x, y, value })));
  return [{
    type: 'scatter', mode: 'text', hoverinfo: 'skip', xaxis: axisId('x', index),
    yaxis: axisId('y', index),
    x: cells.map(({ x }) => names?.[x] ?? x), y: cells.map(({ y }) => names?.[y] ?? y),
    text: cells.map(({ value }) => value.toFixed(2).replace(/^-(?=0.00$)/, '').replace('-', '−')),
    textfont: { size: 13, color: cells.map(({ value }) => (dark(place(value)) ? '#fff' : '#000')) },
  }];
}

/**
 * Heatmaps of (layer, ...) side by side on one scale.
 * Panels are {title, z, bold?, hover?, ticks?}; `mark` is the row with a frame.
 */
function heatmapPanels(panels, { width, xTitle, yTitle = 'layer', mark, hover, ...scale }) {
  const margin = { l: 58, r: 96, t: 34, b: 54 };
  const rows = Math.max(...panels.map(({ z }) => z.length));
  const place = placePanels(panels.length, {
    width, margin, narrowest: 170, panelHeight: Math.max(180, Math.min(560, rows * 26)),
  });
  const layout = baseLayout(width, place.height, margin, {
    coloraxis: colourAxis(scale.values ?? panels.map(({ z }) => z), scale),
  });
  const data = panels.map((panel, index) => {
    const { z, title, bold, ticks } = panel;
    const { x, y, first } = place.places[index];
    layout[axisName('x', index)] = {
      domain: x, anchor: axisId('y', index), title: { text: xTitle, standoff: 6 }, showgrid: false,
      range: [-0.5, z[0].length - 0.5],
      ...whole(z[0].length, 8), ...ticks,
    };
    layout[axisName('y', index)] = {
      domain: y, anchor: axisId('x', index), range: [z.length - 0.5, -0.5], showgrid: false,
      ...whole(z.length),
      title: { text: first ? yTitle : '', standoff: 6 },
    };
    layout.annotations.push(panelTitle(index, title, bold));
    if (mark !== undefined && mark < z.length) layout.shapes.push(frame(index, mark, scale.signed));
    return heatmap(index, z, panel.hover ?? hover, {
      ...(panel.customdata && { customdata: panel.customdata }),
    });
  });
  const texts = panels.flatMap(({ z }, index) =>
    cellTexts(index, z, layout.coloraxis, scale.signed, place.panelWidth, place.panelHeight));
  return { data: [...data, ...texts], layout };
}

/** A chart with a title, its legend under that, and lines or points of `data`. */
function chart(data, { width, title, x, y, shapes = [], legend = true, height = 380 }) {
  const beside = data.filter(({ showlegend }) => showlegend !== false).length > 5;
  const margin = { l: 70, r: 16, t: legend && !beside ? 76 : 44, b: 54 };
  const layout = baseLayout(width, height, margin, {
    title: {
      text: `<b>${title}</b>`, font: { size: 16 }, x: 0, xref: 'paper', xanchor: 'left', y: 1,
      yref: 'container', yanchor: 'top', pad: { t: 12 },
    },
    showlegend: legend,
    legend: beside
      ? { x: 1.02, xanchor: 'left', y: 1, yanchor: 'top' }
      : { orientation: 'h', x: 0, xanchor: 'left', y: 1.01, yanchor: 'bottom' },
    shapes,
    xaxis: { gridcolor: '#eceff2', linecolor: '#98a3ad', zeroline: false, ...x },
    yaxis: { gridcolor: '#eceff2', linecolor: '#98a3ad', zerolinecolor: '#98a3ad', ...y },
  });
  for (const axis of [layout.xaxis, layout.yaxis]) axis.title = { text: axis.title, standoff: 8 };
  return { data, layout };
}

function curve(index, name, x, y, hover, rest = {}) {
  const color = COLOURS[index % COLOURS.length];
  return {
    type: 'scatter', mode: 'lines+markers', name, x, y, hovertemplate: `${hover}<extra></extra>`,
    line: { color, width: 2.5, dash: DASHES[Math.floor(index / COLOURS.length) % DASHES.length] },
    marker: { color, size: 8, symbol: SYMBOLS[index % SYMBOLS.length] },
    ...rest,
  };
}

const faintCurve = (x, y, hover) =>
  curve(
    0, '', x, y, hover, { mode: 'lines', line: { color: FAINT, width: 1.2 }, showlegend: false },
  );

const boldCurve = (name, x, y, hover) =>
  curve(0, name, x, y, hover, { mode: 'lines', line: { color: COLOURS[0], width: 4 } });

const control = (name, x, y) =>
  curve(
    0, name, x, y, 'Gaussian, %{x}: %{y:.4g}',
    { mode: 'lines', line: { color: '#000', width: 2, dash: 'dash' } },
  );
