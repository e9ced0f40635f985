// Brush and eraser: pixels of a structure's mask, by hand.

import { ready, setMask } from "./actions.js";
import { decode, drawn, encode } from "./masks.js";
import { answerOf, choose, page, structureOf } from "./store.js";
import { ensureStructure } from "./structures.js";

export const RADII = { least: 0.5, most: 200 };

/** Make the brush a step larger or smaller. */
export function resize(by) {
  const radius = page.radius * (by > 0 ? 1.25 : 0.8);
  const rounded = radius < 4 ? Math.round(2 * radius) / 2 : Math.round(radius);
  // A step changes it, however small it is.
  const changed = rounded === page.radius ? rounded + by * 0.5 : rounded;
  choose({ radius: Math.min(RADII.most, Math.max(RADII.least, changed)) });
}

/** Set the pixels whose centres lie on a line of a round brush; `ratio` is a pixel's width. */
export function paint(pixels, width, height, ratio, radius, from, to, value) {
  const [left, right] = [Math.min(from.x, to.x), Math.max(from.x, to.x)];
  const [top, bottom] = [Math.min(from.y, to.y), Math.max(from.y, to.y)];
  const reach = radius / ratio;
  const [dx, dy] = [(to.x - from.x) * ratio, to.y - from.y];
  const length = dx * dx + dy * dy;
  for (let y = Math.max(0, Math.floor(top - radius)); y < Math.min(height, bottom + radius); y++) {
    for (let x = Math.max(0, Math.floor(left - reach)); x < Math.min(width, right + reach); x++) {
      const [px, py] = [(x + 0.5 - from.x) * ratio, y + 0.5 - from.y];
      const along = length ? Math.min(1, Math.max(0, (px * dx + py * dy) / length)) : 0;
      if ((px - along * dx) ** 2 + (py - along * dy) ** 2 <= radius * radius) {
        pixels[y * width + x] = value;
      }
    }
  }
}

/** Of both tools, `value` is 1 for the brush and 0 for the eraser. */
export function brushTool(viewer, value) {
  let stroke = null;

  const begin = (event, opposite) => {
    const { image, structure } = page;
    const mask = answerOf()?.masks.find((each) => each.structure === structure);
    const size = image.width * image.height;
    stroke = {
      image,
      structure,
      pixels: mask ? decode(mask.rle) : new Uint8Array(size),
      value: opposite ? 1 - value : value,
      from: viewer.at(event.clientX, event.clientY),
    };
    pass(event);
  };
  const pass = (event) => draw(viewer.at(event.clientX, event.clientY));
  const draw = (to) => {
    const { image, pixels } = stroke;
    const args = [image.width, image.height, image.pixel_ratio, page.radius];
    paint(pixels, ...args, stroke.from, to, stroke.value);
    stroke.from = to;
    preview();
  };
  const preview = () => {
    if (stroke.asked) return;
    stroke.asked = true;
    requestAnimationFrame(() => {
      if (!stroke) return;
      stroke.asked = false;
      const { image, structure, pixels } = stroke;
      const mask = drawn(pixels, image.width, image.height, structure, structureOf(structure).colour);
      viewer.masks = [...viewer.masks.filter((each) => each.label !== structure), mask];
      viewer.draw();
    });
  };
  const end = () => {
    const { image, structure, pixels } = stroke;
    stroke = null;
    return setMask(structure, encode(pixels, image.width, image.height));
  };

  return {
    drags: true,
    paints: true,
    cursor: "none",
    press(event) {
      const opposite = event.button === 2 || event.shiftKey;
      if (!structureOf()) ensureStructure();
      else if (answerOf() && !page.opening) begin(event, opposite);
    },
    move(event) {
      if (stroke) pass(event);
    },
    release() {
      if (stroke) end();
    },
    cancel() {
      stroke = null;
    },
    // By keys: one touch of the brush.
    async stamp(pixel, opposite) {
      if (!(await ready()) || !(await ensureStructure())) return;
      begin(viewer.on(pixel.x + 0.5, pixel.y + 0.5), opposite);
      end();
    },
  };
}
