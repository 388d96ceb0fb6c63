// The panels: what each shows, and how the mark of the current point moves in it.

const OPTIONS = { displaylogo: false, responsive: true, typesetMath: false, showAxisDragHandles: false }; // of plotly
const FLAT_BUTTONS = [["toImage", "zoom2d", "pan2d", "resetScale2d"]]; // none that sends anything anywhere
const SOLID_BUTTONS = [["toImage", "zoom3d", "pan3d", "tableRotation", "orbitRotation", "resetCameraDefault3d"]];

const panels = [];
const webgl = hasWebGL();

function hasWebGL() {
  try {
    return Boolean(document.createElement("canvas").getContext("webgl"));
  } catch {
    return false;
  }
}

/**
 * Add a panel. title: gives its heading; drawn: the axes whose coordinates plotly tells of it; figure: gives its traces and layout;
 * move(panel, at): moves its mark to a point; buttons: plotly's.
 */
function addPanel(title, drawn, figure, move, buttons) {
  const graph = make("div", { class: "graph" });
  const heading = make("h2");
  const keyed = drawn.slice(0, 2);
  const keys = `the arrow keys move the point along ${keyed.map((k) => axes[k].name).join(" and ")}`;
  const element = make("div", { class: "plot", tabindex: 0, role: "application" }, heading, graph);
  element.addEventListener("keydown", (event) => moveByKey(event, keyed));
  $("plots").append(element);
  const panel = { element, graph, drawn, figure, move, buttons };
  panel.tell = () => {
    heading.textContent = title();
    element.setAttribute("aria-label", `${title()}; ${keys}`);
  };
  panels.push(panel);
  return panel;
}

function addPanels() {
  if (along.length === 1) {
    $("plots").className = "line";
    addPanel(() => `Along ${axes[along[0]].name}`, along, lines, moveCross, FLAT_BUTTONS);
  } else if (along.length === 2) {
    const surface = () => surfaceFigure(state.metric, scale(), ...along, state.at);
    const map = () => mapFigure(state.metric, scale(), ...along, state.at, true);
    if (webgl) addPanel(() => `Surface of ${state.metric.label}`, along, surface, moveOnSurface, SOLID_BUTTONS);
    addPanel(() => `Contours of ${state.metric.label}`, along, map, moveCross, FLAT_BUTTONS);
    if (data.summaries.length) {
      const own = () => mapFigure(spread(), scaleOf(spread(), state.asked.get(spread())), ...along, state.at, true);
      addPanel(() => `Contours of ${spread().label}`, along, own, moveCross, FLAT_BUTTONS);
    }
  } else if (along.length === 3) {
    $("plots").className = "volume";
    const volume = () => volumeFigure(state.metric, scale(), state.level, state.at);
    const title = () => `Where ${state.metric.label} has one level`;
    if (webgl) addLevel(addPanel(title, along, volume, moveInVolume, SOLID_BUTTONS));
    [0, 1, 2].reverse().forEach(addSlice);
  }
}

/** The metric, and below it those whose boxes are ticked. */
function lines() {
  const shown = [state.metric, ...data.metrics.filter((m) => state.also.has(m) && m !== state.metric)];
  const scales = shown.map((metric) => scaleOf(metric, state.asked.get(metric)));
  return lineFigure(shown, scales, state.at);
}

function addSlice(through) {
  const drawn = [0, 1, 2].filter((k) => k !== through);
  const { name, values } = axes[through];
  const title = () => `Slice at ${name} = ${short(values[state.at[through]])}`;
  const figure = () => mapFigure(state.metric, scale(), ...drawn, state.at, through === 2);
  addPanel(title, drawn, figure, moveSlice, FLAT_BUTTONS);
}

/** The slider of the level that a volume's surface has. */
function addLevel(panel) {
  const slider = make("input", { type: "range", min: 0.01, max: 0.99, step: 0.01, id: "level" });
  const output = make("output", { for: "level" });
  slider.value = state.level;
  panel.tellLevel = () => {
    output.textContent = short(scale().value(state.level));
    slider.setAttribute("aria-valuetext", `${state.metric.label} ${output.textContent}`);
  };
  slider.addEventListener("input", () => {
    state.level = Number(slider.value);
    panel.tellLevel();
    soon("level", () => Plotly.restyle(panel.graph, { isomin: state.level, isomax: state.level }, [0]));
  });
  panel.element.append(make("div", { class: "level" }, make("label", { for: "level" }, "Level"), slider, output));
}

const scale = () => scaleOf(state.metric, asked());

/** Of an ensemble, the metric's standard deviation between sets of directions, where the page has it. */
const spread = () => data.metrics[data.summaries[data.metrics.indexOf(state.metric)].spread] ?? state.metric;

/** Draw everything anew; camera and zoom stay. */
function draw() {
  panels.forEach(drawPanel);
  tellScale();
  tellLegend();
  tellPoint();
}

function drawPanel(panel) {
  const { traces, layout, heightAt } = panel.figure();
  Object.assign(panel, { heightAt, last: traces.length - 1, at: state.at });
  panel.tell();
  panel.tellLevel?.();
  const drawn = Plotly.react(panel.graph, traces, layout, { ...OPTIONS, modeBarButtons: panel.buttons });
  if (!panel.listens) drawn.then(() => listen(panel));
  panel.listens = true;
}

/** Draw everything as at first, camera and zoom too. */
function drawAfresh() {
  for (const panel of panels) {
    Plotly.purge(panel.graph);
    panel.listens = false;
  }
  draw();
}

/** Move the mark of the current point, in every panel. */
function mark() {
  const at = state.hovered ?? state.at;
  for (const panel of panels) panel.move(panel, at);
  tellPoint();
}

function moveCross({ graph }, at) {
  const values = along.map((k) => axes[k].values);
  const indices = along.map((k) => at[k]);
  Plotly.relayout(graph, { shapes: cross(values, indices) });
}

// Each change of a scene keeps plotly from turning it for half a second: none where the pointer is about to.

function moveOnSurface(panel, at) {
  const { graph, heightAt, last } = panel;
  if ((state.hovered && panel === state.under) || String(panel.at) === String(at)) return;
  panel.at = at;
  const [x, y] = along.map((k) => axes[k].values[at[k]]);
  Plotly.restyle(graph, { x: [[x]], y: [[y]], z: [[heightAt(x, y)]] }, [last]);
}

// A volume's slices go through the point selected, and stay where they are while the pointer moves.

function moveInVolume(panel) {
  if (panel.at === state.at) return;
  panel.at = state.at;
  const places = [0, 1, 2].map((through) => outline(through, state.at));
  const [x, y, z] = axes.map((axis, k) => [axis.values[state.at[k]]]);
  places.push({ x, y, z });
  const update = Object.fromEntries(["x", "y", "z"].map((name) => [name, places.map((place) => place[name])]));
  Plotly.restyle(panel.graph, update, [1, 2, 3, panel.last]);
}

function moveSlice(panel) {
  if (panel.at !== state.at) drawPanel(panel);
}
