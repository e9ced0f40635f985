// Clicks and boxes: the tools that ask the model.

import { prompt, promptsOf, ready } from "./actions.js";
import { emit, page, structureOf } from "./store.js";
import { ensureStructure } from "./structures.js";

/** Mark a pixel as inside or outside of the structure. */
export async function mark(pixel, inside) {
  if (!pixel || !(await ready()) || !(await ensureStructure())) return;
  const { points, box } = promptsOf(page.structure);
  await prompt(page.structure, [...points, { ...pixel, inside }], box);
}

/** Clicks: with the right button or Shift the opposite of what is chosen. */
export function pointTool(viewer) {
  return {
    drags: false,
    cursor: "crosshair",
    click(event) {
      const opposite = event.shiftKey || event.button === 2;
      mark(viewer.pixel(event.clientX, event.clientY), page.inside !== opposite);
    },
    cancel() {},
    // By keys.
    stamp: (pixel, opposite) => mark(pixel, page.inside !== opposite),
  };
}

/** A box around the structure, from corner to corner. */
export function boxTool(viewer) {
  let from = null;
  const colour = () => structureOf()?.colour ?? "#fff";
  const inside = (event) => {
    const { x, y } = viewer.at(event.clientX, event.clientY);
    return {
      x: Math.min(Math.max(x, 0), viewer.width),
      y: Math.min(Math.max(y, 0), viewer.height),
    };
  };
  const between = (to) => ({
    x0: Math.min(from.x, to.x),
    y0: Math.min(from.y, to.y),
    x1: Math.max(from.x, to.x),
    y1: Math.max(from.y, to.y),
  });
  const give = async ({ x0, y0, x1, y1 }) => {
    from = null;
    // What is narrower than a pixel was a click.
    const drawn = x1 - x0 >= 1 && y1 - y0 >= 1;
    if (!drawn || !(await ready()) || !(await ensureStructure())) return emit("answer");
    const rounded = [x0, y0, x1, y1].map((each) => Math.round(100 * each) / 100);
    await prompt(page.structure, promptsOf(page.structure).points, rounded);
  };
  const preview = (to) => {
    viewer.box = { ...between(to), colour: colour() };
    viewer.draw();
  };
  return {
    drags: true,
    cursor: "crosshair",
    press(event) {
      from = inside(event);
    },
    move(event) {
      if (from) preview(inside(event));
    },
    release(event) {
      if (from) give(between(inside(event)));
    },
    cancel() {
      from = null;
      emit("answer");
    },
    // By keys: one corner after the other.
    stamp(pixel) {
      if (!from) {
        from = { ...pixel };
        preview({ x: pixel.x + 1, y: pixel.y + 1 });
      } else {
        const { x0, y0, x1, y1 } = between(pixel);
        give({ x0, y0, x1: x1 + 1, y1: y1 + 1 });
      }
    },
    passed(pixel) {
      if (from) preview({ x: pixel.x + 1, y: pixel.y + 1 });
    },
  };
}
