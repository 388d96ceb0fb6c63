// What plotly draws. Texts of the file go to plotly in one place, through escaped().

const MARKS = {
  model: { symbol: "star", size: 14 },
  second: { symbol: "diamond", size: 10 },
  third: { symbol: "square", size: 9 },
  fourth: { symbol: "triangle-up", size: 11 },
  best: { symbol: "circle-open", size: 15 },
};
// In three dimensions plotly draws symbols as letters; these are in every font.
const SOLID = {
  star: "diamond",
  "triangle-up": "diamond-open",
  "x-thin-open": "square-open",
  "triangle-up-open": "diamond",
  "triangle-down-open": "square",
};
const BEST = "#e8384f";
const WAYS = ["#e8384f", "#ff8c1a", "#b43fd6", "#1d1d1d", "#ff8fc0", "#8c5a2b"];
const MOST_SYMBOLS = 1500; // of a kind of gap: more are shown by their colour alone

/** plotly takes a text for a kind of HTML; this keeps it a text. */
const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const colorScale = () => data.maps[state.colors].map((c, i, all) => [i / (all.length - 1), c]);

/** What all figures have in common. */
function base(more) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: color("--ink"), family: getComputedStyle(document.body).fontFamily, size: 12 },
    margin: { l: 55, r: 15, t: 12, b: 45 },
    showlegend: false,
    hovermode: "closest",
    uirevision: "kept", // camera and zoom, whatever is switched
    modebar: { bgcolor: "rgba(0,0,0,0)", color: color("--muted"), activecolor: color("--ink") },
    ...more,
  };
}

function axisLook(title, more) {
  const line = color("--line");
  return {
    title: { text: escaped(title), standoff: 8 },
    gridcolor: line,
    linecolor: line,
    zeroline: false,
    ticks: "outside",
    tickcolor: line,
    automargin: true,
    ...more,
  };
}

const ends = (values) => [values[0], values.at(-1)];

/** Whether a mark lies in what is drawn: it may be off along axes that are not, here through the point at. */
const inside = (mark, drawn, at) =>
  axes.every(({ values }, k) => drawn.includes(k) || Math.abs(mark.where[k] - values[at[k]]) <= 1e-9);

function markLook({ style }) {
  const { symbol, size } = MARKS[style];
  return {
    symbol,
    size,
    color: style === "best" ? BEST : "white",
    line: { color: style === "best" ? BEST : "black", width: style === "best" ? 2 : 1 },
  };
}

/** Symbols at these places, (x, y) or (x, y, z) each. */
function symbols(places, look, more) {
  const [x, y, z] = [0, 1, 2].map((k) => places.map((place) => place[k]));
  const common = { mode: "markers", hoverinfo: "skip", x, y, ...more };
  if (places[0].length === 2) return { type: "scatter", cliponaxis: false, marker: look, ...common };
  const marker = { ...look, symbol: SOLID[look.symbol] ?? look.symbol, size: look.size / 2 };
  return { type: "scatter3d", z, marker, ...common };
}

/** The points without a value, a trace for each reason. places: a Map from points to where they are drawn. */
function gapTraces(metric, places, more) {
  return GAPS.flatMap((gap, kind) => {
    const there = [...places.keys()].filter((point) => gap && metric.kinds[point] === kind);
    if (!there.length || there.length > MOST_SYMBOLS) return [];
    const line = { color: color("--ink"), width: 1 };
    const look = { symbol: gap.symbol, size: kind === 1 ? 3 : 7, color: color("--muted"), line };
    return [
      symbols(
        there.map((point) => places.get(point)),
        look,
        more,
      ),
    ];
  });
}

/** Bands of colour for the kinds of gap. */
function gapColors() {
  const names = GAPS.slice(1).map((gap) => color(gap.color));
  return names.flatMap((c, i) => [
    [i / names.length, c],
    [(i + 1) / names.length, c],
  ]);
}

/** Two lines that meet at a point; one where there is one axis. */
function cross([x, y], [i, j]) {
  const look = { type: "line", line: { color: color("--ink"), width: 1, dash: "dot" }, opacity: 0.7 };
  const vertical = { ...look, xref: "x", yref: y ? "y domain" : "paper", x0: x[i], x1: x[i], y0: 0, y1: 1 };
  return y ? [vertical, { ...look, xref: "x domain", yref: "y", x0: 0, x1: 1, y0: y[j], y1: y[j] }] : [vertical];
}

/** The checkpoints' ways; of height(x, y) where they are drawn on a surface. */
function wayTraces(height) {
  return data.trajectories
    .filter((way) => way.x.length)
    .map((way, k) => {
      const paint = WAYS[k % WAYS.length];
      const look = { color: paint, size: height ? 6 : 5, line: { color: "white", width: height ? 0 : 1 } };
      const line = { color: paint, width: height ? 4 : 2 };
      const places = way.x.map((x, i) => [x, way.y[i], ...(height ? [height(x, way.y[i])] : [])]);
      return symbols(places, look, {
        mode: "lines+markers",
        line,
        hoverinfo: "none",
        meta: { way: k },
        cliponaxis: true,
      });
    });
}
