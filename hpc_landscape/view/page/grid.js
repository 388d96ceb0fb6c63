"use strict";

// The numbers of the page, and the scales on which they are drawn.

const data = JSON.parse(document.getElementById("data").textContent);
const axes = data.axes;
const shape = axes.map((axis) => axis.values.length);
const along = [...shape.keys()].filter((k) => shape[k] > 1); // the axes along which there are several points

// Why a point has no finite value; 0 where it has one.
const GAPS = [
  null,
  { word: data.refined ? "not computed" : "not computed yet", symbol: "circle-open", color: "--gap" },
  { word: "NaN", symbol: "x-thin-open", color: "--nan" },
  { word: "+infinity", symbol: "triangle-up-open", color: "--infinite" },
  { word: "-infinity", symbol: "triangle-down-open", color: "--infinite" },
];
const KIND = { NaN: 2, Infinity: 3, "-Infinity": 4 };

for (const metric of data.metrics) {
  const encoded = metric.values;
  metric.kinds = Uint8Array.from(encoded, (v) => (v === null ? 1 : (KIND[v] ?? 0)));
  metric.values = Float64Array.from(encoded, (v, i) => (metric.kinds[i] ? NaN : v));
  metric.gaps = [0, metric.missing, metric.nan, metric.plus, metric.minus]; // in the file, by kind
}

/** The place in a metric's values of the point with these indices: C order. */
const flat = (at) => at.reduce((sum, i, k) => sum * shape[k] + i, 0);

/** The index of the value nearest to x. */
function nearest(values, x) {
  let best = 0;
  values.forEach((value, i) => {
    if (Math.abs(value - x) < Math.abs(values[best] - x)) best = i;
  });
  return best;
}

/** f of each point of the plane through the point at: rows along the axis up, columns along the axis across. */
function plane(across, up, at, f) {
  const index = [...at];
  return axes[up].values.map((_, j) =>
    axes[across].values.map((_, i) => {
      index[across] = i;
      index[up] = j;
      return f(flat(index));
    }),
  );
}

/** A number in a few digits, and in all that it has. */
const short = (value) => String(Number(value.toPrecision(4)));
const full = (value) => (Object.is(value, -0) ? "-0" : String(value));

/** What a metric is at a point, in words or digits. */
const told = (metric, point, digits) =>
  GAPS[metric.kinds[point]]?.word ??
  digits(metric.values[point]) + (metric.evaluated && !metric.evaluated[point] ? " (estimated)" : "");

/**
 * How a metric is drawn: levels between the lowest and the highest value, and u, which takes these two to 0 and 1.
 * asked: {log, low, high}; low and high are null where the page is to choose.
 */
function scaleOf(metric, asked) {
  const log = asked.log && metric.log !== null;
  const usual = log ? metric.log : metric.linear;
  const clipped = asked.low !== null || asked.high !== null;
  const low = asked.low ?? usual.levels[0];
  const high = asked.high ?? usual.levels.at(-1);
  const levels = clipped ? levelsBetween(low, high, log) : usual.levels;
  const texts = clipped ? levels.map(short) : usual.texts;
  const t = log ? (v) => Math.log10(Math.max(v, low / 10)) : (v) => v;
  const u = (v) => (t(v) - t(low)) / (t(high) - t(low));
  const value = (s) => (log ? low * (high / low) ** s : low + s * (high - low));
  return { log, low, high, levels, texts, u, value };
}

/** What is wrong with the limits that are asked for; empty where nothing is. */
function mistakeIn(metric, asked) {
  const scale = scaleOf(metric, asked);
  if (scale.log && [asked.low, asked.high].some((limit) => limit !== null && limit <= 0)) {
    return "a log scale has limits above 0";
  }
  if (scale.low < scale.high) return "";
  return `the lowest (${short(scale.low)}) must be less than the highest (${short(scale.high)})`;
}

/** The two ends, and round numbers between them. */
function levelsBetween(low, high, log) {
  const inside = [];
  if (log && high / low >= 3) {
    const decades = Math.log10(high / low);
    const mantissas = decades < 1.5 ? [1, 1.5, 2, 3, 5, 7] : decades < 5 ? [1, 2, 5] : [1];
    const step = Math.max(1, Math.round(decades / 12));
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e += step) {
      inside.push(...mantissas.map((m) => Number(`${m}e${e}`)));
    }
  } else {
    const raw = (high - low) / 12;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 2.5, 5, 10].find((s) => s * power >= raw * 0.999);
    for (let k = Math.ceil(low / step); k * step < high; k++) inside.push(Number((k * step).toPrecision(12)));
  }
  return [low, ...inside.filter((level) => level > low && level < high), high];
}

/**
 * The lines on which u has one of these levels, as pieces with null between them: x, y and the level of each end.
 * u: rows along y; null where there is no value, and there are no lines beside it.
 */
function levelLines(x, y, u, levels) {
  const lines = { x: [], y: [], level: [] };
  for (let j = 0; j + 1 < y.length; j++) {
    for (let i = 0; i + 1 < x.length; i++) {
      const corners = [
        [i, j],
        [i + 1, j],
        [i + 1, j + 1],
        [i, j + 1],
      ].map(([a, b]) => [x[a], y[b], u[b][a]]);
      const heights = corners.map((corner) => corner[2]);
      if (heights.includes(null)) continue;
      const [low, high] = [Math.min(...heights), Math.max(...heights)];
      for (const level of levels) if (low < level && level <= high) addPieces(lines, corners, level);
    }
  }
  return lines;
}

/** Where the level crosses the cell with these corners, (x, y, u) each, in their order around it. */
function addPieces(lines, corners, level) {
  const points = [];
  corners.forEach((p, k) => {
    const q = corners[(k + 1) % 4];
    if (p[2] < level === q[2] < level) return;
    const s = (level - p[2]) / (q[2] - p[2]);
    points.push([p[0] + s * (q[0] - p[0]), p[1] + s * (q[1] - p[1])]);
  });
  const middle = corners.reduce((sum, corner) => sum + corner[2], 0) / 4;
  // At a saddle all four sides are crossed: the corners that the middle is not like are cut off.
  if (points.length === 4 && middle < level !== corners[0][2] < level) points.unshift(points.pop());
  for (let k = 0; k + 1 < points.length; k += 2) {
    lines.x.push(points[k][0], points[k + 1][0], null);
    lines.y.push(points[k][1], points[k + 1][1], null);
    lines.level.push(level, level, null);
  }
}
