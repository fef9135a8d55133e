// The page: pointers and keys draw, and every change is shown in the next frame.
"use strict";

const element = (id) => document.getElementById(id);
const classNames = JSON.parse(element("about").textContent).class_names;
const areDigits = classNames.join() === "0,1,2,3,4,5,6,7,8,9";
const paper = element("paper");
const sketch = new Sketch();

// ---- What is shown

const ANNOUNCE_AFTER = 700; // ms of quiet: a screen reader should not speak while one draws
const colourScheme = matchMedia("(prefers-color-scheme: dark)");
const still = matchMedia("(prefers-reduced-motion: reduce)");
let example = null; // strokes shown until the user draws
let frame = 0;
let announcement = 0;

const rows = classNames.map((name) => {
  const row = element("row").content.firstElementChild.cloneNode(true);
  row.querySelector(".name").textContent = name;
  element("probabilities").append(row);
  return { row, bar: row.querySelector(".bar"), percent: row.querySelector(".percent") };
});
document.querySelector(".reading").classList.toggle("words", !areDigits);

const percentOf = (probability) => `${(100 * probability).toFixed(1)}\u00a0%`;

function refresh() {
  frame ||= requestAnimationFrame(show);
}

function show() {
  frame = 0;
  const strokes = example ?? sketch.strokes;
  const picture = pictureOf(strokes);
  const probabilities = picture && softmax(forward(picture));
  showPaper(strokes);
  showPicture(picture);
  showProbabilities(probabilities);
  element("undo").setAttribute("aria-disabled", String(!sketch.canUndo));
  element("clear").setAttribute("aria-disabled", String(strokes.length === 0));
}

function showPaper(strokes) {
  const side = Math.round(paper.clientWidth * devicePixelRatio);
  if (paper.width !== side) paper.width = paper.height = side;
  const context = paper.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, side, side);
  paper.toggleAttribute("data-example", example !== null);
  context.strokeStyle = getComputedStyle(paper).color;
  paint(context, strokes, side);
  if (pen.shown) showPen(context);
  element("invitation").textContent = example ? "An example. Draw your own over it." : strokes.length ? "" : "Draw here";
}

function showPen(context) {
  context.strokeStyle = context.fillStyle = getComputedStyle(paper).outlineColor;
  context.lineWidth = 0.008;
  context.beginPath();
  context.arc(pen.x, pen.y, PEN / 2, 0, 2 * Math.PI);
  if (pen.down) context.fill();
  context.stroke();
}

function showPicture(picture) {
  const context = element("seen").getContext("2d");
  const image = context.createImageData(SIDE, SIDE);
  for (let i = 0; i < SIDE * SIDE; i++) image.data.set([...Array(3).fill(picture?.[i] ?? 0), 255], 4 * i);
  context.putImageData(image, 0, 0);
}

function showProbabilities(probabilities) {
  const best = probabilities ? probabilities.indexOf(Math.max(...probabilities)) : -1;
  rows.forEach(({ row, bar, percent }, i) => {
    row.classList.toggle("best", i === best);
    bar.style.transform = `translateX(${100 * (probabilities?.[i] ?? 0) - 100}%)`;
    percent.textContent = probabilities ? percentOf(probabilities[i]) : "\u2013";
  });
  const most = probabilities?.[best] ?? 0;
  element("sureness").textContent = !probabilities ? "Nothing" : most > 0.9 ? "Clearly" : most > 0.5 ? "Probably" : "Perhaps";
  element("answer").textContent = probabilities ? classNames[best] : "?";
  element("share").textContent = probabilities ? percentOf(most) : "drawn yet";
}

function announce(message) {
  clearTimeout(announcement);
  announcement = setTimeout(() => (element("news").textContent = message()), ANNOUNCE_AFTER);
}

/** The answer and the runner-up in words. */
function verdict() {
  const picture = pictureOf(sketch.strokes);
  if (!picture) return "Nothing is drawn.";
  const probabilities = softmax(forward(picture));
  const [first, second] = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
  const said = (i) => `${classNames[i]}, ${Math.round(100 * probabilities[i])} percent`;
  return second === undefined ? `It reads ${said(first)}.` : `It reads ${said(first)}; then ${said(second)}.`;
}

// ---- What draws

const STEP = 1 / 28; // of the paper, for an arrow key
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const pen = { x: 0.5, y: 0.5, down: false, shown: false }; // the keyboard's
const held = new Set(); // arrow keys: two make a diagonal
let pointer = null; // the one that draws; other fingers do not

function change(action, point) {
  example = null;
  sketch[action](point);
  refresh();
  announce(verdict);
}

function pointOf(event) {
  const { left, top, width } = paper.getBoundingClientRect();
  const pressed = event.pointerType === "pen" && event.pressure > 0 ? 0.6 + 0.8 * event.pressure : 1;
  return { x: (event.clientX - left) / width, y: (event.clientY - top) / width, width: PEN * pressed };
}

function lift() {
  if (pen.down) sketch.end();
  pen.down = false;
}

paper.addEventListener("pointerdown", (event) => {
  if (pointer !== null || event.button !== 0) return;
  lift();
  pen.shown = false;
  pointer = event.pointerId;
  paper.setPointerCapture(pointer);
  change("begin", pointOf(event));
});

paper.addEventListener("pointermove", (event) => {
  if (event.pointerId !== pointer) return;
  const moves = event.getCoalescedEvents?.() ?? [];
  for (const move of moves.length ? moves : [event]) change("extend", pointOf(move));
});

for (const type of ["pointerup", "pointercancel", "lostpointercapture"]) {
  paper.addEventListener(type, (event) => {
    if (event.pointerId !== pointer) return;
    pointer = null;
    sketch.end();
  });
}

paper.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || pointer !== null) return;
  if (event.key in ARROWS) moveBy(event.key);
  else if (event.key === " " && !event.repeat) toggle();
  else return;
  event.preventDefault(); // the page would scroll
  pen.shown = true;
  refresh();
});

paper.addEventListener("keyup", (event) => held.delete(event.key));
paper.addEventListener("focus", () => {
  pen.shown = paper.matches(":focus-visible");
  refresh();
});
paper.addEventListener("blur", () => {
  held.clear();
  lift();
  pen.shown = false;
  refresh();
});

function moveBy(key) {
  held.add(key);
  for (const [x, y] of [...held].map((name) => ARROWS[name])) {
    pen.x = Math.min(1, Math.max(0, pen.x + x * STEP));
    pen.y = Math.min(1, Math.max(0, pen.y + y * STEP));
  }
  if (pen.down) change("extend", { x: pen.x, y: pen.y, width: PEN });
  announce(whereabouts);
}

function toggle() {
  pen.down = !pen.down;
  if (pen.down) change("begin", { x: pen.x, y: pen.y, width: PEN });
  else sketch.end();
  announce(pen.down ? whereabouts : verdict);
}

function whereabouts() {
  const place = (share) => 1 + Math.round(share / STEP);
  return `Pen ${pen.down ? "down" : "up"}, column ${place(pen.x)}, row ${place(pen.y)} of 29.`;
}

function undo() {
  lift();
  change("undo");
}

function clear() {
  lift();
  change("clear");
}

element("undo").addEventListener("click", undo);
element("clear").addEventListener("click", clear);
document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "z") undo();
  else if (event.key === "Escape" || event.key === "Delete") clear();
  else return;
  event.preventDefault();
});

// ---- The beginning

/** A three of two arcs, which writes itself, and with it warms up the network. */
function writeExample(now = performance.now(), began = now) {
  const arc = (x, y, radius, from, to) => Array.from({ length: 24 }, (_, i) => {
    const angle = from + ((to - from) * i) / 23;
    return { x: x + radius * Math.cos(angle), y: y + radius * Math.sin(angle), width: PEN };
  });
  const points = [...arc(0.48, 0.34, 0.14, -2.6, 1.5), ...arc(0.48, 0.645, 0.165, -1.5, 2.6)];
  const share = still.matches ? 1 : Math.min(1, (now - began) / 900);
  example = [points.slice(0, 1 + Math.round(share * (points.length - 1)))];
  show();
  if (share < 1) requestAnimationFrame((later) => example && writeExample(later, began));
}

new ResizeObserver(refresh).observe(paper);
colourScheme.addEventListener("change", refresh);
if (areDigits) writeExample();
else show();
performance.measure("first prediction", { start: 0 }); // since the page was opened
