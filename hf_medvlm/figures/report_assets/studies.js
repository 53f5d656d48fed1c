/* The lower half of the page: the studies, filtered, sorted and paged. Pictures are unpacked when they come into view. */
"use strict";

const PAGE = 10;
const CHUNK = 64; // blobs in one script element, as report.py packs them
// The colours of matplotlib's inferno, at even steps.
const HEAT = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];
const chunks = new Map();
const field = (id) => document.getElementById(id);
let found = [];
let page = 0;

function blob(kind, index) {
  const key = `${kind}-${Math.floor(index / CHUNK)}`;
  if (!chunks.has(key)) chunks.set(key, read(key));
  return chunks.get(key)[index % CHUNK];
}

function options(select, pairs) {
  select.append(...pairs.map(([value, label]) => html("option", { value }, label)));
}

/* Everything a search looks in, put together on the first search and kept. */
function haystack(study) {
  study.text ??= [study.id, study.patient, ...study.reference.map((part) => part[0]), "\n", ...study.prediction.map((part) => part[0])].join("").toLowerCase();
  return study.text;
}

function matches(study, query, finding, error, view) {
  if (view && !study.views.includes(view)) return false;
  if (finding && !HEAD.references) {
    if (!study.said.some(([name]) => name === finding)) return false;
  } else if (finding || error) {
    const errors = ["contradict", "missed", "added"];
    const wrong = (how) => (error === "any" ? errors.includes(how) : !error || error === "none" || how === error);
    const named = study.findings.filter(([name]) => !finding || name === finding);
    if (error === "none" ? named.some(([, , , how]) => errors.includes(how)) || (finding && !named.length) : !named.some(([, , , how]) => wrong(how))) return false;
  }
  return !query || haystack(study).includes(query);
}

function order(studies, sort) {
  if (sort === "file") return studies;
  if (sort === "highlights") {
    const first = new Map(HEAD.highlights.map((number, place) => [number, place]));
    return studies.sort((a, b) => (first.get(a.number) ?? 1e9) - (first.get(b.number) ?? 1e9) || a.number - b.number);
  }
  const [name, direction] = JSON.parse(sort);
  // A study without the score comes last, whichever way the others are sorted.
  const value = (study) => (own(study.scores, name) === undefined ? Infinity : direction * study.scores[name]);
  return studies.sort((a, b) => (value(a) === value(b) ? a.number - b.number : value(a) - value(b)));
}

function update() {
  const query = field("search").value.trim().toLowerCase();
  const [finding, error, view] = ["finding", "error", "view"].map((id) => field(id).value);
  found = order(STUDIES.filter((study) => matches(study, query, finding, error, view)), field("sort").value);
  turn(0);
}

function turn(to) {
  page = to;
  const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
  field("count").textContent = `${found.length.toLocaleString("en")} of ${STUDIES.length.toLocaleString("en")} studies`;
  for (const pager of document.querySelectorAll(".pager")) {
    const button = (label, target, off) => html("button", { type: "button", disabled: off, onclick: () => (turn(target), field("filters").scrollIntoView()) }, label);
    pager.replaceChildren(button("‹ Previous", page - 1, page === 0), `page ${page + 1} of ${last + 1}`, button("Next ›", page + 1, page >= last));
  }
  const cards = found.slice(page * PAGE, (page + 1) * PAGE).map(card);
  field("list").replaceChildren(...(cards.length ? cards : [html("p", { class: "card empty" }, "No study fits. Loosen a filter or clear the search.")]));
}

function card(study) {
  const head = html("h3", {}, study.id, study.patient ? html("span", { class: "muted" }, `patient ${study.patient}`) : null, study.badge ? html("span", { class: `badge ${study.badge}` }, study.badge) : null);
  const side = (title, parts) => html("div", {}, html("h4", {}, title), html("div", { class: "text", tabindex: 0 }, ...marked(parts)));
  const told = study.prediction.some(([piece]) => piece !== "") || HEAD.references;
  const sides = [HEAD.references ? side("Reference", study.reference) : null, told ? side(study.question || "Prediction", study.prediction) : null].filter(Boolean);
  const body = html("div", {}, head, html("div", { class: sides.length > 1 ? "texts" : "texts one" }, ...sides));
  if (study.said.length) body.append(html("div", { class: "chips" }, ...study.said.map(([name, value]) => html("span", { class: "chip" }, `${name} ${state(value)}`))));
  if (study.findings.length) body.append(html("div", { class: "chips" }, ...study.findings.map(chip)));
  if (study.likely.length) body.append(html("div", { class: "likely" }, ...study.likely.map((pair) => likely(pair, study))));
  const scores = Object.entries(study.scores).map(([name, value]) => html("span", {}, `${words(name)} ${show(value)}`));
  if (scores.length) body.append(html("div", { class: "values" }, ...scores));
  return html("article", { class: "card study" }, viewer(study), body);
}

function marked(parts) {
  const text = parts.map(([piece, how, why]) => (how ? html("mark", { class: how, title: why }, piece) : piece));
  return text.some((part) => part !== "") ? text : [html("span", { class: "muted" }, "no text")];
}

const STATES = { 1: "present", 0: "absent", "-1": "uncertain", null: "not mentioned" };
const state = (value) => own(STATES, value) ?? value; // a change over time is a word already

function chip([name, reference, prediction, how]) {
  const title = `reference: ${state(reference)}; prediction: ${state(prediction)}`;
  const states = { agree: state(reference), missed: "", added: "" }[how] ?? `${state(reference)} → ${state(prediction)}`;
  return html("span", { class: "chip", title }, html("b", { class: `is-${how}` }, RELATIONS[how][0]), `${name} ${states}`);
}

function likely([name, value], study) {
  const fill = html("i", {});
  fill.style.width = `${100 * Math.max(0, Math.min(1, value))}%`;
  const how = study.findings.find((row) => row[0] === name);
  const sign = how ? html("b", { class: `is-${how[3]}`, title: `reference: ${state(how[1])}` }, ` ${RELATIONS[how[3]][0]}`) : null;
  return html("div", {}, html("span", {}, name, sign), html("div", { class: "meter" }, fill), html("span", {}, show(value)));
}

const viewName = (image, place) => image.view || `image ${place + 1}`;

function viewer(study) {
  const stage = html("div", { class: "viewer" });
  const controls = html("div", { class: "controls" });
  if (!study.images.length) return html("div", {}, html("div", { class: "viewer" }, html("p", { class: "gone" }, "This study has no image.")));
  const slider = html("input", { type: "range", min: 0, max: 100, value: 55, "aria-label": "strength of the heat map", oninput: () => (stage.querySelector("canvas") ?? slider).style.setProperty("opacity", stage.querySelector("canvas") ? slider.value / 100 : 1) });
  const choice = html("select", { "aria-label": "heat map", onchange: () => draw() });
  options(choice, study.maps.map((map, place) => [place, words(map.name)]));
  const boxes = html("input", { type: "checkbox", onchange: () => draw() });
  boxes.checked = true;
  let shown = study.maps.length ? study.map_image : study.boxes.length ? study.boxes[0].image : 0;
  if (!study.images[shown]) shown = 0;
  const tabs = html("span", { class: "tabs" });
  study.images.forEach((image, place) => tabs.append(html("button", { type: "button", onclick: () => ((shown = place), draw()) }, viewName(image, place))));

  function draw() {
    const image = study.images[shown];
    [...tabs.children].forEach((tab, place) => tab.setAttribute("aria-pressed", place === shown));
    if (image.broken) {
      stage.replaceChildren(html("p", { class: "gone" }, `This image could not be read. ${image.broken}`));
      return;
    }
    stage.replaceChildren(html("img", { src: blob("images", image.blob), width: image.size[0], height: image.size[1], alt: `${viewName(image, shown)}, radiograph of study ${study.id}` }));
    if (study.maps.length && shown === study.map_image) {
      stage.append(heat(study.maps[choice.value]));
      stage.lastChild.style.opacity = slider.value / 100;
    }
    const here = study.boxes.filter((box) => box.image === shown);
    if (boxes.checked && here.length) stage.append(outline(here, image.size));
  }

  draw();
  if (study.images.length > 1 || study.images[0].view) controls.append(tabs);
  if (study.maps.length) controls.append(html("label", {}, "heat map ", choice), html("label", {}, slider));
  if (study.boxes.length) controls.append(html("label", {}, boxes, " boxes of the reference"));
  return html("div", {}, stage, controls);
}

function heat(map) {
  const canvas = html("canvas", { width: map.width, height: map.height });
  const bytes = atob(blob("maps", map.blob));
  const pixels = new ImageData(map.width, map.height);
  for (let i = 0; i < bytes.length; i += 1) {
    const value = bytes.charCodeAt(i);
    const at = (value / 255) * (HEAT.length - 1), low = Math.floor(at), high = Math.min(low + 1, HEAT.length - 1);
    for (let c = 0; c < 3; c += 1) pixels.data[4 * i + c] = HEAT[low][c] + (HEAT[high][c] - HEAT[low][c]) * (at - low);
    pixels.data[4 * i + 3] = value;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

function outline(boxes, [width, height]) {
  const node = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" });
  for (const { xywh: [x, y, w, h], name } of boxes) {
    const size = width * 0.042;
    const right = x + w / 2 > width / 2; // the name grows towards the middle, so that it stays in the picture
    const label = svg("text", { x: right ? x + w : x, "text-anchor": right ? "end" : "start", y: y > size * 1.4 ? y - size * 0.35 : y + h + size }, name);
    label.style.fontSize = `${size}px`;
    node.append(svg("rect", { x, y, width: w, height: h }), label);
  }
  return node;
}

function choose(finding, error) {
  field("finding").value = finding;
  field("error").value = error;
  update();
  field("studies").scrollIntoView();
}

function drawStudies() {
  if (!STUDIES.length) return;
  reveal("studies", "Studies");
  const names = [...new Set(STUDIES.flatMap((study) => [...study.findings, ...study.said].map((row) => row[0])))].sort();
  if (STUDIES.some((study) => study.maps.length)) field("studies-title").textContent = "What did it say, and where did it look?";
  field("error-filter").hidden = field("legend").hidden = !HEAD.references;
  const views = [...new Set(STUDIES.flatMap((study) => study.views))].sort();
  options(field("finding"), [["", "all"], ...names.map((name) => [name, name])]);
  options(field("error"), [["", "all studies"], ["any", "any error"], ["none", "no error"], ...Object.entries(RELATIONS).map(([how, [sign, label]]) => [how, `${sign} ${label}`])]);
  options(field("view"), [["", "all"], ...views.map((view) => [view, view])]);
  const ways = HEAD.score_names.flatMap(({ name, up }) => [[JSON.stringify([name, up ? 1 : -1]), `${words(name)}, worst first`], [JSON.stringify([name, up ? -1 : 1]), `${words(name)}, best first`]]);
  options(field("sort"), [...(HEAD.highlights ? [["highlights", `best, worst and typical first (${words(HEAD.primary)})`]] : []), ["file", "order of the file"], ...ways]);
  field("legend").append(...Object.entries(RELATIONS).map(([how, [sign, label]]) => html("span", {}, html("b", { class: `is-${how}` }, sign), label)));
  let wait = 0;
  field("filters").addEventListener("input", (event) => {
    clearTimeout(wait);
    if (event.target.type === "search") wait = setTimeout(update, 120);
    else update();
  });
  field("filters").addEventListener("submit", (event) => event.preventDefault());
  update();
}

drawHead();
drawScores();
drawFindings(choose);
drawCurves();
drawStudies();
drawInfo();
