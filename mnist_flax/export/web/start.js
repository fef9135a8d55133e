// The first picture and the first prediction.
"use strict";

/** A three of two arcs, which writes itself. */
function writeExample(began = performance.now()) {
  const arc = (x, y, radius, from, to) => Array.from({ length: 24 }, (_, i) => {
    const angle = from + ((to - from) * i) / 23;
    return { x: x + radius * Math.cos(angle), y: y + radius * Math.sin(angle), width: PEN };
  });
  const points = [...arc(0.48, 0.34, 0.14, -2.6, 1.5), ...arc(0.48, 0.645, 0.165, -1.5, 2.6)];
  const share = still.matches ? 1 : Math.min(1, (performance.now() - began) / 900);
  example = [points.slice(0, 1 + Math.round(share * (points.length - 1)))];
  show();
  if (share < 1) requestAnimationFrame(() => example && writeExample(began));
}

new ResizeObserver(refresh).observe(paper);
colourScheme.addEventListener("change", refresh);
forward(new Uint8Array(SIDE * SIDE)); // unpacks the weights
if (areDigits) writeExample();
else show();
performance.measure("first prediction", { start: 0 }); // since the page was opened
