// What is shown: the drawing, the picture that the network sees, its probabilities, and the answer in words.
"use strict";

const element = (id) => document.getElementById(id);
const classNames = JSON.parse(element("about").textContent).class_names;
const areDigits = classNames.join() === "0,1,2,3,4,5,6,7,8,9";
const paper = element("paper");
const sketch = new Sketch();

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
