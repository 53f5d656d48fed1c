/* Small charts in SVG, drawn with the page's own colours so that they follow light and dark. Knows no study. */
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "6 3", "2 3", "8 3 2 3"];

/* An HTML element; children are nodes or texts, and texts stay texts. */
function html(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const colour = (index) => `var(--c${index % 8})`;
const dash = (index) => DASHES[Math.floor(index / 8) % DASHES.length];

/* A number as people read it: three significant digits, no exponent where it can be helped. */
function show(value) {
  if (value === null || value === undefined) return "undefined";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (Number.isInteger(value) && size > 1) return value.toLocaleString("en");
  if (size < 1e-3) return value.toExponential(1);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1) : value.toFixed(3);
}

/* Round steps over a range: 1, 2 or 5 times a power of ten. */
function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999) * power;
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) found.push(value);
  return found;
}

const tick = (value) => (Math.abs(value) >= 1e4 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(0) : String(+value.toPrecision(6)));

/* The frame of a chart: axes, grid, names; returns the node and the two scales. */
function frame(size, x, y, names) {
  const [width, height, left, bottom, top] = size;
  const sx = (v) => left + ((v - x[0]) / (x[1] - x[0] || 1)) * (width - left - 14);
  const sy = (v) => height - bottom - ((v - y[0]) / (y[1] - y[0] || 1)) * (height - bottom - top);
  const node = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${names[1]} against ${names[0]}` });
  for (const value of ticks(y[0], y[1], 4)) {
    node.append(svg("line", { class: "grid", x1: left, x2: width - 14, y1: sy(value), y2: sy(value) }));
    node.append(svg("text", { x: left - 5, y: sy(value) + 3, "text-anchor": "end" }, tick(value)));
  }
  for (const value of ticks(x[0], x[1], width > 250 ? 5 : 2)) {
    node.append(svg("text", { x: sx(value), y: height - bottom + 13, "text-anchor": "middle" }, tick(value)));
  }
  node.append(svg("text", { x: (left + width) / 2, y: height - 3, "text-anchor": "middle" }, names[0]));
  node.append(svg("text", { x: 10, y: (height - bottom + top) / 2, "text-anchor": "middle", transform: `rotate(-90 10 ${(height - bottom + top) / 2})` }, names[1]));
  return { node, sx, sy };
}

function path(series, sx, sy) {
  return series.x.map((x, i) => `${i ? "L" : "M"}${sx(x).toFixed(1)} ${sy(series.y[i]).toFixed(1)}`).join("");
}

/* Lines against steps, with a cursor that puts the values of the nearest step into the legend. */
function lineChart(chart) {
  const xs = chart.series.flatMap((s) => s.x), ys = chart.series.flatMap((s) => s.y);
  const fraction = chart.y.includes("fraction");
  const min = (list) => list.reduce((a, b) => Math.min(a, b)), max = (list) => list.reduce((a, b) => Math.max(a, b));
  const y = fraction ? [0, 1] : [Math.min(0, min(ys)), max(ys) || 1];
  const { node, sx, sy } = frame([360, 215, 46, 34, 8], [min(xs), max(xs)], y, [chart.x, chart.y]);
  const values = [];
  const keys = html("div", { class: "keys" });
  chart.series.forEach((series, i) => {
    const look = { fill: "none", stroke: colour(i), "stroke-width": 1.8, "stroke-dasharray": dash(i), "stroke-linejoin": "round" };
    node.append(svg("path", { d: path(series, sx, sy), ...look }));
    if (series.x.length < 16) series.x.forEach((x, k) => node.append(svg("circle", { cx: sx(x), cy: sy(series.y[k]), r: 2.4, fill: colour(i) })));
    values.push(html("span", {}, ""));
    keys.append(html("span", {}, svg("svg", { viewBox: "0 0 20 8" }, svg("path", { d: "M0 4H20", ...look })), `${series.name} `, values[i]));
  });
  const cursor = svg("line", { class: "cursor", y1: 8, y2: 181, visibility: "hidden" });
  node.append(cursor);
  const point = (step) => {
    chart.series.forEach((series, i) => {
      const near = series.x.reduce((best, x, k) => (Math.abs(x - step) < Math.abs(series.x[best] - step) ? k : best), 0);
      values[i].textContent = show(series.y[near]);
    });
  };
  node.addEventListener("pointermove", (event) => {
    const at = ((event.clientX - node.getBoundingClientRect().left) / node.getBoundingClientRect().width) * 360;
    const step = xs.reduce((best, x) => (Math.abs(sx(x) - at) < Math.abs(sx(best) - at) ? x : best), xs[0]);
    cursor.setAttribute("x1", sx(step));
    cursor.setAttribute("x2", sx(step));
    cursor.setAttribute("visibility", "visible");
    point(step);
  });
  node.addEventListener("pointerleave", () => (cursor.setAttribute("visibility", "hidden"), point(max(xs))));
  point(max(xs));
  return html("figure", { class: "chart" }, html("figcaption", {}, chart.title), node, keys);
}

/* One ROC curve with the diagonal of chance. */
function rocChart(name, curve) {
  const { node, sx, sy } = frame([190, 185, 38, 32, 6], [0, 1], [0, 1], ["false positive rate", "true positive rate"]);
  node.append(svg("line", { class: "chance", x1: sx(0), y1: sy(0), x2: sx(1), y2: sy(1) }));
  node.append(svg("path", { d: path(curve, sx, sy), fill: "none", stroke: colour(0), "stroke-width": 1.8 }));
  return html("figure", { class: "chart" }, html("figcaption", {}, name), node, html("div", { class: "keys" }, `AUC ${show(curve.auc)}`));
}

/* Counts; rows are the reference. The share of the row is shaded. */
function confusionTable(found) {
  const table = html("table", { class: "matrix" }, html("tr", {}, html("th", {}, "ref. \\ pred."), ...found.labels.map((label) => html("th", {}, label))));
  found.matrix.forEach((row, i) => {
    const total = row.reduce((a, b) => a + b, 0) || 1;
    const line = html("tr", {}, html("th", {}, found.labels[i]));
    for (const count of row) {
      const cell = html("td", { title: `${((100 * count) / total).toFixed(0)} % of the row` }, String(count));
      cell.style.background = `color-mix(in srgb, var(--c0) ${Math.round((45 * count) / total)}%, transparent)`;
      line.append(cell);
    }
    table.append(line);
  });
  return html("figure", { class: "chart scroll" }, html("figcaption", {}, found.title || "Classes"), table);
}
