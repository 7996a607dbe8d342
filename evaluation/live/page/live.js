// The page of --live: asks for the state of a training, and shows it.
"use strict";

const EVERY_MS = 3000;
const at = (id) => document.getElementById(id);
const key = new URLSearchParams(location.hash.slice(1)).get("key") || "";
const seen = { answers: 0, validations: "" }; // read by tests
window.seen = seen;
let chosen = "";

const ask = (path) => fetch(path, { headers: { "x-key": key } });
const number = (value) => Math.abs(value) >= 1e-3 || value === 0 ? value.toPrecision(4) : value.toExponential(2);

async function look() {
  try {
    const answer = await ask(`now?stage=${encodeURIComponent(chosen)}`);
    if (!answer.ok) throw new Error(await answer.text());
    show(await answer.json());
    seen.answers += 1;
  } catch (problem) {
    at("state").textContent = problem instanceof TypeError ? "The training has ended, or its page has" : problem.message;
  }
  setTimeout(look, EVERY_MS);
}

function show(now) {
  offerStages(now.stages, now.stage);
  if (!now.stage) {
    at("state").textContent = "No training has begun here";
    return;
  }
  document.title = at("title").textContent = `Training ${now.stage}`;
  at("state").textContent = now.running ? "It runs" : "It does not run now";
  at("progress").value = now.total ? now.step / now.total : 0;
  at("progress").hidden = !now.total;
  const facts = {
    step: now.total ? `${now.step} of ${now.total}` : now.step,
    "time left": now.running && now.left || "-",
    "steps a second": now.speed === null ? "-" : now.speed,
    "device idle": now.idle === null || now.idle === undefined ? "-" : `${Math.round(100 * now.idle)}%`,
    "last line of the log": now.log || "-",
    ...Object.fromEntries(Object.entries(now.checkpoints).map(([name, when]) => [name, when])),
  };
  at("facts").replaceChildren(...Object.entries(facts).map(([name, value]) => {
    const pair = document.createElement("div"), term = document.createElement("dt"), told = document.createElement("dd");
    [term.textContent, told.textContent] = [name, value];
    pair.append(term, told);
    return pair;
  }));
  at("charts").innerHTML = now.charts; // made by our own server, which escapes names
  const rows = [...Object.entries(now.validation).map(([name, value]) => [`validation ${name}`, value]),
                ...Object.entries(now.training)];
  at("figures").tBodies[0].replaceChildren(...rows.map(([name, value]) => {
    const row = document.createElement("tr");
    for (const text of [name, number(value)]) {
      const cell = document.createElement("td");
      cell.textContent = text;
      row.append(cell);
    }
    return row;
  }));
  const validations = JSON.stringify(now.validation);
  if (seen.validations && validations !== seen.validations) at("said").textContent = `A validation at step ${now.step}`;
  seen.validations = validations;
  showImages(now.stage, now.images);
}

function offerStages(stages, current) {
  const select = at("stage"), wanted = stages.join("|");
  if (select.dataset.known === wanted) return;
  select.dataset.known = wanted;
  select.replaceChildren(...stages.map((name) => new Option(name, name, false, name === current)));
}
at("stage").addEventListener("change", () => {
  chosen = at("stage").value;
  at("images").replaceChildren();
});

function showImages(stage, images) {
  for (const figure of [...at("images").children]) if (figure.dataset.stage !== stage) figure.remove();
  for (const [name, steps] of Object.entries(images)) {
    let figure = [...at("images").children].find((one) => one.dataset.name === name && one.dataset.stage === stage);
    if (!figure) {
      figure = document.createElement("figure");
      Object.assign(figure.dataset, { name, stage });
      const image = document.createElement("img"), caption = document.createElement("figcaption");
      const slider = Object.assign(document.createElement("input"), { type: "range", min: 0 });
      slider.setAttribute("aria-label", `Step of ${name}`);
      slider.addEventListener("input", () => load(figure, Number(slider.value)));
      figure.append(image, caption, slider);
      at("images").append(figure);
    }
    const slider = figure.querySelector("input"), before = (figure.steps || []).length;
    const atEnd = !before || Number(slider.value) === before - 1; // who looks back is left there
    figure.steps = steps;
    slider.max = steps.length - 1;
    if (atEnd && steps.length !== before) {
      slider.value = steps.length - 1;
      load(figure, steps.length - 1);
    }
  }
}

async function load(figure, index) {
  const { name, stage } = figure.dataset, step = figure.steps[index];
  figure.querySelector("figcaption").textContent = `${name}, step ${step}`;
  const answer = await ask(`image?stage=${encodeURIComponent(stage)}&name=${encodeURIComponent(name)}&step=${step}`);
  if (!answer.ok) return;
  const image = figure.querySelector("img"), before = image.src;
  image.src = URL.createObjectURL(await answer.blob());
  image.alt = `${name} at step ${step}`;
  if (before) URL.revokeObjectURL(before);
}

look();
