// The page: its state, its controls, and what they do.

const $ = (id) => document.getElementById(id);
const IN_TIP = 12; // metrics; the readout beside the picture has all

const first = data.metrics[data.shown[0]];
const state = {
  metric: first,
  also: new Set(data.shown.slice(1).map((i) => data.metrics[i])),
  asked: new Map(data.metrics.map((metric) => [metric, { log: metric.prefersLog, low: null, high: null }])),
  colors: data.start.colors,
  at: axes.map((axis) => nearest(axis.values, 0)), // the point selected
  hovered: null, // the point under the pointer
  under: null, // the panel that it was last over
  level: 0.35, // of the volume's surface, from 0, the lowest, to 1
};
state.asked.set(first, { log: data.start.log, low: data.start.low, high: data.start.high });

/** A new element; its text is never markup. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const asked = () => state.asked.get(state.metric);

// The pointer

const waiting = new Map();

/** Do it with the next frame, once, however often it is asked for until then. */
function soon(name, what) {
  if (!waiting.has(name))
    requestAnimationFrame(() => {
      const last = waiting.get(name);
      waiting.delete(name);
      last();
    });
  waiting.set(name, what);
}

function listen(panel) {
  panel.graph.on("plotly_hover", (event) => {
    const point = event.points[0];
    const at = pointOf(panel, point);
    showTip(point, at);
    if (String(at) === String(state.hovered)) return; // plotly tells it again with every frame that it draws
    Object.assign(state, { hovered: at, under: panel });
    soon("mark", mark);
  });
  panel.graph.on("plotly_unhover", () => {
    state.hovered = null;
    $("tip").hidden = true;
    soon("mark", mark);
  });
  panel.graph.on("plotly_click", (event) => select(pointOf(panel, event.points[0])));
}

/** The indices of the grid point that plotly speaks of. */
function pointOf(panel, point) {
  const at = [...state.at];
  panel.drawn.forEach((k, i) => (at[k] = nearest(axes[k].values, point["xyz"[i]])));
  return at;
}

function select(at) {
  state.hovered = null;
  state.at = at;
  for (const k of along) tellSlider(k);
  soon("mark", mark);
}

const pointer = { x: 0, y: 0 };
document.addEventListener("pointermove", ({ clientX, clientY }) => {
  Object.assign(pointer, { x: clientX, y: clientY });
  if (!$("tip").hidden) placeTip();
});

function showTip(point, at) {
  const way = data.trajectories[point.data.meta?.way];
  const i = point.pointNumber;
  const rows = way ? checkpointRows(way, i) : rowsOf(at, short).slice(0, axes.length + IN_TIP);
  $("tip").replaceChildren(table(rows));
  $("tip").hidden = false;
  placeTip();
}

function checkpointRows(way, i) {
  const [x, y] = [way.x[i], way.y[i]].map(short);
  const rows = Object.entries({ [way.name || "checkpoint"]: way.labels[i], x, y });
  const distance = way.distance[i];
  return typeof distance === "number" ? [...rows, ["distance from the plane", short(distance)]] : rows;
}

function placeTip() {
  const { offsetWidth: width, offsetHeight: height } = $("tip");
  const left = pointer.x + 18 + width > innerWidth ? pointer.x - 18 - width : pointer.x + 18;
  const top = Math.min(pointer.y + 14, innerHeight - height - 4);
  Object.assign($("tip").style, { left: `${Math.max(left, 4)}px`, top: `${Math.max(top, 4)}px` });
}

// The point

/** Coordinates and every metric of a point, as rows of a table. */
function rowsOf(at, digits) {
  const point = flat(at);
  return [
    ...axes.map((axis, k) => [axis.name, digits(axis.values[at[k]])]),
    ...data.metrics.map((metric) => [metric.label, told(metric, point, digits), metric === state.metric]),
  ];
}

function table(rows) {
  const body = make("tbody");
  for (const [name, value, now] of rows) {
    body.append(make("tr", now ? { class: "now" } : {}, make("th", { scope: "row" }, name), make("td", {}, value)));
  }
  return make("table", {}, body);
}

function tellPoint() {
  $("readout").replaceChildren(table(rowsOf(state.hovered ?? state.at, full)));
}

function addSliders() {
  for (const k of along) {
    const slider = make("input", {
      type: "range",
      min: 0,
      max: shape[k] - 1,
      step: 1,
      id: `at-${k}`,
      "aria-label": axes[k].label,
    });
    slider.addEventListener("input", () => select(state.at.map((i, axis) => (axis === k ? Number(slider.value) : i))));
    $("sliders").append(make("label", {}, axes[k].name, slider));
    tellSlider(k);
  }
}

function tellSlider(k) {
  const slider = $(`at-${k}`);
  slider.value = state.at[k];
  slider.setAttribute("aria-valuetext", `${axes[k].name} = ${short(axes[k].values[state.at[k]])}`);
}

/** Arrow keys move the point selected along these axes, with Shift by ten; Home takes it to the model. */
function moveByKey(event, drawn) {
  const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowUp: [1, 1], ArrowDown: [1, -1] };
  if (event.target !== event.currentTarget || event.ctrlKey || event.altKey || event.metaKey) return;
  let at = [...state.at];
  if (event.key === "Home") {
    at = axes.map((axis) => nearest(axis.values, 0));
  } else if (event.key in steps) {
    const [which, step] = steps[event.key];
    const k = drawn[which] ?? drawn[0];
    at[k] = Math.min(Math.max(at[k] + step * (event.shiftKey ? 10 : 1), 0), shape[k] - 1);
  } else {
    return;
  }
  event.preventDefault();
  select(at);
}

const darkness = matchMedia("(prefers-color-scheme: dark)");

const isDark = () => document.documentElement.dataset.theme === "dark";

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  if (panels.length) draw();
}

setTheme(darkness.matches ? "dark" : "light");
tellHead();
addControls();
addSliders();
addPanels();
draw();
