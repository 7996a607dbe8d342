// The page of --live: asks for the state of a stage, and shows it.
"use strict";

const EVERY_MS = 3000, FILM_MS = 100;
const ABOUT = {
  step: "Of validations: true frames, and what the model made of them below or next to them.",
  shard: "Frames of the first episodes of each shard.",
  part: "What the finished parts have drawn. Films: true frames on the left, the model rollout on the right.",
};
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
    at("state").textContent = problem instanceof TypeError ? "The stage has ended, or its page has" : problem.message;
  }
  setTimeout(look, EVERY_MS);
}

function show(now) {
  offerStages(now.stages, now.stage);
  if (!now.stage) {
    at("state").textContent = "Nothing has begun here";
    return;
  }
  document.title = at("title").textContent = now.title;
  at("state").textContent = now.running ? "It runs" : "It does not run now";
  at("progress").value = now.total ? now.step / now.total : 0;
  at("progress").hidden = !now.total;
  const trains = now.unit === "step", [per, factor] = trains ? ["second", 1] : ["minute", 60];
  const facts = {
    [`${now.unit}s`]: now.total ? `${now.step} of ${now.total}` : now.step,
    "time left": now.running && now.left || "-",
    [`${now.unit}s a ${per}`]: now.speed === null ? "-" : number(factor * now.speed),
    ...(trains ? { "device idle": now.idle === undefined || now.idle === null ? "-" : `${Math.round(100 * now.idle)}%` } : {}),
    [trains ? "last line of the log" : `last ${now.unit}`]: [now.latest, now.log].filter(Boolean).join(", ") || "-",
    ...Object.fromEntries(Object.entries(now.checkpoints).map(([name, when]) => [name, when])),
  };
  at("facts").replaceChildren(...Object.entries(facts).map(([name, value]) => {
    const pair = document.createElement("div"), term = document.createElement("dt"), told = document.createElement("dd");
    [term.textContent, told.textContent] = [name, value];
    pair.append(term, told);
    return pair;
  }));
  at("charts").innerHTML = now.charts; // made by our own server, which escapes names
  at("curves").hidden = !now.charts;
  at("about").textContent = Object.keys(now.images).length ? ABOUT[now.unit] : "None yet.";
  at("figures").tBodies[0].replaceChildren(...Object.entries(now.figures).map(([name, value]) => {
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
  if (!trains && now.latest && now.latest !== seen.latest) at("said").textContent = `Measured: ${now.latest}`;
  seen.latest = now.latest;
  showImages(now);
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

function showImages({ stage, images, films, unit }) {
  for (const figure of [...at("images").children]) if (figure.dataset.stage !== stage) figure.remove();
  for (const [name, steps] of Object.entries(images)) {
    let figure = [...at("images").children].find((one) => one.dataset.name === name && one.dataset.stage === stage);
    if (!figure) {
      figure = document.createElement("figure");
      Object.assign(figure.dataset, { name, stage });
      at("images").append(figure);
      if (films[name]) fillFilm(figure, films[name]);
      else fillImage(figure);
    }
    if (films[name]) continue;
    const slider = figure.querySelector("input"), before = (figure.steps || []).length;
    const atEnd = !before || Number(slider.value) === before - 1; // who looks back is left there
    Object.assign(figure, { steps, unit });
    slider.max = steps.length - 1;
    slider.hidden = steps.length < 2;
    if (atEnd && steps.length !== before) {
      slider.value = steps.length - 1;
      load(figure, steps.length - 1);
    }
  }
}

function fillImage(figure) {
  const slider = Object.assign(document.createElement("input"), { type: "range", min: 0 });
  slider.setAttribute("aria-label", `Which ${figure.dataset.name}`);
  slider.addEventListener("input", () => load(figure, Number(slider.value)));
  figure.append(document.createElement("img"), document.createElement("figcaption"), slider);
}

// frames lie below each other in one image
async function fillFilm(figure, frames) {
  const { name, stage } = figure.dataset, canvas = document.createElement("canvas");
  const slider = Object.assign(document.createElement("input"), { type: "range", min: 0, max: frames - 1, value: 0 });
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: `Play ${name}` });
  const caption = document.createElement("figcaption");
  slider.setAttribute("aria-label", `Step of ${name}`);
  canvas.setAttribute("role", "img");
  figure.append(canvas, caption, slider, " ", button);
  const answer = await ask(addressOf(stage, name, 0));
  if (!answer.ok) return;
  const sheet = await createImageBitmap(await answer.blob()), height = sheet.height / frames;
  Object.assign(canvas, { width: sheet.width * 2, height: height * 2 });
  const context = canvas.getContext("2d");
  let timer = 0;
  const draw = () => {
    context.imageSmoothingEnabled = false;
    context.drawImage(sheet, 0, slider.value * height, sheet.width, height, 0, 0, canvas.width, canvas.height);
    caption.textContent = `${name}, ${slider.value} steps ahead`;
    canvas.setAttribute("aria-label", `True frame and model rollout of ${name}`);
  };
  slider.addEventListener("input", draw);
  button.addEventListener("click", () => {
    clearInterval(timer);
    timer = timer ? 0 : setInterval(() => {
      if (!figure.isConnected) return clearInterval(timer);
      slider.value = (Number(slider.value) + 1) % frames;
      draw();
    }, FILM_MS);
    button.textContent = `${timer ? "Pause" : "Play"} ${name}`;
  });
  draw();
}

const addressOf = (stage, name, step) =>
  `image?stage=${encodeURIComponent(stage)}&name=${encodeURIComponent(name)}&step=${step}`;

async function load(figure, index) {
  const { name, stage } = figure.dataset, step = figure.steps[index];
  const caption = figure.unit === "part" ? name : `${name}, ${figure.unit} ${step}`;
  figure.querySelector("figcaption").textContent = caption;
  const answer = await ask(addressOf(stage, name, step));
  if (!answer.ok) return;
  const image = figure.querySelector("img"), before = image.src;
  image.src = URL.createObjectURL(await answer.blob());
  image.alt = caption;
  if (before) URL.revokeObjectURL(before);
}

look();
