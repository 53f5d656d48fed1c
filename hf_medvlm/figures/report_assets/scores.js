/* The upper half of the page: what was run, the scores beside their baselines, the findings, the curves. */
"use strict";

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const HEAD = read("head-data");
const STUDIES = read("study-data");
const RELATIONS = { agree: ["✓", "agrees"], contradict: ["✗", "contradicts"], missed: ["−", "missed"], added: ["+", "added"], unsure: ["~", "unsure"] };
const HEADLINES = ["findings_f1_micro", "mean_auc", "zero_shot_auc", "progression_accuracy", "i2t_recall@5", "t2i_recall@5", "closed_accuracy", "pointing_game", "bleu4", "rougeL", "cider"];
/* A property of an object itself: a finding may be called `constructor` or `__proto__`. */
const own = (object, key) => (object && Object.hasOwn(object, key) ? object[key] : undefined);
const words = (name) => own(HEAD.words, name) ?? name.replaceAll("_", " ");

function reveal(id, title) {
  document.getElementById(id).hidden = false;
  document.getElementById("nav").append(html("a", { href: `#${id}` }, title));
}

function drawHead() {
  document.title = `${HEAD.title} · hf_medvlm`;
  document.getElementById("title").textContent = HEAD.title;
  const parts = [HEAD.info.model_class, HEAD.info.dataset && `data: ${HEAD.info.dataset}`, HEAD.n && `${HEAD.n.toLocaleString("en")} ${HEAD.split} studies`, HEAD.info.created, HEAD.info.commit && `commit ${HEAD.info.commit.slice(0, 10)}`];
  document.getElementById("subtitle").textContent = parts.filter(Boolean).join(" · ");
}

/* [name, value] of the strongest trivial baseline, or null; none where the evaluation states no direction. */
function strongest(row) {
  const all = row.better === "neither" ? [] : Object.entries(row.baselines);
  return all.length ? all.reduce((best, one) => ((row.better === "higher" ? one[1] > best[1] : one[1] < best[1]) ? one : best)) : null;
}

function track(row) {
  const node = html("div", { class: "track", "aria-hidden": "true" });
  const place = (kind, low, high) => {
    const mark = html("i", { class: kind });
    mark.style.left = `${100 * Math.max(0, Math.min(1, low))}%`;
    if (high !== undefined) mark.style.width = `${100 * (Math.min(1, high) - Math.max(0, low))}%`;
    node.append(mark);
    return mark;
  };
  if (row.interval) place("range", row.interval[0], row.interval[1]);
  for (const [name, value] of Object.entries(row.baselines)) place("base", value).title = `${words(name)} ${show(value)}`;
  place("dot", row.value);
  return node;
}

function drawScores() {
  if (!HEAD.groups.length) return;
  reveal("scores", "Scores");
  const rows = HEAD.groups.flatMap((group) => group.rows);
  const chosen = HEADLINES.map((name) => rows.find((row) => row.name === name && row.value !== null)).filter(Boolean);
  for (const row of (chosen.length ? chosen : rows).slice(0, 4)) {
    const best = strongest(row);
    document.getElementById("tiles").append(html("div", { class: "tile" }, html("small", {}, words(row.name)), html("b", {}, show(row.value)),
      html("small", {}, row.interval ? `${show(row.interval[0])} to ${show(row.interval[1])}` : "no interval"),
      html("small", {}, best ? `trivial: ${show(best[1])} (${words(best[0])})` : "no baseline")));
  }
  const heads = [html("th", {}, "Score (open for its protocol)"), html("th", { class: "num" }, "Value"), html("th", { class: "num" }, "95 % interval"), html("th", { class: "hide-small" }, "0 to 1 ", html("span", { class: "key-base" }, "|"), " trivial")];
  const wide = Math.max(1, ...HEAD.groups.map((group) => baselinesOf(group).length));
  const table = html("table", {}, html("tr", {}, ...heads, html("th", { class: "num", colspan: wide }, "Trivial baselines")));
  for (const group of HEAD.groups) {
    const labels = baselinesOf(group);
    table.append(html("tr", { class: "group" }, html("td", { colspan: 4 }, group.title), ...labels.map((label) => html("td", { class: "num baseline" }, words(label)))));
    for (const row of group.rows) table.append(scoreRow(row, labels));
  }
  document.getElementById("score-table").append(table, ...HEAD.missing.map((line) => html("p", { class: "muted" }, line)));
}

/* The baselines that some score of the group stands beside, in the order of the results. */
function baselinesOf(group) {
  return HEAD.baselines.filter((label) => group.rows.some((row) => Object.hasOwn(row.baselines, label)));
}

function scoreRow(row, labels) {
  const best = strongest(row);
  const beaten = best && row.value !== null && (row.better === "higher" ? row.value <= best[1] : row.value >= best[1]);
  const called = [words(row.name), " ", html("code", { class: "muted" }, row.name)];
  const name = html("div", {}, ...(row.protocol ? [html("details", {}, html("summary", {}, ...called), html("p", {}, row.protocol))] : called));
  const trivial = labels.map((label) => {
    const value = own(row.baselines, label);
    return html("td", { class: "num baseline", "data-label": value === undefined ? undefined : words(label) }, value === undefined ? "" : show(value));
  });
  return html("tr", {}, html("td", {}, name, beaten ? html("div", { class: "worse" }, "no better than trivial") : null), html("td", { class: "num" }, show(row.value)),
    html("td", { class: "num" }, row.interval ? `${show(row.interval[0])} – ${show(row.interval[1])}` : "–"),
    html("td", { class: "hide-small" }, row.fraction ? track(row) : ""), ...trivial);
}

/* finding -> relation -> number of studies */
function countRelations() {
  const counts = new Map();
  for (const study of STUDIES) {
    for (const [name, , , how] of study.findings) {
      if (!counts.has(name)) counts.set(name, {});
      counts.get(name)[how] = (counts.get(name)[how] ?? 0) + 1;
    }
  }
  return counts;
}

function drawFindings(choose) {
  const counts = countRelations();
  const measured = new Map(HEAD.per_finding.map((row) => [row.name, row]));
  const names = [...new Set([...measured.keys(), ...counts.keys()])];
  if (!names.length && !HEAD.confusion.length) return;
  reveal("findings", "Findings");
  drawAudit();
  const columns = ["auc", "ap", "f1", "n"].filter((key) => HEAD.per_finding.some((row) => row[key] !== undefined));
  const errors = (name) => ["contradict", "missed", "added"].reduce((sum, how) => sum + (counts.get(name)?.[how] ?? 0), 0);
  names.sort((a, b) => errors(b) - errors(a) || a.localeCompare(b));
  const order = Object.keys(RELATIONS);
  const table = html("table", {}, html("tr", {}, html("th", {}, "Finding"), ...columns.map((key) => html("th", { class: key === "n" ? "num" : "" }, key === "n" ? "n" : key.toUpperCase())),
    ...(STUDIES.length ? [html("th", {}, "Studies, by how the two sides stand (click to see them)")] : [])));
  for (const name of names) {
    const line = html("tr", {}, html("td", {}, name), ...columns.map((key) => finding(measured.get(name)?.[key], key)));
    if (STUDIES.length) line.append(html("td", {}, stack(name, counts.get(name) ?? {}, order, choose)));
    table.append(line);
  }
  document.getElementById("finding-table").append(table);
  const roc = Object.entries(HEAD.roc);
  document.getElementById("roc-box").hidden = !roc.length;
  document.getElementById("roc").append(...roc.map(([name, curve]) => rocChart(name, curve)));
  document.getElementById("confusion-box").hidden = !HEAD.confusion.length;
  document.getElementById("confusion").append(...HEAD.confusion.map(confusionTable));
}

/* Errors of the reports by finding and kind: share, interval and counts; then examples of each kind. */
function drawAudit() {
  const { kinds, rows, examples } = HEAD.audit;
  if (!rows.length && !Object.keys(examples).length) return;
  document.getElementById("audit-box").hidden = false;
  const table = html("table", {}, html("tr", {}, html("th", {}, "Finding"), ...kinds.map((kind) => html("th", { class: "num" }, words(kind)))));
  for (const row of rows) {
    table.append(html("tr", {}, html("td", {}, row.name), ...kinds.map((kind) => {
      if (!row[kind]) return html("td", { class: "num muted" }, "–");
      const [rate, errors, of, low, high] = row[kind];
      const interval = low === null ? "" : ` [${show(low)} – ${show(high)}]`;
      return html("td", { class: "num", "data-label": words(kind) }, `${show(rate)}${interval}`, html("div", { class: "muted" }, `${errors} of ${of}`));
    })));
  }
  document.getElementById("audit").append(table);
  for (const [kind, listed] of Object.entries(examples)) {
    for (const one of listed) {
      const what = one.finding ? `${one.finding}: ${one.reference} → ${one.prediction}` : one.prediction;
      document.getElementById("audit-examples").append(html("li", {}, html("b", {}, words(kind)), ` (${one.study}) ${what}`));
    }
  }
}

function finding(value, key) {
  if (value === undefined) return html("td", {}, "");
  if (key === "n") return html("td", { class: "num" }, value === null ? "–" : String(value));
  if (value === null) return html("td", { class: "muted", title: "one class only" }, "undefined");
  const fill = html("i", {});
  fill.style.width = `${100 * value}%`;
  return html("td", {}, show(value), html("div", { class: "meter" }, fill));
}

function stack(name, counts, order, choose) {
  const node = html("div", { class: "stack" });
  for (const how of order) {
    if (!counts[how]) continue;
    const label = `${name}: ${RELATIONS[how][1]} in ${counts[how]} studies`;
    const part = html("button", { class: `bg-${how}`, type: "button", title: label, "aria-label": label, onclick: () => choose(name, how) }, `${RELATIONS[how][0]} ${counts[how]}`);
    part.style.flex = String(counts[how]);
    node.append(part);
  }
  return node;
}

function drawCurves() {
  const curves = HEAD.curves.filter((chart) => chart.series.length);
  if (!curves.length) return;
  reveal("learning", "Learning");
  document.getElementById("curves").append(...curves.map(lineChart));
}

function drawInfo() {
  const entries = Object.entries(HEAD.info);
  if (!entries.length) return;
  reveal("run", "Run");
  const took = (seconds) => (seconds < 90 ? `${Math.round(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`);
  const text = (value) => (Array.isArray(value) ? value.join(" ") : typeof value === "object" ? Object.entries(value).map(([k, v]) => `${k} ${text(v)}`).join(", ") : String(value));
  for (const [key, value] of entries) document.getElementById("info").append(html("dt", {}, words(key)), html("dd", {}, key.endsWith("_seconds") ? took(value) : text(value)));
}
