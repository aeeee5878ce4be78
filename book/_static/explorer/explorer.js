"use strict";
/* The page: one state, kept in the address; two workers that compute; functions that draw what they answer. */

// What the reader may set. Everything that is seen follows from it, so that an address shows the same to everybody.
const START = {
  question: 0, image: 4, network: "standard", noise: "random", eps: 2, steps: 6, label: "truth", order: "noise-turn",
  right: 0, down: 0, angle: 0, move: "hand", box: "narrow", seed: 0,
};
const ALLOWED = {
  network: ["standard", "hybrid", "constant"], noise: ["none", "random", "fgsm", "pgd"], label: ["truth", "other", "answer"],
  order: ["noise-turn", "turn-noise"], box: ["narrow", "wide"],
  move: ["hand", "grid9", "grid27", "grid99", "grid775", "random100", "stbo100"],
};
const LIMITS = {
  question: [0, 4], image: [0, EXPLORER.phantoms.labels.length - 1], eps: [0, 8], steps: [1, 20], right: [-6, 6],
  down: [-6, 6], angle: [-180, 180], seed: [0, 1e6],
};
const SHORT = {
  question: "q", image: "i", network: "m", noise: "n", eps: "e", steps: "k", label: "l", order: "o", right: "x", down: "y",
  angle: "a", move: "v", box: "b", seed: "s",
};
const BOXES = { narrow: { translation: 3, rotation: 30 }, wide: { translation: (12 * EXPLORER.size) / 300, rotation: 180 } };
const CLASSES = ["normal", "malignant"];
const NETWORKS = { standard: "Standard training", hybrid: "Hybrid training", constant: "Always malignant" };
const BOOK = "../../";

const LESSONS = [
  {
    title: "Is random noise adversarial?",
    look: "Every pixel has moved by up to 2/255, at random. Look at the first bar, then let PGD choose the same amount.",
    steps: [["Random, 2/255", {}], ["PGD, 2/255", { noise: "pgd" }], ["Random, 8/255", { eps: 8 }]],
    set: { noise: "random", eps: 2 },
    shows: "The two are of one size, and only one has a direction. Random noise hardly moves the bars, even at 8/255; two grey levels along the gradient undo most answers of the standard network, and fewer of the one trained on such images.",
    claim: "Figure 1 of the leukemia paper shows answers that flip after “random but slight noise and spatial transformations”, and gives no rate. The chapter counts, random and searched apart.",
    chapter: ["Figure 1", "notebooks/hpat/fig1_robustness_issue.html"],
  },
  {
    title: "Can a turn undo the noise?",
    look: "PGD has fooled the standard network. Turn the noisy cell by 30° and look at the first bar, and at the accuracy of the first row below.",
    steps: [["PGD at 4/255", {}], ["Then turn by 30°", { angle: 30 }], ["Turn first, then make the noise", { angle: 30, order: "turn-noise" }]],
    set: { noise: "pgd", eps: 4 },
    shows: "Noise is made for the pixels where they are. A turn moves and smears it, and most answers come back. Noise that is made for the turned cell fools the network again: the order decides.",
    claim: "Figure 5 of the leukemia paper lets ε and rotation grow together, and says that the ROI falls. With one fixed turn after the noise it need not; the chapter shows both readings of a cell, fixed and searched.",
    chapter: ["Figure 5", "notebooks/hpat/fig5_hybrid_grid.html"],
  },
  {
    title: "How far and how often may a search look?",
    look: "No noise, only turns and shifts. Press one search after the other and look at the worst loss that each has found, in the list under the map.",
    steps: [["Grid, 9 queries", {}], ["Grid, 99", { move: "grid99" }], ["STBO, 100", { move: "stbo100" }], ["STBO, up to ±180°", { move: "stbo100", box: "wide" }]],
    set: { noise: "none", eps: 0, move: "grid9" },
    shows: "Nine queries of a grid are nine angles without a shift. More queries find more, and so does a search that learns from its answers. But the range decides first: with another box, all of them find other things. What no search has found may still be there.",
    claim: "Figure 6 of the leukemia paper has STBO “consistently under” grid search, without saying the grid, its range or its budget. The chapter gives both the same queries, in both ranges.",
    chapter: ["Figure 6", "notebooks/hpat/fig6_stbo_vs_grid_search.html"],
  },
  {
    title: "Can a useless model look robust?",
    look: "All three networks have been attacked with PGD at 8/255. Which is the most robust? Look at the two numbers of each, on all 24 phantoms.",
    steps: [["Always malignant", {}], ["Standard training", { network: "standard" }], ["Hybrid training", { network: "hybrid" }]],
    set: { network: "constant", noise: "pgd", eps: 8, steps: 8 },
    shows: "The rate of invariance (ROI, equation 15) of the network that calls every cell malignant is 100 %: an answer that never changes is never changed. Its accuracy is that of a coin. So ROI means something only beside accuracy.",
    claim: "Figure 5 shows the ROI alone. In this book it never stands without the accuracy.",
    chapter: ["How we read ROI", "book/interpretations.html#l27"],
  },
  {
    title: "Whose label makes the noise?",
    look: "FGSM was told the true class. Tell it the wrong one: look at the noise, and at the first bar.",
    steps: [["The truth", {}], ["The wrong label", { label: "other" }], ["The network’s own answer", { label: "answer" }]],
    set: { noise: "fgsm", eps: 2 },
    shows: "With two classes, the noise for one label is the negative of the noise for the other. So noise carries the label: made with the wrong one it helps the network, and whoever trains on noise made with the right one may teach a network to read the noise.",
    claim: "Figure 1 does not say for which label its noise was made. Equations 2 and 3 take the true one; so does this book, and a test set has no other use for it.",
    chapter: ["Equations 2 and 3", "book/interpretations.html#l13"],
  },
];

const $ = (id) => document.getElementById(id);
const per100 = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const signed = (v, digits) => `${v > 0 ? "+" : v < 0 ? "−" : ""}${Math.abs(v).toFixed(digits)}`;
const count = (n, word, words = `${word}s`) => `${n} ${n === 1 ? word : words}`;
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;

// State and address.

function written(state) {
  const told = Object.keys(START).filter((key) => state[key] !== START[key]).map((key) => `${SHORT[key]}=${state[key]}`);
  return told.length ? `#${told.join("&")}` : "";
}

function read(hash) {
  const said = new URLSearchParams(hash.replace(/^#/, "")), state = { ...START };
  for (const [key, letter] of Object.entries(SHORT)) {
    const value = said.get(letter);
    if (value === null) continue;
    if (ALLOWED[key]) { if (ALLOWED[key].includes(value)) state[key] = value; continue; }
    const [low, high] = LIMITS[key], number = Number(value);
    if (Number.isFinite(number)) state[key] = Math.min(Math.max(number, low), high);
  }
  for (const key of ["question", "image", "steps", "seed"]) state[key] = Math.round(state[key]);
  return state;
}

let state = read(location.hash), results = {}, runs = [], queries = [], tally = [], map = null, spent = 0;

function config() {
  const { image, network, noise, eps, steps, label, order, seed, right, down, angle } = state;
  return { image, network, noise: { kind: noise, eps, steps, label }, order, seed, s: [right, down, angle], box: BOXES[state.box], move: state.move };
}

// What decides the map, and what decides a search: a change makes the old ones void.
const scene = () => JSON.stringify([state.image, state.network, state.noise, state.eps, state.steps, state.label, state.order, state.seed]);
const slice = () => JSON.stringify([scene(), state.box, state.down]);
let lastScene = "", lastSlice = "", lastBox = "", toldHash = written(state), timer = 0;

function change(part, { keepMove = false } = {}) {
  const moved = ["right", "down", "angle"].some((key) => key in part && part[key] !== state[key]);
  state = { ...state, ...part };
  if (moved && !keepMove && !("move" in part)) state.move = "hand";
  update();
}

function tellAddress() {
  const address = written(state) || location.href.split("#")[0];
  try { history.replaceState(null, "", address); } catch { /* some browsers refuse it for files */ }
  if (written(state) !== toldHash) parent.postMessage({ explorer: "hash", hash: toldHash = written(state) }, "*");
}

function update({ fresh = false } = {}) {
  tellAddress();
  const sceneNow = scene(), otherScene = fresh || sceneNow !== lastScene, otherBox = lastBox !== state.box;
  if (otherScene) { runs = []; lastScene = sceneNow; }
  if (otherScene || otherBox) { queries = []; spent = 0; lastBox = state.box; }
  drawControls();
  look();
  jobs.search++;
  front.postMessage({ kind: "stop", of: "search" });
  if (state.move !== "hand") {
    queries = []; spent = 0;
    front.postMessage({ kind: "search", job: jobs.search, config: config(), pace: calm ? 0 : 1200 });
  }
  clearTimeout(timer);
  stopTally();
  timer = setTimeout(() => {
    if (slice() !== lastSlice) { lastSlice = slice(); askMap(); }
    if (state.move === "hand") askTally();
  }, fresh ? 0 : 250);
  drawRuns();
}

// Workers: one for what the reader looks at, one for the map and the other phantoms. From a blob, so that a file will do.

function worker() {
  /* Runs in the worker, which has the engine and the data. Long work pauses every few milliseconds to hear of a stop. */
  function serve() {
    const engine = explorerEngine(EXPLORER), noisy = new Map();
    const stops = { search: 0, map: 0, tally: 0 };
    const channel = new MessageChannel(), waiting = [];
    channel.port1.onmessage = () => waiting.shift()();
    const breath = () => new Promise((done) => { waiting.push(done); channel.port2.postMessage(0); });
    const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

    const largest = (z) => z.indexOf(Math.max(...z));
    function label(config, x) {
      const truth = engine.labels[config.image];
      if (config.noise.label === "truth") return truth;
      return config.noise.label === "other" ? 1 - truth : largest(engine.logits(config.network, x));
    }
    function perturbed(config, x) {
      const random = engine.generator(7919 * config.seed + config.image + 1);
      return engine.perturb(config.network, x, label(config, x), config.noise, random);
    }
    /* The image that a search moves: with its noise, where that is made first. */
    function before(config) {
      const x = engine.phantoms[config.image];
      if (config.order === "turn-noise") return { image: x, gradients: 0 };
      const key = JSON.stringify([config.image, config.network, config.noise, config.seed]);
      if (!noisy.has(key)) {
        if (noisy.size > 200) noisy.clear();
        noisy.set(key, perturbed(config, x));
      }
      return noisy.get(key);
    }
    function attacked(config, s) {
      const clean = engine.phantoms[config.image], first = before(config), moved = engine.warp(first.image, s);
      if (config.order === "noise-turn") return { seen: moved, noise: first.image.map((v, n) => v - clean[n]), gradients: first.gradients };
      const last = perturbed(config, moved);
      return { seen: last.image, noise: last.image.map((v, n) => v - moved[n]), gradients: last.gradients };
    }
    function searching(config) {
      const { image, gradients } = before(config), truth = engine.labels[config.image];
      const found = engine.search(config.network, image, truth, config.box);
      return { found, gradients, steps: engine.strategy(config.move, found, config.box, engine.generator(104729 * config.seed + config.image + 1)) };
    }

    const serving = {
      look({ job, config }) {
        const { seen, noise, gradients } = attacked(config, config.s), clean = engine.phantoms[config.image], answers = {};
        for (const name of ["standard", "hybrid", "constant"])
          answers[name] = { clean: engine.probabilities(engine.logits(name, clean)), seen: engine.probabilities(engine.logits(name, seen)) };
        const loss = engine.softplus(engine.logOdds(engine.logits(config.network, seen), engine.labels[config.image]));
        postMessage({ kind: "look", job, clean, noise, seen, answers, gradients, loss });
      },
      async search({ job, config, pace }) {
        const mine = stops.search, { found, steps } = searching(config), total = Number(config.move.match(/\d+/)[0]);
        let since = performance.now(), sent = 0;
        const send = (done) => {
          postMessage({ kind: "search", job, queries: found.queries.slice(sent), s: found.s, loss: found.loss, done });
          sent = found.queries.length;
        };
        for (const _ of steps) {
          if (pace && total <= 100) { send(false); await sleep(pace / total); } else if (performance.now() - since > 30) { send(false); await breath(); since = performance.now(); }
          if (mine !== stops.search) return;
        }
        send(true);
      },
      async map({ job, config, columns, rows }) {
        const mine = stops.map, { image } = before(config), truth = engine.labels[config.image], order = [];
        const { translation, rotation } = config.box;
        for (const stride of [4, 2, 1]) // coarse first
          for (let row = 0; row < rows; row += stride)
            for (let column = 0; column < columns; column += stride)
              if (stride === 4 || row % (2 * stride) || column % (2 * stride)) order.push([column, row, stride]);
        let cells = [], since = performance.now();
        for (const [column, row, stride] of order) {
          const s = [translation * (1 - (2 * row) / (rows - 1)), config.s[1], rotation * ((2 * column) / (columns - 1) - 1)];
          cells.push([column, row, stride, engine.logOdds(engine.logits(config.network, engine.warp(image, s)), truth)]);
          if (performance.now() - since > 25) {
            postMessage({ kind: "map", job, cells });
            cells = [];
            await breath();
            if (mine !== stops.map) return;
            since = performance.now();
          }
        }
        postMessage({ kind: "map", job, cells, done: true });
      },
      async tally({ job, config, images }) {
        const mine = stops.tally;
        for (let image = 0; image < images; image++)
          for (const network of ["standard", "hybrid", "constant"]) {
            const own = { ...config, image, network };
            let s = config.s, since = performance.now();
            if (config.move !== "hand" && network !== "constant") {
              const { found, steps } = searching(own);
              for (const _ of steps)
                if (performance.now() - since > 20) { await breath(); if (mine !== stops.tally) return; since = performance.now(); }
              s = found.s;
            }
            const clean = largest(engine.logits(network, engine.phantoms[image]));
            postMessage({ kind: "tally", job, image, network, before: clean, after: largest(engine.logits(network, attacked(own, s).seen)) });
            await breath();
            if (mine !== stops.tally) return;
          }
        postMessage({ kind: "tally", job, done: true });
      },
      stop({ of }) { stops[of]++; },
      check() { postMessage({ kind: "check", ...engine.check() }); },
    };
    onmessage = ({ data }) => serving[data.kind](data);
  }
  const text = `"use strict"; const EXPLORER = ${JSON.stringify(EXPLORER)}; ${explorerEngine}; (${serve})();`;
  return new Worker(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
}

const jobs = { look: 0, search: 0, map: 0, tally: 0 };
const front = worker(), back = worker();

let looking = false, lookAgain = false; // one look at a time: a fast hand must not queue up work
function look() {
  jobs.look++;
  lookAgain = looking;
  if (!looking) front.postMessage({ kind: "look", job: jobs.look, config: config() });
  looking = true;
}

function askMap() {
  if (map && !map.done) back.postMessage({ kind: "stop", of: "map" });
  const wide = state.box === "wide";
  map = { columns: wide ? 37 : 31, rows: 13, cells: [], down: state.down, box: BOXES[state.box], at: state.box };
  back.postMessage({ kind: "map", job: ++jobs.map, config: config(), columns: map.columns, rows: map.rows });
  drawMap();
}

function stopTally() {
  jobs.tally++;
  back.postMessage({ kind: "stop", of: "tally" });
  tally = [];
  drawTally();
}

function askTally() {
  tally = [];
  back.postMessage({ kind: "tally", job: ++jobs.tally, config: config(), images: EXPLORER.phantoms.labels.length });
  drawTally();
  $("run-all").disabled = true;
}

const hear = {
  look(answer) {
    results = answer;
    looking = false;
    if (lookAgain) look();
    drawPictures();
    drawAnswers();
    drawMap();
    speak();
  },
  search(answer) {
    if (answer.job !== jobs.search) return;
    queries.push(...answer.queries);
    spent = queries.length;
    if (answer.done) {
      runs = runs.filter((run) => run.move !== state.move || run.box !== state.box);
      runs.push({ move: state.move, box: state.box, queries: spent, loss: answer.loss });
      const [right, down, angle] = answer.s;
      state = { ...state, right, down, angle };
      tellAddress();
      drawControls();
      look();
      if (slice() !== lastSlice) { lastSlice = slice(); askMap(); }
    }
    drawMap();
    drawRuns();
  },
  map(answer) {
    if (answer.job !== jobs.map) return;
    map.cells.push(...answer.cells);
    map.done = answer.done;
    drawMap();
  },
  tally(answer) {
    if (answer.job !== jobs.tally) return;
    if (answer.done) $("run-all").disabled = false;
    else tally.push(answer);
    drawTally();
  },
  check(answer) {
    document.documentElement.dataset.checked = JSON.stringify(answer);
    const fine = answer.logits < 1e-4 && answer.gradient < 1e-4;
    const text = `Logits and gradients of this browser differ from PyTorch’s by ${answer.logits.toExponential(0)} and ${answer.gradient.toExponential(0)} at most.`;
    $("about").textContent += fine ? ` ${text}` : "";
    if (!fine) $("about").insertAdjacentHTML("beforebegin", `<p class="error">${text} Do not trust what you see here: try another browser.</p>`);
  },
};
front.onmessage = back.onmessage = ({ data }) => hear[data.kind]?.(data);

// Drawing.

function paint(canvas, image, shade) {
  const context = canvas.getContext("2d"), picture = context.createImageData(EXPLORER.size, EXPLORER.size), area = EXPLORER.size ** 2;
  for (let n = 0; n < area; n++) {
    for (let c = 0; c < 3; c++) picture.data[4 * n + c] = Math.round(255 * shade(image[c * area + n]));
    picture.data[4 * n + 3] = 255;
  }
  context.putImageData(picture, 0, 0);
}

const bright = (v) => Math.min(1.6 * v, 1); // cells are dark: shown a little brighter than they are, all alike

function drawPictures() {
  const truth = CLASSES[EXPLORER.phantoms.labels[state.image]];
  paint($("clean"), results.clean, bright);
  paint($("noise"), results.noise, (v) => Math.min(Math.max(0.5 + 20 * v, 0), 1));
  paint($("seen"), results.seen, bright);
  $("clean").setAttribute("aria-label", `Phantom ${state.image + 1}, a ${truth} cell`);
  $("noise").setAttribute("aria-label", `Noise of at most ${state.eps} of 255 grey levels, times 20`);
  $("seen").setAttribute("aria-label", `The cell as the network sees it: turned by ${Math.round(state.angle)} degrees, shifted by ${state.right.toFixed(1)} to the right and ${state.down.toFixed(1)} pixels down`);
}

function drawAnswers() {
  const truth = EXPLORER.phantoms.labels[state.image];
  $("answers").innerHTML = ["standard", "hybrid", ...(state.network === "constant" ? ["constant"] : [])].map((name) => {
    const share = results.answers[name].seen[1], answer = share > 0.5 ? 1 : 0, right = answer === truth;
    const changed = answer !== (results.answers[name].clean[1] > 0.5 ? 1 : 0);
    const verdict = `${right ? "✓" : "✗"} ${CLASSES[answer]}, ${right ? "right" : "wrong"}${changed ? ", changed" : ""}`;
    const role = name === state.network ? "attacked" : "same picture";
    return `<div class="answer"><span>${NETWORKS[name]} <small>${role}</small></span><span class="verdict ${right ? "right" : "wrong"}">${verdict}</span>
      <div class="bar" role="img" aria-label="${per100(share)} malignant"><span style="width:${100 * share}%"></span></div>
      <div class="ends"><span>malignant ${per100(share)}</span><span>normal ${per100(1 - share)}</span></div></div>`;
  }).join("");
  $("gradients").textContent = count(results.gradients, "gradient");
}

function drawControls() {
  for (const group of document.querySelectorAll("[data-key]"))
    for (const button of group.children) button.setAttribute("aria-pressed", String(state[group.dataset.key] === button.value));
  for (const key of ["eps", "steps", "angle", "right", "down"]) $(key).value = state[key];
  $("eps-out").textContent = `${state.eps}/255`;
  $("steps-out").textContent = `${count(state.steps, "step")} of 1/255`;
  $("angle-out").textContent = `${signed(state.angle, 0)}°`;
  $("right-out").textContent = `${signed(state.right, 1)} px`;
  $("down-out").textContent = `${signed(state.down, 1)} px`;
  $("link").href = written(state) || "#";
  for (const button of $("phantoms").children) button.setAttribute("aria-pressed", String(Number(button.value) === state.image));
  for (const button of $("questions").children) button.setAttribute("aria-current", String(Number(button.value) === state.question));
  for (const button of document.querySelectorAll("#lesson [data-step]")) {
    const wanted = { ...START, ...LESSONS[state.question].set, ...LESSONS[state.question].steps[button.dataset.step][1] };
    const searched = wanted.move !== "hand";
    const same = Object.keys(START).every((key) => ["question", "image", "seed"].includes(key) || (searched && ["right", "down", "angle"].includes(key)) || wanted[key] === state[key]);
    button.setAttribute("aria-pressed", String(same));
  }
}

const COLOURS = [[31, 95, 153], [244, 244, 242], [181, 56, 10]];
function colour(odds) { // from right and sure over undecided to wrong and sure
  const t = Math.tanh(odds / 4), side = t < 0 ? COLOURS[0] : COLOURS[2];
  return `rgb(${COLOURS[1].map((v, k) => Math.round(v + (side[k] - v) * Math.abs(t))).join()})`;
}

function drawMap() {
  const canvas = $("map"), ratio = devicePixelRatio || 1, width = canvas.clientWidth || 480, height = (width * 10) / 16;
  if (canvas.width !== Math.round(width * ratio)) { canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio); }
  const context = canvas.getContext("2d"), { translation, rotation } = BOXES[state.box];
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.fillStyle = "#888";
  context.fillRect(0, 0, width, height);
  if (map && map.at === state.box) {
    const wide = width / map.columns, high = height / map.rows;
    for (const [column, row, stride, odds] of map.cells) {
      context.fillStyle = colour(odds);
      context.fillRect(Math.floor(column * wide), Math.floor(row * high), Math.ceil(stride * wide) + 1, Math.ceil(stride * high) + 1);
    }
  }
  // The middle of a cell is where it was asked: the map's ends lie half a cell inside its frame.
  const columns = state.box === "wide" ? 37 : 31, rows = 13;
  const x = (angle) => width * (((angle / rotation + 1) / 2) * (columns - 1) + 0.5) / columns;
  const y = (right) => height * (((1 - right / translation) / 2) * (rows - 1) + 0.5) / rows;
  for (const query of queries) {
    const here = Math.abs(query.s[1] - state.down) < 0.35;
    context.beginPath();
    context.arc(x(query.s[2]), y(query.s[0]), here ? 4.5 : 3.5, 0, 7);
    context.fillStyle = colour(query.score);
    context.fill();
    context.lineWidth = 1.5;
    context.strokeStyle = here ? "#000" : "#0007";
    context.stroke();
  }
  if (Math.abs(state.angle) <= rotation && Math.abs(state.right) <= translation) {
    const u = x(state.angle), v = y(state.right);
    for (const [line, style] of [[5, "#fff"], [2.5, "#000"]]) {
      context.lineWidth = line;
      context.strokeStyle = style;
      context.beginPath();
      context.moveTo(u - 11, v); context.lineTo(u - 4, v); context.moveTo(u + 4, v); context.lineTo(u + 11, v);
      context.moveTo(u, v - 11); context.lineTo(u, v - 4); context.moveTo(u, v + 4); context.lineTo(u, v + 11);
      context.stroke();
    }
  }
  $("map-low").textContent = `−${rotation}°`;
  $("map-high").textContent = `+${rotation}°`;
  const shift = Number(translation.toFixed(2));
  $("map-note").textContent = `The attacked network’s answer at each turn (across) and shift to the right (up, ±${shift} px), ${state.down ? `${signed(state.down, 1)} px down` : "none down"}. The cross is you${queries.length ? "; dots are queries, faint where they were shifted down otherwise" : ""}.${state.order === "turn-noise" && state.noise !== "none" && state.eps > 0 ? " Map and searches are of the cell before its noise, which is made after the turn." : ""}`;
  const wrong = map && map.at === state.box ? map.cells.filter((cell) => cell[3] > 0).length / Math.max(map.cells.length, 1) : 0;
  canvas.setAttribute("aria-label", `Map of the answers over turn and shift: wrong on ${per100(wrong, 0)} of it`);
}

const METHODS = { grid: "Grid", random: "Random", stbo: "STBO" };
function drawRuns() {
  $("queries").textContent = count(spent, "query", "queries");
  const highest = Math.max(...runs.map((run) => run.loss), 0.01);
  $("runs").innerHTML = runs.length ? `<table><thead><tr><th>search</th><th>range</th><th colspan="2">worst loss found</th></tr></thead><tbody>${runs.map((run) => {
    const [, kind, budget] = run.move.match(/^([a-z]+)(\d+)$/);
    return `<tr><td>${METHODS[kind]}, ${budget} queries</td><td>±${BOXES[run.box].rotation}°</td><td><span class="meter"><span style="width:${(100 * run.loss) / highest}%"></span></span></td><td class="number">${run.loss.toFixed(3)}</td></tr>`;
  }).join("")}</tbody></table>` : "";
}

function drawTally() {
  const total = EXPLORER.phantoms.labels.length, done = new Set(tally.map((row) => row.image)).size;
  const rows = Object.keys(NETWORKS).map((name) => {
    const own = tally.filter((row) => row.network === name);
    const share = (test) => own.filter(test).length / own.length;
    const accuracy = share((row) => row.after === EXPLORER.phantoms.labels[row.image]), roi = share((row) => row.after === row.before);
    const cell = (value) => (own.length ? `<td class="number">${per100(value, 0)}</td><td><span class="meter"><span style="width:${100 * value}%"></span></span></td>` : "<td></td><td></td>");
    return `<tr data-network="${name}" class="${name === state.network ? "attacked" : ""}"><th scope="row">${NETWORKS[name]}</th>${cell(accuracy)}${cell(roi)}</tr>`;
  });
  $("tally").innerHTML = `<table><thead><tr><th>each attacked itself</th><th colspan="2">accuracy</th><th colspan="2">ROI</th></tr></thead><tbody>${rows.join("")}</tbody></table>`;
  const what = state.move === "hand" ? "the same turn and shift for all" : "a search for each";
  $("tally-note").textContent = `Noise made for each network and phantom, ${what}. ROI is the share of answers that stay as they were, right or wrong (equation 15). ${done} of ${total} done.`;
  $("run-all-line").hidden = state.move === "hand";
  if (!tally.length) $("run-all").disabled = false;
  for (const button of $("phantoms").children) {
    const own = tally.find((row) => row.network === state.network && row.image === Number(button.value));
    const right = own && own.after === EXPLORER.phantoms.labels[own.image];
    button.className = own ? (right ? "right" : "wrong") : "";
    button.lastElementChild.textContent = own ? (right ? "✓" : "✗") : "";
    const truth = CLASSES[EXPLORER.phantoms.labels[button.value]];
    button.setAttribute("aria-label", `Phantom ${Number(button.value) + 1}, ${truth}${own ? `, ${right ? "right" : "wrong"} when attacked` : ""}`);
  }
}

function drawLesson() {
  const lesson = LESSONS[state.question];
  $("lesson").innerHTML = `<div class="lesson"><div><h2>${state.question + 1}. ${lesson.title}</h2><p class="look">${lesson.look}</p>
    <div class="steps">${lesson.steps.map(([name], n) => `<button data-step="${n}">${name}</button>`).join("")}</div></div>
    <details><summary>What it shows</summary><p>${lesson.shows}</p><p>${lesson.claim} <a target="_top" href="${BOOK}${lesson.chapter[1]}">${lesson.chapter[0]}</a></p></details></div>`;
}

let speaking = 0;
function speak() {
  clearTimeout(speaking);
  speaking = setTimeout(() => {
    const told = ["standard", "hybrid"].map((name) => `${NETWORKS[name]}: ${per100(results.answers[name].seen[1], 0)} malignant`);
    $("live").textContent = `${told.join(". ")}. The truth is ${CLASSES[EXPLORER.phantoms.labels[state.image]]}.`;
  }, 500);
}

// Hands: buttons, sliders, keys, fingers.

const ask = (question, part) => change({ ...START, ...LESSONS[question].set, ...part, question, image: state.image, seed: state.seed });

function listen() {
  $("questions").innerHTML = LESSONS.map((lesson, n) => `<button value="${n}">${n + 1}. ${lesson.title}</button>`).join("");
  $("questions").addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (!button) return;
    state.question = Number(button.value);
    drawLesson();
    ask(state.question, {});
  });
  $("lesson").addEventListener("click", ({ target }) => {
    const button = target.closest("[data-step]");
    if (button) ask(state.question, LESSONS[state.question].steps[button.dataset.step][1]);
  });
  for (const group of document.querySelectorAll("[data-key]"))
    group.addEventListener("click", ({ target }) => {
      if (!target.value) return;
      const part = { [group.dataset.key]: target.value };
      if (target.value === "none") part.eps = 0;
      else if (group.dataset.key === "noise" && state.eps === 0) part.eps = 2;
      change(part);
    });
  for (const key of ["eps", "steps", "angle", "right", "down"])
    $(key).addEventListener("input", ({ target }) => {
      const part = { [key]: Number(target.value) };
      if (key === "eps" && part.eps > 0 && state.noise === "none") part.noise = "pgd";
      change(part);
    });
  $("again").addEventListener("click", () => change({ seed: state.seed + 1 }));
  $("run-all").addEventListener("click", askTally);
  $("reset").addEventListener("click", () => ask(state.question, { image: state.image }));
  $("link").addEventListener("click", (event) => {
    event.preventDefault();
    const address = embedded || location.href.split("#")[0];
    navigator.clipboard?.writeText(address + written(state)).then(() => { $("link").textContent = "Copied"; setTimeout(() => { $("link").textContent = "Link to this view"; }, 1500); }, () => { $("link").textContent = "It stands in the address bar"; });
  });

  $("phantoms").innerHTML = EXPLORER.phantoms.labels.map((_, n) => `<button value="${n}"><canvas width="${EXPLORER.size}" height="${EXPLORER.size}" aria-hidden="true"></canvas><i aria-hidden="true"></i></button>`).join("");
  const pixels = Uint8Array.from(atob(EXPLORER.phantoms.pixels), (letter) => letter.charCodeAt(0)), length = 3 * EXPLORER.size ** 2;
  [...$("phantoms").children].forEach((button, n) => paint(button.firstElementChild, Array.from(pixels.subarray(n * length, (n + 1) * length), (v) => v / 255), bright));
  $("phantoms").addEventListener("click", ({ target }) => { const button = target.closest("button"); if (button) change({ image: Number(button.value) }); });

  const bounded = (key, value) => { const [low, high] = LIMITS[key]; return Math.min(Math.max(Math.round(value * 100) / 100, low), high); };
  const turned = (angle) => ((((angle + 180) % 360) + 360) % 360) - 180;
  const KEYS = { ArrowLeft: ["right", -0.25], ArrowRight: ["right", 0.25], ArrowUp: ["down", -0.25], ArrowDown: ["down", 0.25], "[": ["angle", 5], "]": ["angle", -5] };
  document.addEventListener("keydown", (event) => {
    if (document.activeElement !== $("seen") || !KEYS[event.key] || event.metaKey) return; // elsewhere, arrows scroll and slide
    if ((event.ctrlKey || event.altKey) && event.key.startsWith("Arrow")) return; // brackets may need both, as AltGr
    event.preventDefault();
    const [key, step] = KEYS[event.key];
    change({ [key]: key === "angle" ? turned(state.angle + step) : bounded(key, state[key] + step) });
  });

  let held = null;
  $("seen").addEventListener("pointerdown", (event) => {
    const box = $("seen").getBoundingClientRect(), u = event.clientX - box.x - box.width / 2, v = event.clientY - box.y - box.height / 2;
    held = { u: event.clientX, v: event.clientY, right: state.right, down: state.down, angle: state.angle, rim: Math.hypot(u, v) > 0.36 * box.width, from: Math.atan2(v, u) };
    $("seen").setPointerCapture(event.pointerId);
    $("seen").focus({ preventScroll: true });
  });
  $("seen").addEventListener("pointermove", (event) => {
    const box = $("seen").getBoundingClientRect(), u = event.clientX - box.x - box.width / 2, v = event.clientY - box.y - box.height / 2;
    $("seen").style.cursor = (held ? held.rim : Math.hypot(u, v) > 0.36 * box.width) ? "alias" : held ? "grabbing" : "grab";
    if (!held) return;
    if (held.rim) change({ angle: Math.round(turned(held.angle - ((Math.atan2(v, u) - held.from) * 180) / Math.PI)) });
    else change({ right: bounded("right", held.right + ((event.clientX - held.u) * EXPLORER.size) / box.width), down: bounded("down", held.down + ((event.clientY - held.v) * EXPLORER.size) / box.height) });
  });
  for (const end of ["pointerup", "pointercancel"]) $("seen").addEventListener(end, () => { held = null; });

  $("map").addEventListener("click", (event) => {
    const box = $("map").getBoundingClientRect(), { translation, rotation } = BOXES[state.box], columns = state.box === "wide" ? 37 : 31, rows = 13;
    const across = (((event.clientX - box.x) / box.width) * columns - 0.5) / (columns - 1), along = (((event.clientY - box.y) / box.height) * rows - 0.5) / (rows - 1);
    const within = (v, limit) => Math.min(Math.max(v, -limit), limit);
    change({ angle: Math.round(within((2 * across - 1) * rotation, rotation)), right: Number(within((1 - 2 * along) * translation, translation).toFixed(2)) });
  });

  addEventListener("hashchange", () => { if (written(read(location.hash)) !== written(state)) { state = read(location.hash); drawLesson(); update({ fresh: true }); } });
  addEventListener("resize", drawMap);
}

// Inside a page of the book: it tells the theme and the address, and is told the height.

let embedded = "";
addEventListener("message", ({ data, source }) => {
  if (source !== parent || !data || data.book === undefined) return;
  embedded = data.address;
  if (data.theme) document.documentElement.dataset.theme = data.theme;
  if (data.hash && data.hash !== written(state)) { state = read(data.hash); drawLesson(); update({ fresh: true }); }
});
if (parent !== window) {
  document.documentElement.dataset.embedded = "";
  new ResizeObserver(() => parent.postMessage({ explorer: "height", height: document.documentElement.offsetHeight }, "*")).observe(document.body);
}

for (const link of document.querySelectorAll("[data-book]")) { link.href = `${BOOK}book/${link.dataset.book}`; link.target = "_top"; }
const { standard, hybrid } = EXPLORER.networks;
$("about").textContent = `Both networks are the book’s SimpleCNN with batch norm, trained on phantoms of ${EXPLORER.size} × ${EXPLORER.size} pixels by the library: standard on clean images (right on ${per100(standard.accuracy)} of ${standard.tested} clean test phantoms), hybrid by Algorithm 1 on clean and perturbed ones (${per100(hybrid.accuracy)}). The 24 phantoms are the first twelve of each class on the test side. Attacks, warp and searches are the library’s, number by number; random numbers are this page’s own. A gradient costs as much as three queries. Pictures are shown 1.6 times as bright as they are.`;
listen();
drawLesson();
update({ fresh: true });
front.postMessage({ kind: "check" });
parent.postMessage({ explorer: "ready" }, "*");
