// Pointers and keys draw on the paper. Every change is shown and, after a while, announced.
"use strict";

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
