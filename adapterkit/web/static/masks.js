// Masks: run lengths to pixels and back, and their outlines.

/** The pixels, 0 or 1 and row by row, of runs that begin with zeros. */
export function decode({ size: [height, width], counts }) {
  const pixels = new Uint8Array(height * width);
  let at = 0;
  counts.forEach((count, k) => {
    if (k % 2) pixels.fill(1, at, at + count);
    at += count;
  });
  return pixels;
}

/** The runs of pixels, beginning with zeros. */
export function encode(pixels, width, height) {
  const counts = [];
  for (let at = 0, value = 0; at < pixels.length; value = 1 - value) {
    const next = pixels.indexOf(1 - value, at);
    const end = next < 0 ? pixels.length : next;
    counts.push(end - at);
    at = end;
  }
  return { size: [height, width], counts };
}

/**
 * The borders between a mask's pixels and others, as closed rings of corners [x0, y0, x1, y1, ...]
 * in pixels, with the mask on the right. Diagonal neighbours are not connected.
 */
export function rings(pixels, width, height) {
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && pixels[y * width + x];
  // Pixels along whose upper border a ring leads to the right, and none has been yet.
  const open = new Set();
  for (let at = pixels.indexOf(1); at >= 0; at = pixels.indexOf(1, at)) {
    const next = pixels.indexOf(0, at);
    const end = next < 0 ? pixels.length : next;
    for (; at < end; at++) if (at < width || !pixels[at - width]) open.add(at);
  }
  const found = [];
  for (const start of open) {
    const ring = [];
    const [x0, y0] = [start % width, Math.floor(start / width)];
    let [x, y, dx, dy] = [x0, y0, 1, 0];
    do {
      if (dx === 1) open.delete(y * width + x);
      ring.push(x, y);
      x += dx;
      y += dy;
      // The pixels ahead, to the left and to the right of the direction.
      const ahead = (side) => inside(
        x + (dx + side * -dy - 1) / 2,
        y + (dy + side * dx - 1) / 2,
      );
      if (!ahead(1)) [dx, dy] = [-dy, dx];
      else if (ahead(-1)) [dx, dy] = [dy, -dx];
    } while (x !== x0 || y !== y0 || dx !== 1);
    found.push(ring);
  }
  return found;
}

/** The rings as a path along the pixels' borders. */
export function exactPath(found) {
  const path = new Path2D();
  for (const ring of found) {
    path.moveTo(ring[0], ring[1]);
    for (let k = 2; k < ring.length; k += 2) path.lineTo(ring[k], ring[k + 1]);
    path.closePath();
  }
  return path;
}

/** The rings as a smooth path, on which a staircase is a line; it cuts corners by half a pixel. */
export function smoothPath(found) {
  const path = new Path2D();
  for (const ring of found) {
    let points = middles(ring);
    // So short a ring would shrink to its centre.
    const passes = points.length < 32 ? 1 : 3;
    for (let k = 0; k < passes; k++) points = middles(middles(points));
    path.moveTo(points[0], points[1]);
    for (let k = 2; k < points.length; k += 2) path.lineTo(points[k], points[k + 1]);
    path.closePath();
  }
  return path;
}

/** Of a ring, the middles between its points, in the same order. */
function middles(ring) {
  const made = new Array(ring.length);
  for (let k = 0; k < ring.length; k += 2) {
    const next = k + 2 < ring.length ? k + 2 : 0;
    made[k] = (ring[k] + ring[next]) / 2;
    made[k + 1] = (ring[k + 1] + ring[next + 1]) / 2;
  }
  return made;
}

/** A mask that a viewer draws. */
export function drawn(pixels, width, height, label, colour) {
  const found = rings(pixels, width, height);
  return { label, colour, exact: exactPath(found), smooth: smoothPath(found) };
}
