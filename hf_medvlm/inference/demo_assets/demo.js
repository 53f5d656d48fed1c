"use strict";

const at = (id) => document.getElementById(id);
const ABLE = JSON.parse(at("able").textContent);
let current = null; // what the server said of the radiograph that is shown
let calls = 0; // an answer to an earlier drop is not shown over a later one

at("model").textContent = `${ABLE.model}: ${ABLE.family}`;

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function say(text, isError = false) {
  at("status").textContent = text;
  at("status").className = isError ? "error" : "";
}

async function post(path, body) {
  let answer;
  try {
    answer = await fetch(path, { method: "POST", body });
  } catch {
    throw new Error("The server does not answer; is `hf-medvlm demo` still running, and the file not too large?");
  }
  const record = await answer.json();
  if (!answer.ok) throw new Error(record.error);
  return record;
}

async function look(file) {
  const call = ++calls;
  current = null;
  for (const id of ["stage", "controls", "right"]) at(id).hidden = true;
  at("answers").replaceChildren();
  if (file.size > 64 * 2 ** 20) return say("This file is larger than 64 MB.", true);
  say("Reading the radiograph …");
  try {
    const found = await post("/look", file);
    if (call !== calls) return;
    current = found;
    show(found);
    say("Done.");
  } catch (error) {
    if (call === calls) say(error.message, true);
  }
}

function show(found) {
  at("image").src = found.image;
  at("stage").hidden = at("right").hidden = false;
  at("report-box").hidden = found.report === undefined;
  at("report").textContent = found.report || "(no words)";
  at("findings-box").hidden = !found.findings;
  at("findings").replaceChildren(
    ...(found.findings || []).map(({ name, probability, present }) =>
      make("tr", { className: present ? "present" : "" }, make("td", {}, name), make("td", {}, make("meter", { value: probability })), make("td", { className: "num" }, probability.toFixed(3)))),
  );
  at("map").replaceChildren(make("option", { value: "" }, "none"));
  (found.maps || []).forEach(addMap);
  at("map").selectedIndex = found.maps && found.maps.length ? 1 : 0;
  drawMap();
  at("controls").hidden = at("map").length < 2;
  at("ask").hidden = !ABLE.ask;
  at("ground").hidden = !ABLE.ground;
  at("near-box").hidden = !found.neighbours;
  at("near").replaceChildren(
    ...(found.neighbours || []).map(({ study_id, score, image }) =>
      make("figure", {}, image ? make("img", { src: image, alt: `radiograph of ${study_id}` }) : "its picture is gone", make("figcaption", {}, `${study_id} ${score.toFixed(3)}`))),
  );
}

function addMap(map) {
  const option = make("option", { value: map.image }, map.name);
  at("map").append(option);
  return option;
}

function drawMap() {
  at("heat").hidden = !at("map").value;
  if (at("map").value) at("heat").src = at("map").value;
  at("heat").style.opacity = at("slider").value / 100;
}

at("map").addEventListener("input", drawMap);
at("slider").addEventListener("input", drawMap);
at("file").addEventListener("change", () => at("file").files.length && look(at("file").files[0]));
for (const kind of ["dragover", "dragenter"]) at("drop").addEventListener(kind, (event) => (event.preventDefault(), at("drop").classList.add("over")));
for (const kind of ["dragleave", "drop"]) at("drop").addEventListener(kind, () => at("drop").classList.remove("over"));
at("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) look(event.dataTransfer.files[0]);
});

function form(id, field, path, done) {
  at(id).addEventListener("submit", async (event) => {
    event.preventDefault();
    const text = at(field).value.trim(), asked = current;
    if (!asked || !text) return;
    say("Thinking …");
    try {
      const found = await post(path, JSON.stringify({ id: asked.id, [field]: text }));
      if (asked !== current) return;
      done(text, found);
      say("Done.");
    } catch (error) {
      say(error.message, true);
    }
  });
}

form("ask", "question", "/ask", (question, found) => at("answers").prepend(make("p", { className: "answer" }, make("b", {}, question), found.answer || "(no words)")));
form("ground", "phrase", "/ground", (_, found) => {
  addMap(found).selected = true;
  at("controls").hidden = false;
  drawMap();
});
