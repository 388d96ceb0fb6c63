// Figures in space: the surface above a plane, and the surface of one level in a volume.

const FLOOR = -0.12; // below a surface that goes from 0 to 1: there are the points without a value
const ABOVE = 0.012; // a surface, so that it does not hide what lies on it

/** The surface above the plane; its last trace is the point at. */
function surfaceFigure(metric, scale, across, up, at) {
  const [x, y] = [axes[across].values, axes[up].values];
  const clip = (u) => Math.min(Math.max(u, 0), 1);
  const u = plane(across, up, at, (p) => (metric.kinds[p] ? null : clip(scale.u(metric.values[p]))));
  const lines = levelLines(x, y, u, scale.levels.slice(1, -1).map(scale.u));
  const z = lines.level.map((level) => (level === null ? null : level + ABOVE));
  const line = { color: "rgba(0,0,0,.5)", width: 1.5 };
  const marks = metric.marks.filter((mark) => mark.value !== null && inside(mark, [across, up], at));
  const place = ({ where, value }) => [where[across], where[up], clip(scale.u(value)) + ABOVE];
  const heightAt = (px, py) => (u[nearest(y, py)][nearest(x, px)] ?? FLOOR) + ABOVE;
  const here = [x[at[across]], y[at[up]]];
  const traces = [
    { type: "surface", x, y, z: u, surfacecolor: u, ...paint(0.72, 0.55), contours: NO_HIGHLIGHT },
    { type: "scatter3d", mode: "lines", x: lines.x, y: lines.y, z, line, hoverinfo: "skip" },
    ...gapTraces(metric, placesOf(across, up, at, FLOOR), { opacity: 0.7 }),
    ...(axes.length === 2 ? wayTraces((px, py) => between(x, y, u, px, py) + ABOVE) : []),
    ...marks.map((mark) => symbols([place(mark)], markLook(mark))),
    symbols([[...here, heightAt(...here)]], pointLook()),
  ];
  const ratio = Math.min(Math.max((x.at(-1) - x[0]) / (y.at(-1) - y[0]), 0.4), 2.5);
  const fit = Math.max(1, ratio) ** -0.5;
  const zaxis = axisLook3d("", { ...someTicks(scale), range: [FLOOR, 1.03] });
  const scene = sceneOf([across, up], { zaxis, aspectratio: { x: fit * ratio, y: fit, z: 0.75 * fit } });
  return { traces, layout: base({ scene, margin: NO_MARGIN }), heightAt };
}

const NO_MARGIN = { l: 0, r: 0, t: 0, b: 0 };
const NO_HIGHLIGHT = { x: { highlight: false }, y: { highlight: false }, z: { highlight: false } };

/** The colours of a surface whose values go from 0 to 1, and the light on it. */
function paint(ambient, diffuse) {
  const lighting = { ambient, diffuse, specular: 0.05, roughness: 0.9, fresnel: 0.02 };
  return { cmin: 0, cmax: 1, colorscale: colorScale(), showscale: false, hoverinfo: "none", lighting };
}

const pointLook = () => ({ size: 10, color: color("--ink"), line: { color: color("--paper"), width: 1 } });

/** About seven of a scale's levels, as ticks. */
function someTicks(scale) {
  const step = Math.ceil(scale.levels.length / 7);
  const shown = [...scale.levels.keys()].filter((i) => i % step === 0);
  return { tickvals: shown.map((i) => scale.u(scale.levels[i])), ticktext: shown.map((i) => scale.texts[i]) };
}

/** u at a place between grid points: bilinear, on the floor where there is no value. */
function between(x, y, u, px, py) {
  const clip = (v, low, high) => Math.min(Math.max(v, low), high);
  const cell = (values, at) =>
    clip(
      values.findLastIndex((v) => v <= at),
      0,
      values.length - 2,
    );
  const [i, j] = [cell(x, px), cell(y, py)];
  const s = clip((px - x[i]) / (x[i + 1] - x[i]), 0, 1);
  const t = clip((py - y[j]) / (y[j + 1] - y[j]), 0, 1);
  const [a, b, c, d] = [u[j][i], u[j][i + 1], u[j + 1][i], u[j + 1][i + 1]];
  return [a, b, c, d].includes(null) ? FLOOR : (1 - t) * ((1 - s) * a + s * b) + t * ((1 - s) * c + s * d);
}

function axisLook3d(title, more) {
  return {
    title: { text: escaped(title), font: { size: 11 } },
    gridcolor: color("--line"),
    zerolinecolor: color("--line"),
    showbackground: false,
    showspikes: false,
    tickfont: { size: 10 },
    nticks: 6,
    ...more,
  };
}

function sceneOf(drawn, more) {
  const [elevation, azimuth, far] = [(35 * Math.PI) / 180, (-60 * Math.PI) / 180, 2.2];
  const eye = {
    x: far * Math.cos(elevation) * Math.cos(azimuth),
    y: far * Math.cos(elevation) * Math.sin(azimuth),
    z: far * Math.sin(elevation),
  };
  const looks = Object.fromEntries(
    drawn.map((k, i) => [`${"xyz"[i]}axis`, axisLook3d(axes[k].label, { range: ends(axes[k].values) })]),
  );
  return {
    ...looks,
    aspectmode: "manual",
    camera: { eye, center: { x: 0, y: 0, z: -0.16 } },
    dragmode: "turntable",
    ...more,
  };
}

/** The volume's surface of one level; after it the outlines of the three slices, and last the point at. */
function volumeFigure(metric, scale, level, at) {
  const places = [0, 1, 2].map((k) => {
    const after = shape.slice(k + 1).reduce((n, length) => n * length, 1);
    return Array.from(metric.values, (_, p) => axes[k].values[Math.floor(p / after) % shape[k]]);
  });
  const [x, y, z] = places;
  const value = Array.from(metric.values, (v, p) => (metric.kinds[p] ? null : scale.u(v)));
  const none = { show: false };
  const levels = { isomin: level, isomax: level, surface: { count: 1 }, caps: { x: none, y: none, z: none } };
  const line = { color: color("--muted"), width: 2 };
  const borders = [0, 1, 2].map((through) => outline(through, at));
  const traces = [
    { type: "isosurface", x, y, z, value, ...levels, ...paint(0.85, 0.5), opacity: 0.75 },
    ...borders.map((border) => ({ type: "scatter3d", mode: "lines", ...border, line, hoverinfo: "skip" })),
    ...metric.marks.map((mark) => symbols([mark.where], markLook(mark))),
    symbols([axes.map((axis, k) => axis.values[at[k]])], pointLook()),
  ];
  const scene = sceneOf([0, 1, 2], { aspectratio: { x: 1, y: 1, z: 1 } });
  return { traces, layout: base({ scene, margin: NO_MARGIN }) };
}

/** The border of a slice of the volume. */
function outline(through, at) {
  const turns = [0, 1, 1, 0, 0]; // to the low end of an axis, or to the high one
  const [first] = [0, 1, 2].filter((k) => k !== through);
  const place = (k) => {
    if (k === through) return turns.map(() => axes[k].values[at[k]]);
    return (k === first ? turns : [0, 0, 1, 1, 0]).map((end) => ends(axes[k].values)[end]);
  };
  return { x: place(0), y: place(1), z: place(2) };
}
