// The page of play.py --browser: keys, pointer and game pad to the server; its frames to the canvas.
// Messages are those of pipeline/play/browser/messages.py.
"use strict";

const VERSION = 1, HEADER_BYTES = 16, GAP = 4, HEIGHT = 512;
const PLACES = {
  ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down", Space: "space",
  Minus: "-", Equal: "=", Comma: ",", Period: ".",
};
const SYMBOLS = "+-=,.";
const RETRY_MS = 500, MOST_RETRY_MS = 10000, RETRY_FULL_MS = 15000;
const FINAL = { 1008: true, 4001: true, 4002: true, 4003: true }; // reasons that a second try does not change

const at = (id) => document.getElementById(id);
const canvas = at("world"), context = canvas.getContext("2d");
const held = new Set();
const measured = { frames: 0, roundTrips: [], times: [] }; // read by tests
window.measured = measured;

let socket = null, tries = 0, retry = 0, welcome = null, status = {}, lastAt = 0;
let pointer = null, pointerMoved = 0; // fractions of a panel; when they changed, and 0 once sent
let image = null, panels = 1, modelMs = 0, drawn = true, frameNumber = 0;

// -- the connection ---------------------------------------------------------------------------

function connect() {
  clearTimeout(retry);
  at("banner").hidden = true;
  const key = new URLSearchParams(location.hash.slice(1)).get("key") || "";
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const opening = new WebSocket(`${scheme}//${location.host}/play`);
  socket = opening;
  opening.binaryType = "arraybuffer";
  frameNumber = see.acknowledge = 0; // the server counts from the beginning
  opening.onopen = () => send({
    t: "hello", v: VERSION, key, session: sessionStorage.getItem("session") || "",
  });
  opening.onmessage = (event) => {
    if (opening !== socket) return;
    if (typeof event.data === "string") hear(JSON.parse(event.data));
    else see(event.data);
  };
  opening.onclose = (event) => {
    if (opening !== socket) return;
    socket = null;
    held.clear();
    if (FINAL[event.code]) return stop(event.reason);
    const wait = event.code === 1013 ? RETRY_FULL_MS
      : Math.min(MOST_RETRY_MS, RETRY_MS * 2 ** tries) * (0.5 + Math.random());
    tries += 1;
    const why = event.reason || "The connection is lost";
    at("connection").textContent = `${why}. Trying again in ${Math.ceil(wait / 1000)} s`;
    retry = setTimeout(connect, wait);
  };
}

function stop(reason) {
  sessionStorage.removeItem("session");
  at("connection").textContent = "Not connected";
  at("reason").textContent = `The game has ended: ${reason || "the server closed it"}.`;
  at("banner").hidden = false;
}

function send(message) {
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function hear(message) {
  if (message.type === "line") {
    at("connection").textContent = `All places are taken. You are number ${message.place} of ` +
      `${message.of} in line`;
  } else if (message.type === "welcome") {
    tries = 0;
    welcome = message;
    sessionStorage.setItem("session", message.session);
    at("connection").textContent = "Connected";
    at("keys").textContent = message.keys.join(" ");
    at("simulator").disabled = !message.simulator;
    at("controller").disabled = !message.controller;
    offerActions(message.actions);
    if (message.lock) [pointer, pointerMoved] = [[0, 0], performance.now()]; // from where motions count
    canvas.focus({ preventScroll: true });
  } else if (message.type === "status") {
    tell(message);
  } else if (message.type === "recording") {
    offerRecording(message);
  }
}

// -- what is seen and told --------------------------------------------------------------------

async function see(data) {
  const view = new DataView(data);
  if (view.getUint8(0) !== VERSION) return stop("this page is of another version; load it again");
  const number = view.getUint32(4, true), echoed = view.getFloat64(8, true);
  modelMs = view.getUint16(2, true) / 10;
  const bitmap = await createImageBitmap(new Blob([data.slice(HEADER_BYTES)], { type: "image/jpeg" }));
  if (number < frameNumber && image) bitmap.close(); // decoded after a newer one
  else {
    if (image) image.close();
    image = bitmap;
    frameNumber = number;
    drawn = false;
  }
  see.acknowledge = Math.max(see.acknowledge || 0, number);
  see.echoed = Math.max(see.echoed || 0, echoed);
}

function draw() {
  requestAnimationFrame(draw);
  followGamepad();
  if (pointerMoved) {
    send({ t: "pointer", x: pointer[0], y: pointer[1], at: pointerMoved });
    pointerMoved = 0;
  }
  if (!image || (drawn && !draw.ring)) return;
  const [rows, columns] = welcome.size;
  panels = Math.round(image.width / columns);
  const width = Math.round(columns * HEIGHT / rows);
  const whole = panels * (width + GAP) - GAP;
  if (canvas.width !== whole || canvas.height !== HEIGHT) {
    canvas.width = whole;
    canvas.height = HEIGHT;
  }
  context.imageSmoothingEnabled = false;
  for (let panel = 0; panel < panels; panel++) {
    context.drawImage(image, panel * columns, 0, columns, rows, panel * (width + GAP), 0, width, HEIGHT);
  }
  const target = status.acts === "you" && welcome.pointer && pointer ? pointer : status.pointer;
  if (target) {
    context.lineWidth = 3;
    context.strokeStyle = "#dc2828";
    for (let panel = 0; panel < panels; panel++) {
      context.beginPath();
      context.arc(panel * (width + GAP) + target[0] * width, target[1] * HEIGHT, 9, 0, 2 * Math.PI);
      context.stroke();
    }
  }
  draw.ring = false;
  if (drawn) return;
  drawn = true;
  const now = performance.now();
  send({ t: "ack", n: see.acknowledge });
  measured.frames += 1;
  measured.times.push(now);
  if (measured.times.length > 120) measured.times.shift();
  if (see.echoed > lastAt) {
    lastAt = see.echoed;
    measured.roundTrips.push(now - lastAt);
    if (measured.roundTrips.length > 600) measured.roundTrips.shift();
  }
  showHud(now);
}

function showHud(now) {
  const recent = measured.times.filter((time) => now - time < 1000).length;
  const trips = measured.roundTrips.slice(-60).sort((a, b) => a - b);
  const trip = trips.length ? `${Math.round(trips[Math.floor(trips.length / 2)])} ms` : "-";
  const parts = [
    `${recent} frames/s`, `round trip ${trip}`, `model ${modelMs.toFixed(1)} ms`,
    `dropped ${status.dropped || 0}`, `step ${status.step || 0}`,
  ];
  if (status.reward !== null && status.reward !== undefined) parts.push(`reward ${status.reward.toFixed(2)}`);
  for (const more of [status.simulator, status.action]) if (more) parts.push(more);
  if (status.recording) parts.push(`REC ${status.recording}`);
  if (status.players > 1 || status.waiting) parts.push(`${status.players} players, ${status.waiting} waiting`);
  at("hud").textContent = parts.join("   ");
}

function tell(message) {
  const before = status;
  status = message;
  draw.ring = true;
  const captions = message.panels.join("|");
  if (captions !== tell.captions) {
    tell.captions = captions;
    at("captions").replaceChildren(...message.panels.map((caption) => {
      const span = document.createElement("span");
      span.textContent = caption;
      return span;
    }));
  }
  const pressed = {
    pause: message.paused, record: message.recording > 0, planner: message.acts === "planner",
    controller: message.acts === "controller", simulator: message.panels.length > 1,
  };
  for (const [id, on] of Object.entries(pressed)) at(id).setAttribute("aria-pressed", String(on));
  // what changes at every step is in the HUD, which a screen reader does not read out
  const said = [
    message.message, message.acts === "planner" ? message.planner : "",
    message.acts === "controller" ? "The controller acts" : "",
    message.paused ? "Paused" : "", message.rewinding ? "Going back" : "",
  ].filter(Boolean).join(". ");
  for (const button of at("actions").children) {
    button.setAttribute("aria-pressed", String(button.dataset.label === message.action));
  }
  if (said !== tell.said) at("said").textContent = tell.said = said;
  if (before.acts === "you" && message.acts !== "you" && !welcome.lock) pointer = null;
}

function offerActions(actions) {
  const group = at("actions");
  const longest = Math.max(...actions.map(({ motion }) => Math.hypot(...(motion || []))));
  group.hidden = !actions.length;
  group.replaceChildren(...actions.map(({ label, motion }, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = button.dataset.label = label;
    if (motion) button.setAttribute("aria-label", `${label}, ${wordsOf(motion)}`);
    if (motion) button.append(" ", arrow(motion, longest));
    button.addEventListener("click", () => tap(String(index + 1)));
    return button;
  }));
}

function wordsOf([x, y]) {
  const least = Math.hypot(x, y) * 0.38; // less is not said: sin 22.5 degrees
  const along = Math.abs(y) > least ? (y < 0 ? " up" : " down") : "";
  const across = Math.abs(x) > least ? (x < 0 ? " left" : " right") : "";
  return `moves${along}${across}` + (along || across ? "" : " nothing");
}

// as large as the motion is to the longest one; a dot where nothing moves
function arrow([x, y], longest) {
  const sign = document.createElement("span"), length = Math.hypot(x, y);
  sign.textContent = length ? "\u2192" : "\u00b7";
  sign.style.transform = `rotate(${Math.atan2(y, x)}rad) scale(${length ? 0.6 + 0.7 * length / longest : 1})`;
  return sign;
}

function offerRecording(message) {
  const item = document.createElement("li");
  item.append(`Recording ${message.number}: `);
  for (const file of message.files) {
    const link = document.createElement("a");
    link.href = file;
    link.download = "";
    link.textContent = file.split("/").pop();
    item.append(link, " ");
  }
  at("recordings").append(item);
  while (at("recordings").children.length > 3) at("recordings").firstChild.remove();
  at("said").textContent = tell.said = `Recording ${message.number} can be downloaded`;
}

// -- keys -------------------------------------------------------------------------------------

function press(key, repeated = false, label = "") {
  held.add(key);
  send({ t: "key", key, down: true, repeated, label, at: performance.now() });
}

function release(key) {
  if (held.delete(key)) send({ t: "key", key, down: false, at: performance.now() });
}

function tap(key) {
  press(key);
  release(key);
}

function releaseAll() {
  held.clear();
  send({ t: "blur" });
}

function placeOf(event) {
  const found = /^(?:Key([A-Z])|(?:Digit|Numpad)([0-9]))$/.exec(event.code);
  if (found) return (found[1] || found[2]).toLowerCase();
  if (event.key.length === 1 && SYMBOLS.includes(event.key)) return event.key;
  return PLACES[event.code];
}

function isForGame(event) {
  const own = event.target === canvas || event.target === document.body;
  return own && !(event.ctrlKey || event.metaKey || event.altKey);
}

document.addEventListener("keydown", (event) => {
  const key = placeOf(event);
  if (!key || key === "q" || !isForGame(event)) return;
  event.preventDefault();
  press(key, event.repeat, event.key.length === 1 ? event.key : "");
});
document.addEventListener("keyup", (event) => {
  const key = placeOf(event);
  if (key) release(key);
});
window.addEventListener("blur", releaseAll);
document.addEventListener("visibilitychange", () => document.hidden && releaseAll());

for (const button of document.querySelectorAll("[data-key]")) {
  button.addEventListener("click", () => tap(button.dataset.key));
}
for (const button of document.querySelectorAll("[data-hold]")) {
  const key = button.dataset.hold;
  button.addEventListener("pointerdown", (event) => {
    button.setPointerCapture(event.pointerId);
    press(key);
  });
  for (const name of ["pointerup", "pointercancel", "blur"]) button.addEventListener(name, () => release(key));
  button.addEventListener("keydown", (event) => {
    if (event.key === " " || event.key === "Enter") { event.preventDefault(); press(key, event.repeat); }
  });
  button.addEventListener("keyup", () => release(key));
}

// -- mouse, touch and pen ---------------------------------------------------------------------

function follow(event) {
  if (!welcome) return;
  const box = canvas.getBoundingClientRect();
  const [rows, columns] = welcome.size;
  const width = Math.round(columns * HEIGHT / rows);
  if (welcome.lock) {
    const moved = motionOf(event), scale = canvas.width / box.width / width;
    if (!moved) return;
    pointer = pointer.map((value, axis) => value + scale * moved[axis]);
  } else {
    const x = (event.clientX - box.left) * canvas.width / box.width;
    const panel = Math.max(0, Math.min(panels - 1, Math.floor(x / (width + GAP))));
    const y = (event.clientY - box.top) / box.height;
    const within = (value) => Math.max(0, Math.min(1, value));
    pointer = [within((x - panel * (width + GAP)) / width), within(y)];
  }
  pointerMoved = event.timeStamp;
  draw.ring = true;
}

// A view turns by motions, wherever they begin: of a locked mouse, of a finger or pen that touches.
function motionOf(event) {
  if (document.pointerLockElement === canvas) return [event.movementX, event.movementY];
  const before = motionOf.last, now = [event.clientX, event.clientY];
  motionOf.last = now;
  const drags = event.type === "pointermove" && event.pointerType !== "mouse" && event.buttons;
  return drags && before ? [now[0] - before[0], now[1] - before[1]] : null;
}

canvas.addEventListener("pointermove", follow);
canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  canvas.focus({ preventScroll: true });
  if (welcome && welcome.lock && event.pointerType === "mouse" && document.pointerLockElement !== canvas) {
    const asked = canvas.requestPointerLock();
    if (asked) asked.catch(() => {}); // refused for a second after Escape
    return;
  }
  if (document.pointerLockElement !== canvas) canvas.setPointerCapture(event.pointerId);
  follow(event);
  send({ t: "button", down: true, at: performance.now() });
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, () => send({ t: "button", down: false, at: performance.now() }));
}
document.addEventListener("pointerlockchange", () => {
  if (document.pointerLockElement !== canvas) releaseAll();
});

// -- a game pad -------------------------------------------------------------------------------

const NO_PAD = { axes: [], buttons: [] }; // what one that was unplugged holds
const PAD_KEYS = { 0: "space", 4: "z", 8: "r", 9: "p" }, DEAD = 0.25, PAD_SPEED = 0.02;

function followGamepad() {
  if (!welcome || !navigator.getGamepads) return;
  const pad = [...navigator.getGamepads()].find(Boolean) || NO_PAD;
  const before = followGamepad.keys || new Set(), now = new Set();
  for (const [button, key] of Object.entries(PAD_KEYS)) {
    const acts = pad.buttons[button] && pad.buttons[button].pressed;
    if (acts && (key !== "space" || welcome.lock)) now.add(key); // elsewhere space is a pause
  }
  const axis = (number) => Math.abs(pad.axes[number] || 0) > DEAD ? pad.axes[number] : 0;
  let [x, y] = [axis(0), axis(1)];
  if (welcome.lock) {
    if (y < 0) now.add("w");
    if (y > 0) now.add("s");
    if (x < 0) now.add("a");
    if (x > 0) now.add("d");
    [x, y] = [axis(2), axis(3)];
  }
  if (x || y) {
    const from = pointer || status.pointer || [0.5, 0.5];
    const limit = (value) => welcome.lock ? value : Math.max(0, Math.min(1, value));
    pointer = [limit(from[0] + x * PAD_SPEED), limit(from[1] + y * PAD_SPEED)];
    pointerMoved = performance.now();
    draw.ring = true;
  }
  const trigger = Boolean(pad.buttons[7] && pad.buttons[7].pressed);
  if (trigger !== Boolean(followGamepad.trigger)) send({ t: "button", down: trigger, at: performance.now() });
  for (const key of now) if (!before.has(key)) press(key);
  for (const key of before) if (!now.has(key)) release(key);
  followGamepad.keys = now;
  followGamepad.trigger = trigger;
}

// -- begin ------------------------------------------------------------------------------------

at("again").addEventListener("click", () => { tries = 0; connect(); });
window.addEventListener("pageshow", (event) => { if (event.persisted && !socket) connect(); });
window.addEventListener("offline", () => {
  const lost = socket;
  socket = null; // its end may come late, or never
  if (lost) lost.close();
  clearTimeout(retry);
  at("connection").textContent = "There is no network. Waiting for it";
});
window.addEventListener("online", () => { if (!socket && at("banner").hidden) connect(); });
window.addEventListener("pagehide", () => { if (socket) socket.close(); });
requestAnimationFrame(draw);
connect();
