"use strict";
/* The library's methods on typed arrays: networks with gradients, attacks, the warp, and searches over it.

   Everything is in float64, so that it can be held against PyTorch in float64 number by number. An image is a
   Float64Array [3, S, S] in [0, 1]; a transform s = [ξ px right, ζ px down, α° counter-clockwise], as in
   hpatlib.spatial; a box {translation, rotation} holds the largest of them. One function, so that its text can become a
   worker's. */
function explorerEngine(data) {
  const SIZE = data.size, AREA = SIZE * SIZE, LENGTH = 3 * AREA;

  // Reading what hpat export wrote.

  function bytes(text) {
    return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  }

  function halves(text) {
    const view = new DataView(bytes(text).buffer);
    return Float64Array.from({ length: view.byteLength / 2 }, (_, n) => {
      const bits = view.getUint16(2 * n, true), sign = bits & 0x8000 ? -1 : 1;
      const exponent = (bits >> 10) & 31, fraction = (bits & 1023) / 1024;
      return sign * (exponent ? (1 + fraction) * 2 ** (exponent - 15) : fraction * 2 ** -14);
    });
  }

  function floats(text) {
    return new Float32Array(bytes(text).buffer);
  }

  // Layers. Each has forward(x) → y and backward(dy) → dx, where x is what forward saw last.

  function convolve(x, inputs, side, weight, bias, outputs, y, padded) {
    const wide = side + 2;
    for (let i = 0; i < inputs; i++)
      for (let row = 0; row < side; row++)
        padded.set(x.subarray((i * side + row) * side, (i * side + row + 1) * side), (i * wide + row + 1) * wide + 1);
    for (let o = 0; o < outputs; o++) {
      y.fill(bias ? bias[o] : 0, o * side * side, (o + 1) * side * side);
      for (let i = 0; i < inputs; i++) {
        const k = 9 * (o * inputs + i);
        const w0 = weight[k], w1 = weight[k + 1], w2 = weight[k + 2], w3 = weight[k + 3], w4 = weight[k + 4];
        const w5 = weight[k + 5], w6 = weight[k + 6], w7 = weight[k + 7], w8 = weight[k + 8];
        for (let row = 0; row < side; row++) {
          let p = (i * wide + row) * wide, q = p + wide, r = q + wide, at = (o * side + row) * side;
          let a0 = padded[p++], a1 = padded[p++], b0 = padded[q++], b1 = padded[q++], c0 = padded[r++], c1 = padded[r++];
          for (let column = 0; column < side; column++) {
            const a2 = padded[p++], b2 = padded[q++], c2 = padded[r++];
            y[at++] += w0 * a0 + w1 * a1 + w2 * a2 + w3 * b0 + w4 * b1 + w5 * b2 + w6 * c0 + w7 * c1 + w8 * c2;
            a0 = a1; a1 = a2; b0 = b1; b1 = b2; c0 = c1; c1 = c2;
          }
        }
      }
    }
  }

  function conv(told, side) {
    const [outputs, inputs] = told.shape, weight = halves(told.weight), bias = halves(told.bias);
    const back = new Float64Array(weight.length); // inputs and outputs exchanged, each kernel turned by 180°
    for (let o = 0; o < outputs; o++)
      for (let i = 0; i < inputs; i++)
        for (let k = 0; k < 9; k++) back[9 * (i * outputs + o) + k] = weight[9 * (o * inputs + i) + 8 - k];
    const y = new Float64Array(outputs * side * side), dx = new Float64Array(inputs * side * side);
    const wide = (side + 2) ** 2, padded = new Float64Array(inputs * wide), paddedBack = new Float64Array(outputs * wide);
    return {
      forward(x) { convolve(x, inputs, side, weight, bias, outputs, y, padded); return y; },
      backward(dy) { convolve(dy, outputs, side, back, null, inputs, dx, paddedBack); return dx; },
    };
  }

  function relu(length) {
    const y = new Float64Array(length), dx = new Float64Array(length);
    return {
      forward(x) { for (let n = 0; n < length; n++) y[n] = x[n] > 0 ? x[n] : 0; return y; },
      backward(dy) { for (let n = 0; n < length; n++) dx[n] = y[n] > 0 ? dy[n] : 0; return dx; },
    };
  }

  function pool(channels, side) {
    const half = side / 2, y = new Float64Array(channels * half * half), from = new Int32Array(y.length);
    const dx = new Float64Array(channels * side * side);
    return {
      forward(x) {
        for (let n = 0, c = 0; c < channels; c++)
          for (let row = 0; row < half; row++)
            for (let column = 0; column < half; column++, n++) {
              const first = (c * side + 2 * row) * side + 2 * column;
              let best = first; // of equals the first, as PyTorch has it
              if (x[first + 1] > x[best]) best = first + 1;
              if (x[first + side] > x[best]) best = first + side;
              if (x[first + side + 1] > x[best]) best = first + side + 1;
              from[n] = best;
              y[n] = x[best];
            }
        return y;
      },
      backward(dy) { dx.fill(0); for (let n = 0; n < dy.length; n++) dx[from[n]] = dy[n]; return dx; },
    };
  }

  function linear(told) {
    const [outputs, inputs] = told.shape, weight = halves(told.weight), bias = halves(told.bias);
    const y = new Float64Array(outputs), dx = new Float64Array(inputs);
    return {
      forward(x) {
        for (let o = 0, k = 0; o < outputs; o++) {
          let sum = bias[o];
          for (let i = 0; i < inputs; i++, k++) sum += weight[k] * x[i];
          y[o] = sum;
        }
        return y;
      },
      backward(dy) {
        dx.fill(0);
        for (let o = 0, k = 0; o < outputs; o++) for (let i = 0; i < inputs; i++, k++) dx[i] += weight[k] * dy[o];
        return dx;
      },
    };
  }

  function scale(told) {
    const y = new Float64Array(LENGTH), dx = new Float64Array(LENGTH);
    return {
      forward(x) { for (let n = 0; n < LENGTH; n++) y[n] = (x[n] - told.mean) / told.std; return y; },
      backward(dy) { for (let n = 0; n < LENGTH; n++) dx[n] = dy[n] / told.std; return dx; },
    };
  }

  function constant(told) {
    const y = Float64Array.from(told.logits), dx = new Float64Array(LENGTH);
    return { forward: () => y, backward: () => dx };
  }

  function build(told) {
    let channels = 3, side = SIZE;
    return told.layers.map((layer) => {
      if (layer.kind === "conv") { channels = layer.shape[0]; return conv(layer, side); }
      if (layer.kind === "linear") { channels = layer.shape[0]; side = 1; return linear(layer); }
      if (layer.kind === "pool") { side /= 2; return pool(channels, 2 * side); }
      if (layer.kind === "relu") return relu(channels * side * side);
      if (layer.kind === "scale") return scale(layer);
      if (layer.kind === "constant") return constant(layer);
      throw new Error(`a layer of the kind ${layer.kind}, which this page does not know`);
    });
  }

  const networks = Object.fromEntries(Object.entries(data.networks).map(([name, told]) => [name, build(told)]));
  const raw = bytes(data.phantoms.pixels), labels = data.phantoms.labels;
  const phantoms = labels.map((_, n) => Float64Array.from(raw.subarray(n * LENGTH, (n + 1) * LENGTH), (v) => v / 255));

  function logits(network, x) {
    return Array.from(networks[network].reduce((y, layer) => layer.forward(y), x));
  }

  function probabilities(z) {
    const top = Math.max(...z), e = z.map((v) => Math.exp(v - top)), sum = e.reduce((a, b) => a + b);
    return e.map((v) => v / sum);
  }

  /* ∇ℓ of the cross-entropy with `label`, as hpatlib.attacks.gradient. */
  function gradient(network, x, label) {
    let slope = Float64Array.from(probabilities(logits(network, x)), (p, k) => p - (k === label ? 1 : 0));
    for (const layer of networks[network].slice().reverse()) slope = layer.backward(slope);
    return slope.slice();
  }

  /* log(p / (1 − p)) of p, the probability of all classes but `label`, as hpatlib.spatial.log_odds. */
  function logOdds(z, label) {
    const others = z.filter((_, k) => k !== label), top = Math.max(...others);
    return top + Math.log(others.reduce((sum, v) => sum + Math.exp(v - top), 0)) - z[label];
  }

  function softplus(v) { // cross-entropy, as a function of the log-odds
    return Math.max(v, 0) + Math.log1p(Math.exp(-Math.abs(v)));
  }

  // Noise, as hpatlib.attacks and hpatlib.hybrid.random_noise.

  const between = (v, low, high) => Math.min(Math.max(v, low), high);

  function ascend(network, x, label, { eps, step, iterations, start = x }) {
    if (eps === 0) return x.slice();
    const low = x.map((v) => Math.max(v - eps, 0)), high = x.map((v) => Math.min(v + eps, 1));
    let end = start.map((v, n) => between(v, low[n], high[n]));
    for (let t = 0; t < iterations; t++) {
      const slope = gradient(network, end, label);
      end = end.map((v, n) => between(v + step * Math.sign(slope[n]), low[n], high[n]));
    }
    return end;
  }

  const GAUSSIAN_START = 0.001; // line 5 of Algorithm 1

  /* The noisy image of `attack` {kind, eps, steps}, ε in grey levels of 255, and how many gradients it took. */
  function perturb(network, x, label, attack, random) {
    const eps = attack.eps / 255;
    if (attack.kind === "random") {
      return { image: x.map((v) => between(v + eps * (2 * random() - 1), 0, 1)), gradients: 0 };
    }
    if (attack.kind === "fgsm") {
      return { image: ascend(network, x, label, { eps, step: eps, iterations: 1 }), gradients: eps > 0 ? 1 : 0 };
    }
    if (attack.kind === "pgd") {
      const start = x.map((v) => v + GAUSSIAN_START * normal(random)), iterations = attack.steps;
      return { image: ascend(network, x, label, { eps, step: 1 / 255, iterations, start }), gradients: eps > 0 ? iterations : 0 };
    }
    return { image: x.slice(), gradients: 0 };
  }

  function generator(seed) { // numbers in [0, 1), the same for one seed: a link shows what was seen
    let state = seed >>> 0;
    return () => {
      state = (state + 0x9e3779b9) >>> 0;
      let mixed = Math.imul(state ^ (state >>> 16), 0x85ebca6b);
      mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
      return ((mixed ^ (mixed >>> 16)) >>> 0) / 2 ** 32;
    };
  }

  function normal(random) {
    return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  }

  // Movement, as hpatlib.spatial.transform: turned about the centre, then shifted; bilinear, zeros outside.

  function warp(x, [right, down, angle]) {
    if (right === 0 && down === 0 && angle === 0) return x.slice();
    const y = new Float64Array(x.length), middle = (SIZE - 1) / 2, turn = (angle * Math.PI) / 180;
    const cos = Math.cos(turn), sin = Math.sin(turn);
    for (let row = 0, at = 0; row < SIZE; row++)
      for (let column = 0; column < SIZE; column++, at++) {
        const across = column - middle - right, along = row - middle - down;
        const u = cos * across - sin * along + middle, v = sin * across + cos * along + middle;
        const left = Math.floor(u), top = Math.floor(v), du = u - left, dv = v - top;
        for (let c = 0; c < 3; c++) {
          let sum = 0;
          for (let j = 0; j < 2; j++)
            for (let i = 0; i < 2; i++)
              if (left + i >= 0 && left + i < SIZE && top + j >= 0 && top + j < SIZE)
                sum += (i ? du : 1 - du) * (j ? dv : 1 - dv) * x[c * AREA + (top + j) * SIZE + left + i];
          y[c * AREA + at] = sum;
        }
      }
    return y;
  }

  // Searches over transforms. A point is [3] in [0, 1]³, a place in the box; each search yields after every query.

  const circle = (box) => box.rotation === 180; // both ends of the angle are one picture

  function place(unit, box) {
    return [(2 * unit[0] - 1) * box.translation, (2 * unit[1] - 1) * box.translation, (2 * unit[2] - 1) * box.rotation];
  }

  function search(network, x, label, box) {
    const found = { unit: [0.5, 0.5, 0.5], s: [0, 0, 0], loss: -Infinity, score: -Infinity, queries: [], history: [] };
    found.ask = (unit) => {
      const s = place(unit, box), score = logOdds(logits(network, warp(x, s)), label), loss = softplus(score);
      if (loss > found.loss || (loss === found.loss && score > found.score)) Object.assign(found, { unit, s, loss, score });
      found.queries.push({ s, score, loss });
      found.history.push(found.loss);
      return score;
    };
    return found;
  }

  const GRIDS = { 9: [1, 1, 9], 27: [3, 3, 3], 99: [3, 3, 11], 775: [5, 5, 31] };

  function* gridSearch(found, box, counts) {
    const axes = counts.map((count, axis) => Array.from({ length: count }, (_, n) => {
      if (axis === 2 && circle(box)) return 0.5 + (n - Math.floor(count / 2)) / count;
      return count > 1 ? n / (count - 1) : 0.5;
    }));
    for (const right of axes[0]) for (const down of axes[1]) for (const angle of axes[2]) yield found.ask([right, down, angle]);
  }

  function* randomSearch(found, evaluations, random) {
    for (let t = 0; t < evaluations; t++) yield found.ask([random(), random(), random()]);
  }

  // STBO, as hpatlib.stbo: Matérn-5/2 processes with rival length-scales, the likeliest chosen before each query, the
  // next query the candidate of highest expected improvement.

  const NOISE = 1e-4, SHIFTS = [0.1, 0.2, 0.4], ANGLES = [0.025, 0.05, 0.1, 0.2], ANYWHERE = 48, NEAR = 48;

  function features(unit, box) {
    const shift = box.translation > 0 ? 1 : 0, around = 2 * Math.PI * unit[2];
    if (circle(box)) return [unit[0] * shift, unit[1] * shift, Math.cos(around) / (2 * Math.PI), Math.sin(around) / (2 * Math.PI)];
    return [unit[0] * shift, unit[1] * shift, box.rotation > 0 ? unit[2] : 0];
  }

  function process(capacity) {
    const rivals = SHIFTS.flatMap((shift) => ANGLES.map((angle) => ({ shift, angle, inverse: new Float64Array(capacity ** 2) })));
    const inputs = new Float64Array(4 * capacity), values = [];
    let chosen = rivals[0], target = null; // of the posterior: L⁻¹g

    function covariance({ shift, angle }, point) { // Matérn-5/2 between the point and each input
      const row = new Float64Array(values.length), [p0, p1, p2, p3 = 0] = point;
      for (let n = 0, at = 0; n < row.length; n++, at += 4) {
        const square = ((inputs[at] - p0) ** 2 + (inputs[at + 1] - p1) ** 2) / (shift * shift) +
          ((inputs[at + 2] - p2) ** 2 + (inputs[at + 3] - p3) ** 2) / (angle * angle);
        const distance = Math.sqrt(5 * square);
        row[n] = (1 + distance + (distance * distance) / 3) * Math.exp(-distance);
      }
      return row;
    }

    function times(inverse, vector) { // L⁻¹v
      const product = new Float64Array(vector.length);
      for (let row = 0; row < vector.length; row++) {
        let sum = 0;
        for (let k = 0, at = row * capacity; k <= row; k++, at++) sum += inverse[at] * vector[k];
        product[row] = sum;
      }
      return product;
    }

    function dot(a, b) {
      let sum = 0;
      for (let n = 0; n < a.length; n++) sum += a[n] * b[n];
      return sum;
    }

    function standardised() {
      const mean = values.reduce((a, b) => a + b, 0) / values.length;
      const deviation = Math.sqrt(values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / values.length);
      return values.map((v) => (v - mean) / Math.max(deviation, 1e-12));
    }

    return {
      standardised,
      add(point, value) {
        const t = values.length;
        for (const rival of rivals) {
          const { inverse } = rival, row = times(inverse, covariance(rival, point));
          const pivot = Math.sqrt(Math.max(1 + NOISE - dot(row, row), NOISE));
          for (let n = 0; n < t; n++)
            for (let k = 0; k <= n; k++) inverse[t * capacity + k] -= (row[n] * inverse[n * capacity + k]) / pivot;
          inverse[t * capacity + t] = 1 / pivot;
        }
        inputs.set(point, 4 * t);
        values.push(value);
      },
      choose() {
        const g = standardised();
        let highest = -Infinity;
        for (const rival of rivals) {
          const half = times(rival.inverse, g);
          let logDeterminant = 0;
          for (let n = 0; n < g.length; n++) logDeterminant -= 2 * Math.log(rival.inverse[n * capacity + n]);
          const likelihood = -0.5 * (dot(half, half) + logDeterminant);
          if (likelihood > highest) { highest = likelihood; chosen = rival; target = half; }
        }
      },
      posterior(point) {
        const half = times(chosen.inverse, covariance(chosen, point));
        return [dot(half, target), Math.sqrt(Math.max(1 - dot(half, half), 1e-12))];
      },
    };
  }

  const density = (u) => Math.exp(-0.5 * u * u) / Math.sqrt(2 * Math.PI);

  function distribution(u) { // Φ: its series near 0, its continued fraction in the tails
    if (Math.abs(u) < 4) {
      let term = u, sum = u;
      for (let n = 1; Math.abs(term) > 1e-17; n++) { term *= (u * u) / (2 * n + 1); sum += term; }
      return 0.5 + density(u) * sum;
    }
    let fraction = Math.abs(u);
    for (let n = 60; n > 0; n--) fraction = Math.abs(u) + n / fraction;
    return u < 0 ? density(u) / fraction : 1 - density(u) / fraction;
  }

  function quantile(p) { // Φ⁻¹ by Newton's method, which comes from one side because Φ is convex below 0
    if (p > 0.5) return -quantile(1 - p);
    let u = 0;
    for (let n = 0; n < 100; n++) {
      const step = (distribution(u) - p) / density(u);
      u -= step;
      if (Math.abs(step) < 1e-12) break;
    }
    return u;
  }

  function improvement(mean, deviation, best) {
    const u = (mean - best) / deviation;
    return deviation * (density(u) + u * distribution(u));
  }

  function* stbo(found, box, evaluations, random) {
    const design = data.sobol.slice(0, Math.min(10, evaluations)), shift = [random(), random(), random()];
    const believed = process(evaluations), wrapped = (v) => ((v % 1) + 1) % 1;
    for (let t = 0; t < evaluations; t++) {
      let unit = [0.5, 0.5, 0.5]; // first the untouched image: the result is never milder than no attack
      if (t > 0 && t < design.length) unit = design[t].map((v, d) => (v + shift[d]) % 1);
      if (t >= design.length) {
        believed.choose();
        const best = Math.max(...believed.standardised());
        let highest = -Infinity;
        for (let n = 0; n < ANYWHERE + NEAR; n++) {
          let point = [random(), random(), random()];
          const last = random();
          if (n >= ANYWHERE) {
            const reach = 0.3 * 10 ** (-2 * last);
            point = point.map((v, d) => found.unit[d] + reach * quantile(between(v, 1e-6, 1 - 1e-6)));
            point = point.map((v, d) => (d === 2 && circle(box) ? wrapped(v) : between(v, 0, 1)));
          }
          const wanted = improvement(...believed.posterior(features(point, box)), best);
          if (wanted > highest) { highest = wanted; unit = point; }
        }
      }
      const score = found.ask(unit);
      believed.add(features(unit, box), score);
      yield score;
    }
  }

  /* The search `method` names: "grid9" … "grid775", "random100", "stbo100". */
  function strategy(method, found, box, random) {
    const [, kind, count] = method.match(/^([a-z]+)(\d+)$/);
    if (kind === "grid") return gridSearch(found, box, GRIDS[count]);
    return kind === "random" ? randomSearch(found, Number(count), random) : stbo(found, box, Number(count), random);
  }

  /* Whether this browser computes what PyTorch did: the largest differences of logits and of a gradient. */
  function check() {
    let ofLogits = 0, ofGradient = 0;
    for (const [name, expected] of Object.entries(data.check.logits)) {
      for (const n of [0, labels.length - 1])
        logits(name, phantoms[n]).forEach((v, k) => { ofLogits = Math.max(ofLogits, Math.abs(v - expected[n][k])); });
      const slope = floats(data.check.gradient[name]);
      gradient(name, phantoms[0], labels[0]).forEach((v, n) => { ofGradient = Math.max(ofGradient, Math.abs(v - slope[n])); });
    }
    return { logits: ofLogits, gradient: ofGradient };
  }

  return {
    SIZE, phantoms, labels, logits, probabilities, gradient, logOdds, softplus, ascend, perturb, generator, warp, place,
    search, gridSearch, randomSearch, stbo, strategy, distribution, quantile, check,
  };
}
