// The network and what it needs of a picture. No DOM here: it also runs where there is none.
// NETWORK, at the end of this script, is a list of layers: sizes, and float32 numbers (little-endian) in base64.
"use strict";

const SIDE = 28, BOX = 20;
const FAINTEST = 24; // of 255: ink must stand out from its ground by so much
const NOISE = 0.1; // of the strongest ink: below it is ground

const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const SIX_BITS = new Uint8Array(128);
for (let i = 0; i < 64; i++) SIX_BITS[ALPHABET.charCodeAt(i)] = i;

let layers = null; // decoded by the first call of `forward`

/** Bytes of a base64 string. `atob` is missing outside browsers, and slow to make numbers of. */
function bytesOf(base64) {
  const padding = base64.endsWith("==") ? 2 : base64.endsWith("=") ? 1 : 0;
  const bytes = new Uint8Array((base64.length / 4) * 3);
  for (let from = 0, to = 0; from < base64.length; from += 4, to += 3) {
    const bits = (SIX_BITS[base64.charCodeAt(from)] << 18) | (SIX_BITS[base64.charCodeAt(from + 1)] << 12)
      | (SIX_BITS[base64.charCodeAt(from + 2)] << 6) | SIX_BITS[base64.charCodeAt(from + 3)];
    bytes[to] = bits >> 16;
    bytes[to + 1] = bits >> 8;
    bytes[to + 2] = bits;
  }
  return bytes.slice(0, bytes.length - padding);
}

function decoded({ inputs, outputs, kernel, bias }) {
  const numbers = (base64) => new Float32Array(bytesOf(base64).buffer);
  return { inputs, outputs, kernel: numbers(kernel), bias: numbers(bias) };
}

/** Logits, Float32Array [classes], of a picture: 784 grey levels 0..255, row by row, light ink on dark. */
function forward(pixels) {
  layers ??= NETWORK.map(decoded);
  let units = Float64Array.from(pixels, (level) => level / 255);
  layers.forEach(({ inputs, outputs, kernel, bias }, index) => {
    const sums = Float64Array.from(bias);
    for (let i = 0; i < inputs; i++) {
      const unit = units[i];
      if (unit === 0) continue; // most pixels, and about half of the units after a relu
      for (let o = 0, k = i * outputs; o < outputs; o++, k++) sums[o] += unit * kernel[k];
    }
    units = index < layers.length - 1 ? sums.map((sum) => Math.max(0, sum)) : sums;
  });
  return Float32Array.from(units);
}

/** Probabilities, Float64Array, of logits. */
function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Float64Array.from(logits, (logit) => Math.exp(logit - largest));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

/**
 * A picture as MNIST would have it: scaled to fit a box of 20 x 20 and centred by mass in 28 x 28. The same as
 * `as_mnist` of digits.py, whose filters are Pillow's.
 *
 * grey: Uint8Array of width * height levels, row by row, light ink on dark. Returns Uint8Array [784], or null where
 * nothing stands out from the border.
 */
function asMnist(grey, width, height) {
  const ground = medianOfBorder(grey, width, height);
  let most = 0;
  for (const level of grey) most = Math.max(most, Math.abs(level - ground));
  if (most < FAINTEST) return null;
  const faintest = NOISE * most;

  let left = width, top = height, right = 0, bottom = 0; // of the ink
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      if (Math.abs(grey[row * width + column] - ground) < faintest) continue;
      left = Math.min(left, column);
      right = Math.max(right, column);
      top = Math.min(top, row);
      bottom = Math.max(bottom, row);
    }
  }
  const rows = bottom - top + 1, columns = right - left + 1;
  const ink = new Float32Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const strength = Math.abs(grey[(top + row) * width + left + column] - ground);
      ink[row * columns + column] = strength < faintest ? 0 : strength * (255 / most);
    }
  }

  const scale = BOX / Math.max(rows, columns);
  const filter = scale < 1 ? areaFilter : cubicFilter;
  const smallRows = Math.max(1, rounded(rows * scale)), smallColumns = Math.max(1, rounded(columns * scale));
  const turned = resampled(ink, rows, columns, smallColumns, filter); // [smallColumns, rows]
  const small = resampled(turned, smallColumns, rows, smallRows, filter); // [smallRows, smallColumns]
  const gain = Math.fround(255 / small.reduce((a, b) => Math.max(a, b)));
  const levels = small.map((level) => Math.min(255, Math.max(0, level * gain)));

  const massOfRows = new Float64Array(smallRows), massOfColumns = new Float64Array(smallColumns);
  levels.forEach((level, i) => {
    massOfRows[Math.floor(i / smallColumns)] += level;
    massOfColumns[i % smallColumns] += level;
  });
  const firstRow = startOf(massOfRows), firstColumn = startOf(massOfColumns);
  const picture = new Uint8Array(SIDE * SIDE);
  levels.forEach((level, i) => {
    const row = firstRow + Math.floor(i / smallColumns), column = firstColumn + (i % smallColumns);
    picture[row * SIDE + column] = rounded(level);
  });
  return picture;
}

function medianOfBorder(grey, width, height) {
  const border = [...grey.subarray(0, width), ...grey.subarray(grey.length - width)];
  for (let row = 0; row < height; row++) border.push(grey[row * width], grey[row * width + width - 1]);
  border.sort((a, b) => a - b);
  return (border[border.length / 2 - 1] + border[border.length / 2]) / 2;
}

const areaFilter = { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) };
const cubicFilter = {
  support: 2,
  weight(x) {
    const far = Math.abs(x);
    if (far < 1) return (1.5 * far - 2.5) * far * far + 1;
    return far < 2 ? -0.5 * (((far - 5) * far + 8) * far - 4) : 0;
  },
};

/** Every row [columns] of `source` [rows, columns] resampled to `size` and the whole turned: [size, rows]. */
function resampled(source, rows, columns, size, { support, weight }) {
  const scale = columns / size, spread = Math.max(1, scale);
  const out = new Float32Array(size * rows);
  for (let to = 0; to < size; to++) {
    const centre = (to + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support * spread + 0.5));
    const last = Math.min(columns, Math.trunc(centre + support * spread + 0.5));
    const weights = [];
    for (let from = first; from < last; from++) weights.push(weight((from - centre + 0.5) / spread));
    const total = weights.reduce((a, b) => a + b, 0);
    for (let row = 0; row < rows; row++) {
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += source[row * columns + first + i] * (weights[i] / total);
      out[to * rows + row] = sum;
    }
  }
  return out;
}

/** Where to put it so that its centre of mass is the middle, and all of it is inside. */
function startOf(masses) {
  let mass = 0, moment = 0;
  masses.forEach((value, i) => {
    mass += value;
    moment += value * i;
  });
  return Math.min(SIDE - masses.length, Math.max(0, rounded(SIDE / 2 - moment / mass)));
}

/** To the nearest integer, halves to the even one, as Python and NumPy round. */
function rounded(value) {
  const below = Math.floor(value);
  return value - below === 0.5 ? below + (below % 2 === 0 ? 0 : 1) : Math.round(value);
}
