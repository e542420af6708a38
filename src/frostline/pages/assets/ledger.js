// What a step costs when these entries train and the rest is frozen: added up from the ledger.
const Ledger = (() => {
  "use strict";
  const VALUES = 1;
  const WEIGHTS = 2;
  const VECTORS = 4;

  // Which modules are held in eval: those all of whose subtree is frozen, and frozen norms.
  function held(data, trainable) {
    const { paths } = data.ledger;
    const place = new Map(paths.map((path, at) => [path, at]));
    const frozen = (index) => !trainable.has(index);
    const under = []; // at or below a module that is frozen whole; modules above come first
    data.modules.forEach(({ within }, at) => {
      const above = at && place.get(paths[at].slice(0, Math.max(0, paths[at].lastIndexOf("."))));
      under[at] = (at > 0 && under[above]) || (within.some(frozen) &&
        within.every((index) => frozen(index) || !data.entries[index].trains));
    });
    return data.modules.map(({ moves, own }, at) => under[at] || (moves && own.some(frozen)));
  }

  function evaluate(data, trainable, samples) {
    const { turns, values, storages, paths } = data.ledger;
    const isHeld = held(data, trainable);
    const wants = [];
    data.entries.forEach((entry, index) => {
      if (entry.parameter < 0 || !trainable.has(index)) return;
      wants[entry.parameter] = entry.dims > 1 ? WEIGHTS : VECTORS;
    });
    const layers = paths.map((_, at) => ({
      forward: 0, backward: 0, saved: 0, below: true, held: isHeld[at], runs: false, crossed: false,
    }));
    const live = [];
    const frozen = []; // below the frost line
    const kept = new Map(); // storage -> the layer that keeps it first
    const sums = { forward: 0, backward: 0, below: 0 };
    turns.forEach((turn, at) => {
      const layer = layers[turn.layer];
      const passed = turn.reads.some((v) => v >= 0 && live[values[v].turn]);
      const own = turn.own.reduce((sum, p) => sum | (wants[p] ?? 0), 0);
      const wanting = (passed ? VALUES : 0) | own;
      live[at] = wanting > 0;
      const key = wanting === VALUES && layer.held ? `${VALUES}e` : `${wanting}`;
      for (const one of turn.saved[key] ?? []) {
        const storage = standIn(one, storages, turns, layers);
        if (!kept.has(storage)) kept.set(storage, turn.layer);
      }
      const forward = turn.forward[layer.held ? 1 : 0];
      const backward = backwardSeconds(turn, wanting, key);
      const moves = !layer.held && (turn.draws || data.modules[turn.layer].moves);
      frozen[at] = !own && !moves && turn.reads.every((v) => v < 0 || frozen[values[v].turn] !== false);
      if (!layer.runs) layer.below = frozen[at]; // a layer stands where it runs first
      layer.runs = true;
      layer.forward += forward;
      layer.backward += backward;
      layer.crossed ||= passed && !own;
      sums.forward += forward;
      sums.backward += backward;
      if (frozen[at]) sums.below += forward;
    });
    let saved = 0;
    for (const [storage, layer] of kept) {
      layers[layer].saved += storages[storage].nbytes;
      saved += storages[storage].nbytes;
    }
    return {
      layers, crossing: crossing(data, frozen),
      ...inAll(data, trainable, samples, isHeld, sums, saved),
    };
  }

  // A layer that only hands its input on in eval mode has no storage of its own then.
  function standIn(one, storages, turns, layers) {
    let at = one;
    while (storages[at].eval_as !== undefined && layers[turns[storages[at].turn].layer].held)
      at = storages[at].eval_as;
    return at;
  }

  function backwardSeconds(turn, wanting, key) {
    if (!wanting) return 0;
    if (wanting & VALUES) return turn.backward[key] ?? 0;
    // Without the gradient of what it reads: what that takes, less.
    const all = turn.backward[`${wanting | VALUES}`] ?? 0;
    return Math.max(0, all - (turn.backward[`${VALUES}`] ?? 0));
  }

  // What those above the frost line read from below it.
  function crossing(data, frozen) {
    const { turns, values, batch_size: rows } = data.ledger;
    const found = new Set();
    turns.forEach((turn, at) => {
      if (!frozen[at]) turn.reads.filter((v) => v < 0 || frozen[values[v].turn]).forEach((v) => found.add(v));
    });
    return [...found].map((v) => {
      if (v < 0)
        return { name: "the batch itself", shape: [], nbytes: data.ledger.batch_bytes / rows };
      const { turn, shape, nbytes } = values[v];
      const isOfSample = shape[0] % rows === 0;
      return {
        name: data.ledger.paths[turns[turn].layer] || "(model)",
        shape: isOfSample ? shape.slice(1) : shape,
        nbytes: isOfSample ? nbytes / rows : 0,
      };
    });
  }

  function inAll(data, trainable, samples, isHeld, sums, saved) {
    const sizes = { all: 0, trains: 0, weights: data.buffer_bytes, gradients: 0, tensors: 0 };
    data.entries.forEach((entry, index) => {
      if (entry.parameter < 0) return;
      sizes.all += entry.numel;
      sizes.weights += entry.nbytes;
      if (!trainable.has(index)) return;
      sizes.trains += entry.numel;
      sizes.gradients += entry.nbytes;
      sizes.tensors += 1;
    });
    const [perByte, perTensor] = data.ledger.state;
    const state = perByte * sizes.gradients + perTensor * sizes.tensors;
    const [byteSeconds, tensorSeconds] = data.ledger.optimizer_seconds;
    const optimizer = byteSeconds * sizes.gradients + tensorSeconds * sizes.tensors;
    const step = sums.forward + sums.backward + optimizer;
    const steps = samples / data.ledger.batch_size;
    const moving = data.modules.reduce(
      (sum, one, at) => sum + (isHeld[at] ? 0 : one.moving_bytes), 0);
    return {
      parameters: sizes.all, trains: sizes.trains, weights: sizes.weights,
      gradients: sizes.gradients, state, saved,
      memory: sizes.weights + data.ledger.batch_bytes + sizes.gradients + state + saved,
      step, plain: steps * step, features: steps * (step - sums.below), once: steps * sums.below,
      delta: sizes.gradients + moving,
    };
  }

  return { evaluate };
})();
