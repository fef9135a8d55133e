// What is drawn: strokes of points { x, y, width } in units of the paper's side, kept so that they can be undone and
// drawn at any size.
"use strict";

const PEN = 0.078; // as wide beside a digit of usual size as MNIST's strokes are
const RASTER = 280; // pixels a side of the picture that is handed to the network, whatever the screen
const MARGIN = 1; // of it that no ink reaches: `asMnist` takes the border for the ground

class Sketch {
  strokes = [];
  #past = []; // what `strokes` was before each action
  #open = null;

  get canUndo() {
    return this.#past.length > 0;
  }

  begin(point) {
    this.#open = [point];
    this.#become([...this.strokes, this.#open]);
  }

  extend(point) {
    this.#open?.push(point);
  }

  end() {
    this.#open = null;
  }

  undo() {
    this.end();
    this.strokes = this.#past.pop() ?? this.strokes;
  }

  clear() {
    this.end();
    if (this.strokes.length) this.#become([]);
  }

  #become(strokes) {
    this.#past.push(this.strokes);
    this.strokes = strokes;
  }
}

/** Draw strokes in the context's strokeStyle, `scale` pixels to the paper's side, as curves through the midpoints. */
function paint(context, strokes, scale, margin = 0) {
  context.setTransform(scale, 0, 0, scale, margin, margin);
  context.lineCap = context.lineJoin = "round";
  const middle = (p, q) => ({ x: (p.x + q.x) / 2, y: (p.y + q.y) / 2 });
  context.fillStyle = context.strokeStyle;
  for (const stroke of strokes) {
    const [{ x, y, width }] = stroke;
    context.beginPath();
    context.arc(x, y, width / 2, 0, 2 * Math.PI); // a path of no length, which a dot would be, is not drawn
    context.fill();
    context.beginPath();
    context.moveTo(x, y);
    stroke.forEach((point, i) => {
      const next = stroke[i + 1];
      const to = next ? middle(point, next) : point;
      context.quadraticCurveTo(point.x, point.y, to.x, to.y);
      if (next?.width === point.width) return; // one path as far as it is equally wide, or its joints would show
      context.lineWidth = point.width;
      context.stroke();
      context.beginPath();
      context.moveTo(to.x, to.y);
    });
  }
}

const plate = document.createElement("canvas");
plate.width = plate.height = RASTER + 2 * MARGIN;
const plateContext = plate.getContext("2d", { willReadFrequently: true });
plateContext.rect(MARGIN, MARGIN, RASTER, RASTER);
plateContext.clip();

/** The 28 x 28 picture of strokes, Uint8Array [784], or null where nothing is drawn. */
function pictureOf(strokes) {
  const side = plate.width;
  plateContext.setTransform(1, 0, 0, 1, 0, 0);
  plateContext.fillStyle = "black";
  plateContext.fillRect(0, 0, side, side);
  plateContext.strokeStyle = "white";
  paint(plateContext, strokes, RASTER, MARGIN);
  const { data } = plateContext.getImageData(0, 0, side, side); // four bytes a pixel
  const grey = new Uint8Array(side * side);
  for (let i = 0; i < grey.length; i++) grey[i] = data[4 * i];
  return asMnist(grey, side, side);
}
