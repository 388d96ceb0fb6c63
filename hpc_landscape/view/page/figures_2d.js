// Figures in the plane: a map seen from above, and lines along one axis.

/** The plane through the point at, seen from above; bar: with its colour scale. */
function mapFigure(metric, scale, across, up, at, bar) {
  const [x, y] = [axes[across].values, axes[up].values];
  const u = plane(across, up, at, (p) => (metric.kinds[p] ? null : scale.u(metric.values[p])));
  const gaps = plane(across, up, at, (p) => metric.kinds[p] || null);
  const lines = levelLines(x, y, u, scale.levels.map(scale.u));
  const line = { color: "rgba(0,0,0,.45)", width: 0.8 };
  const marks = metric.marks.filter((mark) => inside(mark, [across, up], at));
  const traces = [
    { ...cells(x, y, gaps, [0.5, 4.5], gapColors()), hoverinfo: "skip" },
    { ...cells(x, y, u, [0, 1], colorScale()), zsmooth: "best", showscale: bar, colorbar: colorBar(scale) },
    { type: "scatter", mode: "lines", x: lines.x, y: lines.y, line, hoverinfo: "skip" },
    ...evaluatedTraces(metric, placesOf(across, up, at)),
    ...gapTraces(metric, placesOf(across, up, at)),
    ...(axes.length === 2 ? wayTraces() : []),
    ...marks.map((mark) => symbols([[mark.where[across], mark.where[up]]], markLook(mark))),
  ];
  const [width, height] = [x.at(-1) - x[0], y.at(-1) - y[0]];
  const equal = Math.abs(width - height) < 0.01 * width ? { scaleanchor: "x" } : {};
  const layout = base({
    xaxis: axisLook(axes[across].label, { range: ends(x), constrain: "domain", showgrid: false }),
    yaxis: axisLook(axes[up].label, { range: ends(y), constrain: "domain", showgrid: false, ...equal }),
    shapes: cross([x, y], [at[across], at[up]]),
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger scrolls the page
  });
  return { traces, layout };
}

/** A dot at each point that is evaluated, where the others are estimated. */
function evaluatedTraces(metric, places, more) {
  if (!metric.evaluated) return [];
  const there = [...places].filter(([p]) => metric.evaluated[p]).map(([, place]) => place);
  const look = { symbol: "circle", size: 5, color: color("--ink"), opacity: 0.6 };
  return there.length ? [symbols(there, look, more)] : [];
}

/** A coloured cell for each point. */
function cells(x, y, z, [zmin, zmax], colorscale) {
  return { type: "heatmap", x, y, z, zmin, zmax, colorscale, showscale: false, hoverinfo: "none" };
}

function colorBar(scale) {
  const ticks = { tickvals: scale.levels.map(scale.u), ticktext: scale.texts, tickfont: { size: 11 } };
  return { thickness: 14, outlinewidth: 0, x: 1.01, xpad: 4, ...ticks };
}

/** Where each point of a plane is drawn, and how high. */
function placesOf(across, up, at, ...height) {
  const [x, y] = [axes[across].values, axes[up].values];
  const rows = plane(across, up, at, (p) => p);
  return new Map(rows.flatMap((row, j) => row.map((p, i) => [p, [x[i], y[j], ...height]])));
}

/** Lines along the one axis, a panel for each metric, the first on top. */
function lineFigure(metrics, scales, at) {
  const [k] = along;
  const x = axes[k].values;
  const margin = 0.02 * (x.at(-1) - x[0]);
  const last = metrics.length > 1 ? `y${metrics.length}` : "y";
  const range = [x[0] - margin, x.at(-1) + margin];
  const layout = base({ xaxis: axisLook(axes[k].label, { range, anchor: last }), shapes: cross([x], [at[k]]) });
  const between = 0.07;
  const height = (1 + between) / metrics.length;
  const traces = metrics.flatMap((metric, n) => {
    const top = 1 - n * height;
    const domain = [Math.max(top - height + between, 0), top];
    layout[`yaxis${n ? n + 1 : ""}`] = lineAxis(metric, scales[n], domain);
    return lineTraces(metric, scales[n], k, at, n ? `y${n + 1}` : "y");
  });
  return { traces, layout: { ...layout, hovermode: "x" } };
}

const SPACE = 0.07; // below and above a line

function lineAxis(metric, scale, domain) {
  const range = [-SPACE, 1 + SPACE].map(scale.value).map((v) => (scale.log ? Math.log10(v) : v));
  const title = metric.label + (scale.log ? " (log scale)" : "");
  return axisLook(title, { domain, range, type: scale.log ? "log" : "linear" });
}

/** A metric's line, its gaps along the bottom, its marks, and of the first metric the barrier. */
function lineTraces(metric, scale, k, at, yaxis) {
  const x = axes[k].values;
  const points = x.map((_, i) => flat(at.map((j, axis) => (axis === k ? i : j))));
  const y = points.map((p) => (metric.kinds[p] || (scale.log && metric.values[p] <= 0) ? null : metric.values[p]));
  const look = { line: { color: color("--accent"), width: 2 }, marker: { size: 5, color: color("--accent") } };
  const mode = x.length > 120 || metric.evaluated ? "lines" : "lines+markers";
  const marks = metric.marks.filter((mark) => mark.value !== null && inside(mark, [k], at));
  const there = new Map(points.map((p, i) => [p, [x[i], y[i]]]));
  const bottom = new Map(points.map((p, i) => [p, [x[i], scale.value(-SPACE / 2)]]));
  return [
    ...bandTraces(metric, scale, x, points, yaxis),
    { type: "scatter", mode, x, y, yaxis, hoverinfo: "none", ...look },
    ...(metric === state.metric && metric.barrier?.height > 0 ? barrierTraces(metric, marks, k, at, yaxis) : []),
    ...evaluatedTraces(metric, there, { yaxis }),
    ...gapTraces(metric, bottom, { yaxis }),
    ...marks.map((mark) => symbols([[mark.where[k], mark.value]], markLook(mark), { yaxis })),
  ];
}

/** Of an ensemble's mean, between which values its sets of directions lie: 5 to 95 and 25 to 75% of them. */
function bandTraces(metric, scale, x, points, yaxis) {
  const { bands } = data.summaries[data.metrics.indexOf(metric)] ?? { bands: [] }; // only of an ensemble
  return bands.map((ends) => {
    const there = points.map((_, i) => i).filter((i) => ends.every((end) => !data.metrics[end].kinds[points[i]]));
    const [low, high] = ends.map((end) => there.map((i) => data.metrics[end].values[points[i]]));
    const y = [...low, ...high.reverse()].map((v) => (scale.log ? Math.max(v, scale.low) : v));
    const around = [...there, ...[...there].reverse()].map((i) => x[i]);
    const look = { fill: "toself", fillcolor: color("--accent"), line: { width: 0 }, opacity: 0.2 };
    return { type: "scatter", mode: "lines", x: around, y, yaxis, hoverinfo: "skip", ...look };
  });
}

/** The straight line between the two models' values, and the barrier above it. */
function barrierTraces(metric, marks, k, at, yaxis) {
  const [a, b] = marks.filter((mark) => mark.style !== "best");
  if (!b) return [];
  const x = Array.from({ length: 51 }, (_, i) => a.where[k] + (i / 50) * (b.where[k] - a.where[k]));
  const on = (px) => a.value + ((px - a.where[k]) / (b.where[k] - a.where[k])) * (b.value - a.value);
  const top = metric.barrier.where[k];
  const value = metric.values[flat(at.map((j, axis) => (axis === k ? nearest(axes[k].values, top) : j)))];
  const look = { type: "scatter", mode: "lines", yaxis, hoverinfo: "skip" };
  return [
    { ...look, x, y: x.map(on), line: { color: color("--muted"), width: 1.2, dash: "dash" } },
    { ...look, x: [top, top], y: [on(top), value], line: { color: BEST, width: 2 } },
  ];
}
