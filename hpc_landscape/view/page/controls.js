// What the page tells of the metric that it shows, and the controls.

function tellScale() {
  const metric = state.metric;
  const { log, low, high } = asked();
  const usual = log && metric.log ? metric.log.levels : metric.linear.levels;
  $("metric").value = data.metrics.indexOf(metric);
  $("log").disabled = metric.log === null;
  $("log").checked = log && metric.log !== null;
  $("linear").checked = !$("log").checked;
  const none = metric.finite ? "no value is positive: no log scale" : "there is no finite value";
  const some = `${metric.notPositive} values are not positive: at the low end`;
  $("why").textContent = metric.log === null ? none : $("log").checked && metric.notPositive ? some : "";
  $("low").placeholder = short(usual[0]);
  $("high").placeholder = short(usual.at(-1));
  $("low").value = low ?? "";
  $("high").value = high ?? "";
}

function tellLegend() {
  const metric = state.metric;
  const items = metric.marks.map((m) => [MARKS[m.style].symbol, m.style === "best" ? BEST : "", m.label]);
  if (metric.barrier) {
    const { height, where } = metric.barrier;
    const [from, to] = metric.barrier.between;
    const place = where.map((x, k) => `${axes[k].name} = ${short(x)}`).join(", ");
    const barrier = `barrier between ${from} and ${to}`;
    items.push(["line", BEST, height > 0 ? `${barrier}: ${short(height)} at ${place}` : `no ${barrier}`]);
  }
  data.trajectories.forEach((way, k) =>
    items.push(["way", WAYS[k % WAYS.length], way.name || "trajectory of the training"]),
  );
  metric.gaps.forEach((count, kind) => {
    if (!count) return;
    const text = `${GAPS[kind].word}: ${count} point${count > 1 ? "s" : ""}`;
    items.push([GAPS[kind].symbol, "", text, GAPS[kind].color]);
  });
  const rows = items.map(([symbol, paint, text, ground]) => make("li", {}, swatch(symbol, paint, ground), text));
  $("legend").replaceChildren(...rows);
  $("key").hidden = !items.length;
}

const SHAPES = {
  star: "M8 1l2.1 4.6 5 .5-3.8 3.3 1.1 4.9L8 11.7l-4.4 2.6 1.1-4.9L.9 6.1l5-.5z",
  diamond: "M8 2l5 6-5 6-5-6z",
  square: "M3 3h10v10H3z",
  "triangle-up": "M8 2l6 11H2z",
  "triangle-up-open": "M8 3l5 9H3z",
  "triangle-down-open": "M8 13l5-9H3z",
  "circle-open": "M8 2.5a5.5 5.5 0 1 0 .01 0z",
  "x-thin-open": "M3 3l10 10M13 3L3 13",
  line: "M1 8h14",
  way: "M1 12l5-6 4 4 5-7",
};

/** A mark as the legend shows it. */
function swatch(symbol, paint, ground) {
  const draw = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const filled = !ground && !paint;
  const svg = draw("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" });
  if (ground) svg.append(draw("rect", { width: 16, height: 16, fill: color(ground) }));
  const stroke = { stroke: paint || (filled ? "#000" : color("--ink")), "stroke-width": paint ? 2 : 1.2 };
  svg.append(draw("path", { d: SHAPES[symbol], fill: filled ? "white" : "none", ...stroke }));
  return svg;
}

function tellHead() {
  $("title").textContent = data.title;
  $("title").hidden = !data.title;
  $("description").textContent = data.description;
  $("file").textContent = data.file;
  $("info").textContent = data.info;
  const notes = data.notes.map((text) => [text]);
  if (data.done < data.points && !data.refined) {
    const share = Math.min(Math.max((100 * data.done) / data.points, 0.1), 99.9).toFixed(1);
    const bar = make("progress", { max: data.points, value: data.done, "aria-label": "points computed" });
    const part = `${data.done} of ${data.points} points (${share}%) are computed`;
    notes.unshift([bar, `Not finished: ${part}; the others have no value yet.`]);
  }
  if (!webgl && along.length > 1) notes.push(["This browser has no WebGL, so the surface is left out."]);
  if (!along.length) notes.push(["The file has one point: these are its numbers."]);
  $("controls").hidden = $("plots").hidden = !along.length;
  $("notes").replaceChildren(...notes.map((note) => make("p", { class: "note" }, ...note)));
}

// The controls

function addControls() {
  data.metrics.forEach((metric, i) => $("metric").append(make("option", { value: i }, metric.label)));
  for (const name of Object.keys(data.maps)) $("colors").append(make("option", { value: name }, name));
  $("colors").value = state.colors;
  $("coloring").hidden = along.length === 1;
  $("view").hidden = false;
  if (along.length === 1 && data.metrics.length > 1) addBoxes();
  $("metric").addEventListener("change", () => {
    state.metric = data.metrics[$("metric").value];
    const boxes = [...$("also").querySelectorAll("input")];
    boxes.forEach((box, i) => (box.disabled = data.metrics[i] === state.metric));
    tellMistake("");
    draw();
  });
  for (const id of ["log", "linear", "low", "high"]) $(id).addEventListener("change", ask);
  $("reset").addEventListener("click", () => {
    $("low").value = $("high").value = "";
    ask();
  });
  $("colors").addEventListener("change", () => {
    state.colors = $("colors").value;
    draw();
  });
  $("view").addEventListener("click", drawAfresh);
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("theme").addEventListener("click", () => setTheme(isDark() ? "light" : "dark"));
  darkness.addEventListener("change", () => setTheme(darkness.matches ? "dark" : "light"));
}

/** Draw on the scale that the controls ask for, unless it contradicts itself: then say so. */
function ask() {
  const [low, high] = ["low", "high"].map((id) => ($(id).value === "" ? null : Number($(id).value)));
  const wanted = { log: $("log").checked, low, high };
  const mistake = mistakeIn(state.metric, wanted);
  tellMistake(mistake);
  if (mistake) return;
  state.asked.set(state.metric, wanted);
  draw();
}

function tellMistake(text) {
  $("mistake").textContent = text;
  for (const id of ["low", "high"]) $(id).setAttribute("aria-invalid", text !== "");
}

/** A box for each metric that a line's panels can show beside the first. */
function addBoxes() {
  $("also").hidden = false;
  for (const metric of data.metrics) {
    const box = make("input", { type: "checkbox" });
    box.checked = state.also.has(metric);
    box.disabled = metric === state.metric;
    box.addEventListener("change", () => {
      state.also[box.checked ? "add" : "delete"](metric);
      draw();
    });
    $("also").append(make("label", {}, box, metric.label));
  }
}
