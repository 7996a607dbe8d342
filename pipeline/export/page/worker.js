// The world, in a thread of its own: ONNX graphs, up to two games in them, and the planner.
// What the files hold is told by world.json, which pipeline/export/web.py writes.

import * as ort from "./ort.bundle.min.mjs";
import { search } from "./planner.js";

const ARRAYS = { float32: Float32Array, int64: BigInt64Array, uint8: Uint8Array };
const TRIALS = 5, CLOSE = 1e-2; // steps by which WebGPU is tried; difference in latents that it may have
let sessions = {}, gpu = null;
let about, starts, games = [], goal, goalFrame, searches = false;

const count = (shape) => shape.reduce((product, side) => product * side, 1);

// -- files ------------------------------------------------------------------------------------

async function read(name, told) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name} could not be loaded (${answer.status})`);
  const parts = [], reader = answer.body.getReader();
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    parts.push(value);
    told(value.length);
  }
  const blob = new Blob(parts);
  const start = new Uint8Array(await blob.slice(0, 2).arrayBuffer());
  // some hosts unpack it on the way
  if (start[0] !== 0x1f || start[1] !== 0x8b) return blob.arrayBuffer();
  return new Response(blob.stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

// hasGpu: the page has found an adapter
async function load(hasGpu) {
  about = await (await fetch("world.json")).json();
  const names = Object.keys(about.files).filter((name) => name.endsWith(".bin"));
  const total = names.reduce((sum, name) => sum + about.files[name], 0);
  let loaded = 0;
  const told = (bytes) => { loaded += bytes; postMessage({ progress: loaded / total }); };
  const contents = await Promise.all(names.map((name) => read(name, told)));
  const files = Object.fromEntries(names.map((name, at) => [name.replace(".bin", ""), contents[at]]));
  ort.env.wasm.numThreads = 1; // more need headers that a static host may not send
  ort.env.wasm.wasmBinary = files.runtime;
  starts = readStarts(files.starts);
  sessions = await opened(files, "wasm");
  let backend = "WebAssembly";
  if (about.webgpu && hasGpu) {
    const plain = sessions;
    postMessage({ tries: "WebGPU" });
    gpu = await onGpu(files);
    // small worlds are often no faster there
    if (gpu.apart <= CLOSE && gpu.share < 1) backend = "WebGPU";
    sessions = backend === "WebGPU" ? gpu.sessions : plain;
    if (gpu.problem) console.info(`WebGPU is not used: ${gpu.problem}`);
  }
  return { ...about, backend };
}

async function opened(files, backend) {
  const found = {};
  for (const name of ["step", "decode", "encode", ...(about.policy ? ["policy"] : [])]) {
    found[name] = await ort.InferenceSession.create(files[name].slice(0), { executionProviders: [backend] });
  }
  return found;
}

// The same steps on WebGPU: how far apart they are, and the share of the time that they take.
async function onGpu(files) {
  try {
    const before = await tried(sessions), found = await opened(files, "webgpu"), after = await tried(found);
    const apart = Array.from(before.latents, (value, at) => Math.abs(Number(value) - Number(after.latents[at])));
    return { sessions: found, apart: Math.max(...apart), share: after.ms / before.ms };
  } catch (problem) {
    return { apart: Infinity, problem: String(problem && problem.message || problem) };
  }
}

async function tried(candidate) {
  sessions = candidate;
  const start = starts[0], action = start.last;
  let states = start, begun = 0;
  for (let trial = 0; trial <= TRIALS; trial++) { // the first one is not timed
    if (trial === 1) begun = performance.now();
    states = { ...start, ...await step(states, action, 1) };
    await decode(states.latents, { unchanged: states.unchanged, residual: start.residual });
  }
  return { latents: states.latents, ms: performance.now() - begun };
}

function readStarts(buffer) {
  const image = [3, ...about.size];
  const fields = [
    ...about.state, { name: "latents", shape: about.latents, dtype: about.codes ? "int64" : "float32" },
    ...(about.codes ? [
      { name: "vectors", shape: about.vectors, dtype: "float32" }, { name: "residual", shape: image, dtype: "float32" },
    ] : []),
    { name: "last", shape: isDiscrete() ? [] : [about.actions.size], dtype: isDiscrete() ? "int64" : "float32" },
    { name: "frame", shape: image, dtype: "uint8" }, { name: "goalFrame", shape: image, dtype: "uint8" },
    { name: "goal", shape: about.vectors, dtype: "float32" },
  ];
  let at = 0;
  return Array.from({ length: about.num_starts }, () => Object.fromEntries(fields.map(({ name, shape, dtype }) => {
    const bytes = count(shape) * ARRAYS[dtype].BYTES_PER_ELEMENT;
    const array = new ARRAYS[dtype](buffer.slice(at, at + bytes));
    at += bytes;
    return [name, array];
  })));
}

const isDiscrete = () => about.actions.kind === "discrete";

// -- graphs -----------------------------------------------------------------------------------

function tensor(array, shape, rows) {
  const dtype = Object.keys(ARRAYS).find((name) => array instanceof ARRAYS[name]);
  return new ort.Tensor(dtype, array, [rows, ...shape]);
}

async function run(name, inputs) {
  const outputs = await sessions[name].run(inputs);
  return Object.fromEntries(Object.entries(outputs).map(([key, value]) => [key, value.data]));
}

const actionShape = () => (isDiscrete() ? [] : [about.actions.size]);

// states: what each of `rows` worlds remembers, by name. Gives the same, and latents and reward.
async function step(states, action, rows) {
  const inputs = Object.fromEntries(about.state.map(({ name, shape }) => [name, tensor(states[name], shape, rows)]));
  inputs.action = tensor(action, actionShape(), rows);
  const outputs = await run("step", inputs);
  const after = { latents: outputs.latents, vectors: outputs.vectors || outputs.latents, reward: outputs.reward };
  for (const { name } of about.state) after[name] = outputs[`next_${name}`];
  return after;
}

// of codes: the patches that are as in the first frame keep what codes lose of it
async function decode(latents, { unchanged, residual } = {}) {
  const inputs = { latents: tensor(latents, about.latents, 1) }, image = [3, ...about.size];
  if (about.codes) {
    const patches = [about.vectors[0]];
    inputs.unchanged = tensor(unchanged || new Float32Array(patches[0]), patches, 1);
    inputs.residual = tensor(residual || new Float32Array(count(image)), image, 1);
  }
  return (await run("decode", inputs)).frame;
}

const drawn = (game) => decode(game.latents, { unchanged: game.state.unchanged, residual: game.residual });

async function policy(latents, goals, last, rows) {
  return (await run("policy", {
    latents: tensor(latents, about.latents, rows), goal: tensor(goals, about.latents, rows),
    last_action: tensor(last, actionShape(), rows),
  })).knot;
}

// root of the mean square: of keypoints in pixels, else in the latents' own unit
function distance(vectors, row = 0) {
  const length = goal.length, from = row * length;
  let sum = 0;
  for (let at = 0; at < length; at++) sum += (vectors[from + at] - goal[at]) ** 2;
  return about.keypoints ? Math.sqrt(2 * sum / length) * about.size[1] / 2 : Math.sqrt(sum / length);
}

// -- the planner ------------------------------------------------------------------------------

function repeat(array, rows) {
  const wide = new array.constructor(rows * array.length);
  for (let row = 0; row < rows; row++) wide.set(array, row * array.length);
  return wide;
}

function interpolate(before, after) {
  const block = about.action_block;
  return Array.from({ length: block }, (_, at) => Float32Array.from(
    before, (value, axis) => value + (after[axis] - value) * (at + 1) / block));
}

function searched(game) {
  const size = about.actions.size;
  return {
    size,
    repeat: (rows) => ({
      rows, latents: repeat(game.latents, rows),
      ...Object.fromEntries(about.state.map(({ name }) => [name, repeat(game.state[name], rows)])),
    }),
    async block(states, before, after) {
      const { rows } = states, actions = interpolate(before, after), block = actions.length;
      if (about.world_block !== block) {
        let next = states;
        for (const action of actions) next = await step(next, action, rows);
        return { ...next, rows };
      }
      // all actions of the block but the last are given at once
      const pending = new Float32Array(rows * block * size);
      for (let row = 0; row < rows; row++) for (let at = 0; at + 1 < block; at++) {
        pending.set(actions[at].subarray(row * size, (row + 1) * size), (row * block + at) * size);
      }
      const given = { ...states, pending, count: new BigInt64Array(rows).fill(BigInt(block - 1)) };
      return { ...await step(given, actions[block - 1], rows), rows };
    },
    policy: about.policy ? (states, before) => policy(states.latents, repeat(goal, states.rows), before, states.rows) : null,
    cost: (states) => Array.from({ length: states.rows }, (_, row) => distance(states.latents, row)),
  };
}

const isBetweenBlocks = (game) => about.world_block === 1 || game.state.count[0] === 0n;

async function planned(game) {
  if (!game.queue.length) {
    const begun = performance.now();
    if ((searches || !about.policy) && isBetweenBlocks(game)) {
      const knots = await search(searched(game), game.last, game.plans++);
      game.queue = interpolate(knots[0], knots[1]);
    } else if (about.policy) {
      game.queue = interpolate(game.last, await policy(game.latents, goal, game.last, 1));
    } else {
      game.queue = [game.last]; // a search begins where a block does
    }
    game.planMs = performance.now() - begun;
  }
  return game.queue.shift();
}

// -- what the page asks for -------------------------------------------------------------------

const calls = {
  load,

  begin(number, players, keepsGoal) {
    const start = starts[number];
    if (!keepsGoal) ({ goal, goalFrame } = start);
    games = Array.from({ length: players }, () => ({
      state: Object.fromEntries(about.state.map(({ name }) => [name, start[name]])),
      latents: start.latents, vectors: start.vectors || start.latents, residual: start.residual,
      last: start.last, queue: [], plans: 0, planMs: 0,
    }));
    const away = distance(games[0].vectors);
    return { frame: start.frame, goalFrame, latents: start.latents, distance: away, last: start.last };
  },

  // actions: of each game, numbers in [-1, 1] or [code], or null where the planner acts
  async tick(actions) {
    const seen = [];
    for (const [at, game] of games.entries()) {
      const given = actions[at];
      if (given) game.queue = [];
      const action = given ? (isDiscrete() ? BigInt64Array.from(given.map(BigInt)) : Float32Array.from(given)) : await planned(game);
      const begun = performance.now();
      const after = await step(game.state, action, 1);
      game.state = after;
      Object.assign(game, { latents: after.latents, vectors: after.vectors, last: action });
      const frame = await drawn(game);
      seen.push({
        frame, latents: after.latents, reward: after.reward[0], distance: distance(after.vectors),
        action: Array.from(action, Number), stepMs: performance.now() - begun, planMs: game.planMs,
      });
    }
    return seen;
  },

  async goalIsHere() {
    [goal, goalFrame] = [games[0].vectors, await drawn(games[0])];
    for (const game of games) game.queue = [];
    return { goalFrame };
  },

  async goalFromImage(frame) {
    const { latents, vectors } = await run("encode", { frame: tensor(frame, [3, ...about.size], 1) });
    goal = vectors || latents;
    goalFrame = await decode(latents);
    for (const game of games) game.queue = [];
    return { goalFrame, distance: distance(games[0].vectors) };
  },

  setSearch(on) { searches = on; for (const game of games) game.queue = []; },

  // for tests and measurements: what was found of WebGPU
  gpu: () => gpu && { apart: gpu.apart, share: gpu.share, problem: gpu.problem },

  // for tests and measurements: frames of the first game, without a pace
  async rollout(number, actions) {
    calls.begin(number, 1);
    const seen = [];
    for (const action of actions) seen.push((await calls.tick([action]))[0]);
    return seen;
  },
};

let before = Promise.resolve(); // one call at a time: a graph runs for one at a time

onmessage = ({ data: { id, name, args } }) => {
  before = before.then(async () => {
    try {
      postMessage({ id, result: await calls[name](...args) });
    } catch (problem) {
      postMessage({ id, problem: String(problem && problem.message || problem) });
    }
  });
};
