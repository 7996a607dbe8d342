// A search for actions in the world: the cross-entropy method, around the goal policy's best rollout
// where there is one. As models/planning/planner.py, in sizes that a page has time for.

export const SETTINGS = {
  rows: 32, horizon: 5, elites: 6, warmIterations: 4, iterations: 10,
  initStd: 0.2, priorStd: 0.2, priorBlocks: 3, warmStd: 0.05, minStd: 0.01,
};

// mulberry32: the same plan each time
export function makeRandom(seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
  const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return { uniform, normal };
}

// world: { repeat(rows), block(states, before, after), policy(states, before), cost(states), size },
// where actions are arrays of rows x size. Returns knots: (horizon + 1) arrays of `size` numbers.
export async function search(world, last, seed = 0, settings = SETTINGS) {
  const { rows, horizon, elites } = settings, { size } = world;
  const random = makeRandom(seed);
  const clamp = (value) => Math.max(-1, Math.min(1, value));
  let mean = null, std = null, best = null, bestCost = Infinity;

  const consider = (candidates, costs) => {
    const order = costs.map((cost, row) => [Number.isFinite(cost) ? cost : Infinity, row]);
    order.sort((one, other) => one[0] - other[0]);
    const [lowest, at] = order[0];
    if (lowest < bestCost) {
      bestCost = lowest;
      best = candidates.map((knots) => knots.slice(at * size, (at + 1) * size));
    }
    return order.slice(0, elites).map(([, row]) => row);
  };
  const rollout = async (candidates) => {
    let states = world.repeat(rows);
    for (let block = 0; block < horizon; block++) {
      states = await world.block(states, candidates[block], candidates[block + 1]);
    }
    return world.cost(states);
  };
  const repeated = (knot) => Float32Array.from({ length: rows * size }, (_, at) => knot[at % size]);

  if (world.policy) {
    let states = world.repeat(rows);
    const candidates = [repeated(last)];
    const noisy = Array.from({ length: rows }, (_, row) => row && 1 + Math.floor(random.uniform() * settings.priorBlocks));
    for (let block = 0; block < horizon; block++) {
      const knots = await world.policy(states, candidates[block]);
      const moved = knots.map((value, at) => clamp(
        value + (block < noisy[Math.floor(at / size)] ? settings.priorStd * random.normal() : 0)));
      states = await world.block(states, candidates[block], moved);
      candidates.push(moved);
    }
    consider(candidates, world.cost(states));
    if (best) [mean, std] = [best, best.map((knot) => knot.map(() => settings.warmStd))];
  }
  const iterations = mean ? settings.warmIterations : settings.iterations;
  for (let iteration = 0; iteration < iterations; iteration++) {
    const candidates = [repeated(last)];
    for (let block = 1; block <= horizon; block++) {
      candidates.push(Float32Array.from({ length: rows * size }, (_, at) => {
        const row = Math.floor(at / size), axis = at % size;
        if (row === 0 && best) return best[block][axis]; // the best so far stays
        if (!mean) return clamp(candidates[block - 1][at] + settings.initStd * random.normal());
        return clamp(mean[block][axis] + std[block][axis] * random.normal());
      }));
    }
    const chosen = consider(candidates, await rollout(candidates));
    mean = candidates.map((knots) => Array.from({ length: size }, (_, axis) =>
      chosen.reduce((sum, row) => sum + knots[row * size + axis], 0) / elites));
    std = candidates.map((knots, block) => Array.from({ length: size }, (_, axis) => Math.max(settings.minStd,
      Math.sqrt(chosen.reduce((sum, row) => sum + (knots[row * size + axis] - mean[block][axis]) ** 2, 0) / elites))));
  }
  return best || Array.from({ length: horizon + 1 }, () => last); // where no cost was finite
}
