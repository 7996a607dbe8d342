// The page of an exported world: what is pressed and shown. The world itself is in worker.js.

const SIDE = 512, SLOW = 4, KEY_STEP = 0.04, RACE_STEPS = 100, NEAR = 0.05, NEAR_PIXELS = 2.5;
const GPU_MS = 10000; // until WebGPU is given up
const MOST_BYTES = 30e6; // of an image that is dropped

const at = (id) => document.getElementById(id);
const measured = { frames: 0, firstFrame: 0, stepMs: [], planMs: [], roundTrips: [] }; // read by tests
window.measured = measured;

// -- the worker -------------------------------------------------------------------------------

const waiting = new Map();
let calls = 0, worker = null, patience = 0;

function call(name, ...args) {
  calls += 1;
  return new Promise((resolve, reject) => {
    waiting.set(calls, { resolve, reject });
    worker.postMessage({ id: calls, name, args });
  });
}
window.call = call;

function hear({ data }) {
  if (data.tries) {
    at("connection").textContent = `Trying ${data.tries}`;
    patience = setTimeout(beginWithoutGpu, GPU_MS);
    return;
  }
  if (data.progress !== undefined) {
    at("connection").textContent = `Loading ${Math.round(100 * data.progress)}%`;
    return;
  }
  clearTimeout(patience);
  const { resolve, reject } = waiting.get(data.id);
  waiting.delete(data.id);
  if (data.problem) reject(new Error(data.problem));
  else resolve(data.result);
}

function hire() {
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = hear;
  worker.onerror = (event) => stop(event.message || "its script could not be loaded");
}
hire();

// some adapters are there and never answer
function beginWithoutGpu() {
  console.info("WebGPU is not used: it did not answer");
  worker.terminate();
  hire();
  for (const id of waiting.keys()) worker.postMessage({ id, name: "load", args: [false] }); // all that is asked yet
}

function stop(reason) {
  at("connection").textContent = "Not running";
  at("reason").textContent = `The world cannot run here: ${reason}.`;
  at("banner").hidden = false;
  game.stopped = true;
}

// -- the game ---------------------------------------------------------------------------------

const game = {
  start: 0, steps: 0, paused: false, slow: false, keypoints: false, planner: false, search: false, race: false, ownGoal: false,
  stopped: false, target: [0.5, 0.5], moved: 0, code: 0, once: false, over: "", began: 0,
};
window.game = game;
let about = null, seen = [];

const players = () => (game.race ? 2 : 1);
const hasPointer = () => about.actions.kind === "continuous";
const canPlan = () => hasPointer() && !about.codes; // distances of codes lead no search

function say(text) { at("said").textContent = text; }

async function begin() {
  const start = await call("begin", game.start, players(), game.ownGoal);
  Object.assign(game, { steps: 0, over: "", began: start.distance, once: false });
  if (hasPointer()) game.target = start.last.length ? Array.from(start.last, (x) => (x + 1) / 2) : [0.5, 0.5];
  seen = Array.from({ length: players() }, () => ({ ...start, action: Array.from(start.last, Number), reward: 0 }));
  paint(at("goal"), start.goalFrame);
  show();
}

function action() {
  if (!hasPointer()) return [game.code];
  return game.target.map((fraction) => 2 * fraction - 1);
}

async function tick() {
  const started = game.moved;
  const own = game.planner ? null : action();
  const found = await call("tick", game.race ? [own, null] : [own]);
  if (found.length !== players()) return; // another game has begun meanwhile
  seen = found;
  game.steps += 1;
  game.code = 0;
  measured.stepMs.push(found[0].stepMs);
  for (const one of found) if (one.planMs) measured.planMs.push(one.planMs);
  for (const list of [measured.stepMs, measured.planMs, measured.roundTrips]) if (list.length > 600) list.shift();
  if (game.planner) game.target = found[0].action.map((x) => (x + 1) / 2);
  judge();
  show();
  if (started) {
    measured.roundTrips.push(performance.now() - started);
    if (game.moved === started) game.moved = 0;
  }
}

// who is at the goal, or nearest to it in the end
function judge() {
  if (game.over) return;
  const near = about.keypoints ? NEAR_PIXELS : NEAR * game.began;
  const distances = seen.map((one) => one.distance);
  const arrived = Math.min(...distances) <= near;
  if (!game.race) {
    if (arrived) game.over = `The goal is reached, after ${game.steps} steps`;
  } else if (arrived || game.steps >= RACE_STEPS) {
    const [yours, theirs] = distances, how = arrived ? "at the goal first" : "nearer to the goal";
    const who = yours === theirs ? "Neither is" : yours < theirs ? "You are" : "The planner is";
    game.over = `${who} ${how}, after ${game.steps} steps: you ${told(yours)}, the planner ${told(theirs)}`;
    game.paused = true;
  }
  if (game.over) say(game.over);
}

const told = (distance) => about.keypoints ? `${distance.toFixed(1)} pixels off`
  : `${Math.round(100 * distance / Math.max(game.began, 1e-9))}% of the way left`;

async function loop() {
  let due = performance.now();
  while (!game.stopped) {
    if (!game.paused || game.once) {
      game.once = false;
      try {
        await tick();
      } catch (problem) {
        return stop(problem.message);
      }
    }
    const wait = 1000 / (Number(at("speed").value) / (game.slow ? SLOW : 1));
    due = Math.max(due + wait, performance.now());
    await new Promise((resolve) => setTimeout(resolve, due - performance.now()));
  }
}

// -- what is seen -----------------------------------------------------------------------------

const small = document.createElement("canvas");

function paint(canvas, frame) {
  const [rows, columns] = about.size;
  Object.assign(small, { width: columns, height: rows });
  const image = new ImageData(columns, rows), pixels = rows * columns;
  for (let pixel = 0; pixel < pixels; pixel++) {
    for (let channel = 0; channel < 3; channel++) image.data[4 * pixel + channel] = frame[channel * pixels + pixel];
    image.data[4 * pixel + 3] = 255;
  }
  small.getContext("2d").putImageData(image, 0, 0);
  const height = canvas.id === "goal" ? SIDE / 2 : SIDE, width = Math.round(height * columns / rows);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, width, height);
}

function ring(canvas, [x, y], radius, color, width) {
  const context = canvas.getContext("2d");
  context.lineWidth = width;
  context.strokeStyle = color;
  context.beginPath();
  context.arc(x * canvas.width, y * canvas.height, radius, 0, 2 * Math.PI);
  context.stroke();
}

function show() {
  requestAnimationFrame(() => {
    for (const [number, canvas] of [at("world"), at("rival")].entries()) {
      const one = seen[number];
      if (!one) continue;
      paint(canvas, one.frame);
      if (game.keypoints) {
        for (let point = 0; point < one.latents.length; point += 2) {
          const place = [one.latents[point], one.latents[point + 1]].map((x) => (x + 1) / 2);
          ring(canvas, place, 5, "#000", 4);
          ring(canvas, place, 5, "#fff", 2);
        }
      }
      if (hasPointer()) ring(canvas, number ? one.action.map((x) => (x + 1) / 2) : game.target, 9, "#dc2828", 3);
    }
    measured.frames += 1;
    measured.firstFrame ||= performance.now();
    captions();
  });
}

function captions() {
  const [yours, theirs] = seen;
  at("yours").textContent = `${game.planner ? "planner" : "you"}, ${told(yours.distance)}`;
  if (theirs) at("theirs").textContent = `planner, ${told(theirs.distance)}`;
  const median = (list) => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)];
  const parts = [`start ${game.start + 1} of ${about.num_starts}`, `step ${game.steps}`];
  if (measured.stepMs.length) parts.push(`model ${median(measured.stepMs.slice(-60)).toFixed(1)} ms`);
  if ((game.planner || game.race) && measured.planMs.length) parts.push(`plan ${measured.planMs.at(-1).toFixed(0)} ms`);
  if (about.rewards) parts.push(`reward ${yours.reward.toFixed(2)}`);
  at("hud").textContent = parts.join("   ");
}

function settle() {
  const pressed = { pause: game.paused, slow: game.slow, keypoints: game.keypoints, planner: game.planner,
                    search: game.search, race: game.race };
  for (const [id, on] of Object.entries(pressed)) at(id).setAttribute("aria-pressed", String(on));
  at("race-panel").hidden = !game.race;
  if (seen.length) show();
}

// -- a goal of one's own ----------------------------------------------------------------------

async function takeGoal(file) {
  if (!file) return;
  if (file.size > MOST_BYTES) return say(`${file.name} has more than ${MOST_BYTES / 1e6} MB; choose a smaller image`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    return say(`${file.name || "What was dropped"} is not an image that this browser reads`);
  }
  const [rows, columns] = about.size;
  const canvas = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, columns, rows);
  context.imageSmoothingQuality = "high";
  const scale = Math.max(columns / bitmap.width, rows / bitmap.height);
  const [width, height] = [bitmap.width * scale, bitmap.height * scale];
  context.drawImage(bitmap, (columns - width) / 2, (rows - height) / 2, width, height);
  bitmap.close();
  const data = context.getImageData(0, 0, columns, rows).data, pixels = rows * columns;
  const frame = new Uint8Array(3 * pixels);
  for (let pixel = 0; pixel < pixels; pixel++) {
    for (let channel = 0; channel < 3; channel++) frame[channel * pixels + pixel] = data[4 * pixel + channel];
  }
  const { goalFrame, distance } = await call("goalFromImage", frame);
  Object.assign(game, { ownGoal: true, over: "", began: distance, steps: 0 });
  paint(at("goal"), goalFrame);
  say("Your image is the goal, as the world sees it");
}

for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); document.body.classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) document.addEventListener(name, () => document.body.classList.remove("over"));
document.addEventListener("drop", (event) => { event.preventDefault(); takeGoal(event.dataTransfer.files[0]); });
document.addEventListener("paste", (event) => takeGoal(event.clipboardData.files[0]));
at("file").addEventListener("change", () => { takeGoal(at("file").files[0]); at("file").value = ""; });

// -- keys, mouse and touch --------------------------------------------------------------------

const does = {
  r() { game.start = (game.start + 1) % about.num_starts; game.paused = false; say(`Start ${game.start + 1}`); return begin(); },
  p() { game.paused = !game.paused; say(game.paused ? "Paused" : "Playing"); },
  n() { game.paused = game.once = true; },
  s() { game.slow = !game.slow; say(game.slow ? "A quarter of the speed" : "Full speed"); },
  k() { game.keypoints = !game.keypoints; say(game.keypoints ? "Keypoints are drawn" : "Keypoints are hidden"); },
  t() { game.planner = !game.planner; say(game.planner ? "The planner acts" : "You act"); },
  h() {
    game.search = !game.search;
    say(game.search ? "The planner searches, which takes longer" : "The planner acts at once");
    return call("setSearch", game.search);
  },
  e() {
    game.race = !game.race;
    Object.assign(game, { planner: false, paused: false });
    say(game.race ? "You and the planner, from one start to one goal" : "No race");
    return begin();
  },
  async g() {
    const { goalFrame } = await call("goalIsHere");
    Object.assign(game, { ownGoal: true, over: "The goal is here" });
    paint(at("goal"), goalFrame);
    say("This image is the goal, for the next starts, too");
  },
  u() {
    game.ownGoal = false;
    say("The goal is the one of the start again");
    return begin();
  },
  o() { at("file").click(); },
};

const offered = (key) => about && does[key] && !document.querySelector(`[data-key="${key}"]`)?.disabled;

async function press(key) {
  if (!offered(key)) return;
  await does[key]();
  settle();
}

for (const button of document.querySelectorAll("[data-key]")) {
  button.addEventListener("click", () => press(button.dataset.key));
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
document.addEventListener("keydown", (event) => {
  if (!about || event.ctrlKey || event.altKey || event.metaKey || event.target.matches("select, input")) return;
  const arrow = ARROWS[event.key];
  if (arrow && document.activeElement === at("world") && hasPointer()) {
    event.preventDefault();
    point(game.target.map((fraction, axis) => fraction + KEY_STEP * arrow[axis]), event.timeStamp);
  } else if (/^[1-9]$/.test(event.key) && !hasPointer()) {
    choose(Number(event.key) - 1);
  } else if (!event.repeat) {
    press(/^Key[A-Z]$/.test(event.code) ? event.code[3].toLowerCase() : event.key.toLowerCase());
  }
});

function point(fractions, when) {
  game.target = fractions.map((fraction) => Math.max(0, Math.min(1, fraction)));
  game.moved ||= when;
  if (game.planner) {
    game.planner = false;
    say("You act");
  }
  settle();
}

function choose(code) {
  if (code < about.actions.names.length) Object.assign(game, { code, moved: game.moved || performance.now() });
}

function follow(event) {
  if (!about || !hasPointer()) return;
  const box = at("world").getBoundingClientRect();
  point([(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height], event.timeStamp);
}
at("world").addEventListener("pointerdown", (event) => {
  at("world").focus({ preventScroll: true });
  at("world").setPointerCapture(event.pointerId);
  follow(event);
});
at("world").addEventListener("pointermove", (event) => {
  // the planner is not interrupted by a mouse that only passes
  if (!game.planner || event.buttons) follow(event);
});

// -- begin ------------------------------------------------------------------------------------

function offer() {
  const speeds = [...at("speed").options].map((option) => Number(option.value));
  if (!speeds.includes(about.fps)) at("speed").add(new Option(about.fps));
  at("speed").value = String(about.fps);
  at("keypoints").disabled = !about.keypoints;
  for (const id of ["planner", "search", "race"]) at(id).disabled = !canPlan();
  if (canPlan() && !about.policy) Object.assign(at("search"), { disabled: true }); // it always does
  at("actions").hidden = hasPointer();
  if (hasPointer()) return;
  at("actions").replaceChildren(...about.actions.names.map((name, code) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: `${code + 1} ${name}` });
    button.addEventListener("click", () => choose(code));
    return button;
  }));
}

async function hasGpu() {
  try {
    return Boolean(navigator.gpu && await navigator.gpu.requestAdapter());
  } catch {
    return false;
  }
}

window.hasGpu = hasGpu; // read by tests

async function open() {
  about = await call("load", await hasGpu());
  offer();
  at("connection").textContent = `${about.run}, on this device, by ${about.backend}`;
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
    game.paused = true;
    say("Paused, as this device asks for less motion. P plays");
  }
  await begin();
  settle();
  loop();
  if ("serviceWorker" in navigator) navigator.serviceWorker.register("service_worker.js").catch(() => {});
}

open().catch((problem) => stop(problem.message));
