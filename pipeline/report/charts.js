"use strict";
// Small SVG charts: lines with bands and points with whiskers, and stacked areas. A pointer shows the values of a step.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 460, HEIGHT = 210, LEFT = 46, RIGHT = 10, TOP = 8, BOTTOM = 24;

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

function shape(parent, name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text != null) node.textContent = text;
  parent.append(node);
  return node;
}

function short(x) {
  if (x == null) return "–";
  const size = Math.abs(x);
  if (x === 0) return "0";
  if (size >= 1e5 || size < 1e-3) return x.toExponential(1).replace("e+", "e");
  return String(Number(x.toPrecision(3)));
}

function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw) || raw;
  const found = [];
  for (let x = Math.ceil(low / step - 1e-9) * step; x <= high + step * 1e-9; x += step) found.push(Math.abs(x) < step * 1e-9 ? 0 : x);
  return found;
}

function canvas(title) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", title);
  return svg;
}

function frame(title, steps, low, high) {
  if (!(high > low)) { const pad = Math.abs(low) || 1; low -= pad / 2; high += pad / 2; }
  const first = Math.min(...steps), last = Math.max(...steps, first + 1);
  const svg = canvas(title);
  const x = (step) => LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / (last - first);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low);
  for (const value of ticks(low, high, 4)) {
    shape(svg, "line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) });
    shape(svg, "text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, short(value));
  }
  for (const step of ticks(first, last, 6)) {
    if (Number.isInteger(step)) shape(svg, "text", { x: x(step), y: HEIGHT - 8, "text-anchor": "middle" }, step);
  }
  return { svg, x, y, first, last };
}

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (value != null) { low = Math.min(low, value); high = Math.max(high, value); }
  return low <= high ? [low, high] : [0, 1];
}

function card(title, picture, legend, describe, steps, chart) {
  const readout = element("div", { class: "readout" }, "\u00a0");
  const line = shape(picture, "line", { class: "axis", y1: TOP, y2: HEIGHT - BOTTOM, x1: -9, x2: -9 });
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * WIDTH;
    let nearest = 0;
    steps.forEach((step, i) => { if (Math.abs(chart.x(step) - at) < Math.abs(chart.x(steps[nearest]) - at)) nearest = i; });
    line.setAttribute("x1", chart.x(steps[nearest])); line.setAttribute("x2", chart.x(steps[nearest]));
    readout.textContent = `step ${steps[nearest]}: ${describe(nearest)}`;
  });
  const keys = legend.map(([name, colour]) => {
    const swatch = element("i"); swatch.style.background = colour;
    return element("span", {}, swatch, name);
  });
  return element("div", { class: "card chart" }, element("h3", {}, title), picture, element("div", { class: "legend" }, ...keys), readout);
}

// series: [{name, colour, steps, values, band?: {step: [low, high]}, points?: [{step, value, low, high}]}]
function lineChart(title, series, { low = null, high = null, thin = false, legend = true } = {}) {
  series = series.filter((one) => one.values.some((value) => value != null) || (one.points || []).length);
  if (!series.length) return null;
  const steps = [...new Set(series.flatMap((one) => [...one.steps, ...(one.points || []).map((point) => point.step)]))].sort((a, b) => a - b);
  const range = extent(series.flatMap((one) => [...one.values, ...(one.points || []).flatMap((point) => [point.low, point.high])]));
  const chart = frame(title, steps, low ?? range[0], high ?? range[1]);
  for (const one of series) {
    const band = Object.entries(one.band || {}).map(([step, ends]) => [Number(step), ...ends]).sort((a, b) => a[0] - b[0]);
    if (band.length > 1) {
      const up = band.map(([step, , top]) => `${chart.x(step)},${chart.y(top)}`), down = band.map(([step, bottom]) => `${chart.x(step)},${chart.y(bottom)}`).reverse();
      shape(chart.svg, "polygon", { points: [...up, ...down].join(" "), style: `fill:${one.colour};opacity:.14` });
    }
    let path = "", pen = "M";
    one.values.forEach((value, i) => {
      if (value == null) { pen = path && one.gaps ? "M" : pen; return; }
      path += `${pen}${chart.x(one.steps[i]).toFixed(1)} ${chart.y(value).toFixed(1)}`; pen = "L";
    });
    shape(chart.svg, "path", { d: path || "M0 0", style: `fill:none;stroke:${one.colour};stroke-width:${thin ? 1 : 1.8};stroke-linejoin:round` });
    for (const point of one.points || []) {
      const stroke = `stroke:${one.colour};stroke-width:1.6`;
      shape(chart.svg, "line", { x1: chart.x(point.step), x2: chart.x(point.step), y1: chart.y(point.low), y2: chart.y(point.high), style: stroke });
      for (const end of [point.low, point.high]) shape(chart.svg, "line", { x1: chart.x(point.step) - 4, x2: chart.x(point.step) + 4, y1: chart.y(end), y2: chart.y(end), style: stroke });
      shape(chart.svg, "circle", { cx: chart.x(point.step), cy: chart.y(point.value), r: 3.5, style: `fill:${one.colour}` });
    }
  }
  const describe = (i) => series.slice(0, 8).map((one) => {
    const at = one.steps.indexOf(steps[i]), point = (one.points || []).find((p) => p.step === steps[i]);
    if (point) return `${one.name} ${short(point.value)} [${short(point.low)}, ${short(point.high)}]`;
    return at < 0 || one.values[at] == null ? null : `${one.name} ${short(one.values[at])}`;
  }).filter(Boolean).join(", ");
  return card(title, chart.svg, legend && series.length > 0 ? series.map((one) => [one.name, one.colour]) : [], describe, steps, chart);
}

// parts: [{name, colour, values}], stacked in order; with share, each step adds up to 1
function stackedChart(title, steps, parts, { share = false, unit = "" } = {}) {
  const kept = steps.map((step, i) => i).filter((i) => parts.some((part) => part.values[i] != null));
  if (!kept.length) return null;
  const value = (part, i) => part.values[i] || 0;
  const total = (i) => parts.reduce((sum, part) => sum + value(part, i), 0);
  const size = (part, i) => share ? value(part, i) / (total(i) || 1) : value(part, i);
  const shown = kept.map((i) => steps[i]);
  const chart = frame(title, shown, 0, share ? 1 : Math.max(...kept.map(total)) || 1);
  const floor = kept.map(() => 0);
  for (const part of parts) {
    const roof = kept.map((i, n) => floor[n] + size(part, i));
    const up = kept.map((i, n) => `${chart.x(steps[i])},${chart.y(roof[n])}`), down = kept.map((i, n) => `${chart.x(steps[i])},${chart.y(floor[n])}`).reverse();
    if (kept.length === 1) shape(chart.svg, "rect", { x: chart.x(shown[0]), width: 40, y: chart.y(roof[0]), height: Math.max(0, chart.y(floor[0]) - chart.y(roof[0])), style: `fill:${part.colour}` });
    else shape(chart.svg, "polygon", { points: [...up, ...down].join(" "), style: `fill:${part.colour};stroke:var(--card);stroke-width:.7` });
    roof.forEach((top, n) => { floor[n] = top; });
  }
  const describe = (n) => parts.filter((part) => value(part, kept[n])).map((part) => `${part.name} ${share ? (100 * size(part, kept[n])).toFixed(0) + " %" : short(value(part, kept[n])) + unit}`).join(", ");
  return card(title, chart.svg, parts.map((part) => [part.name, part.colour]), describe, shown, chart);
}

// lanes: {name: [[begin, end], ...]} in seconds, in the order of colours' names; ends: [[step, second], ...]
function laneChart(title, lanes, ends, colours) {
  const names = Object.keys(colours).filter((name) => lanes[name]);
  if (!names.length || !ends.length) return null;
  const last = ends[ends.length - 1][1], height = (HEIGHT - TOP - BOTTOM - 12) / names.length;
  const svg = canvas(title);
  const x = (second) => 64 + (WIDTH - 64 - RIGHT) * Math.max(0, second) / last;
  names.forEach((name, i) => {
    const top = TOP + 12 + i * height;
    shape(svg, "text", { x: 58, y: top + height / 2 + 4, "text-anchor": "end" }, name);
    for (const [begin, end] of lanes[name]) shape(svg, "rect", { x: x(begin), width: Math.max(0.5, x(end) - x(begin)), y: top + 2, height: height - 4, style: `fill:${colours[name]}` });
  });
  for (const [step, end] of ends) {
    shape(svg, "line", { class: "axis", x1: x(end), x2: x(end), y1: TOP, y2: HEIGHT - BOTTOM });
    shape(svg, "text", { x: x(end) - 3, y: TOP + 8, "text-anchor": "end" }, step);
  }
  for (const second of ticks(0, last, 6)) shape(svg, "text", { x: x(second), y: HEIGHT - 8, "text-anchor": "middle" }, `${short(second)} s`);
  return element("div", { class: "card chart" }, element("h3", {}, title), svg);
}
