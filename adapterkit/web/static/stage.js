// The image that one works on: its picture, masks and prompts, and the tools on it.

import { pictureOf } from "./actions.js";
import { brushTool } from "./brush.js";
import { listen } from "./gestures.js";
import { decode, drawn } from "./masks.js";
import { say, tell, warn } from "./messages.js";
import { boxTool, pointTool } from "./prompts.js";
import { answerOf, choose, emit, on, page, structureOf } from "./store.js";
import { Viewer } from "./viewer.js";

const canvas = document.getElementById("image");
const at = (id) => document.getElementById(id);
export const viewer = new Viewer(canvas);

export const TOOLS = {
  point: pointTool(viewer),
  box: boxTool(viewer),
  brush: brushTool(viewer, 1),
  eraser: brushTool(viewer, 0),
  move: { drags: false, cursor: "grab", click() {}, cancel() {} },
  window: { drags: false, windows: true, cursor: "ns-resize", click() {}, cancel() {} },
};
const tool = () => TOOLS[page.tool];
let held = false; // the key that makes every drag move the picture
let moved = false; // whether it did while that was held
let pointer = null; // where it hovers

const isShown = () => page.image !== null && page.shown === page.image && !page.opening;
const gestures = listen(viewer, tool, {
  ready: isShown,
  pan: () => {
    moved ||= held;
    return held;
  },
  hover(event) {
    pointer = event;
    viewer.cross = null;
    hover();
  },
  left() {
    pointer = null;
    hover();
  },
  window(dx, dy) {
    setView(view.brightness - dy / 3, view.contrast + dx / 3);
  },
});

// The picture

on("image", () => {
  viewer.cross = null;
  at("stage").classList.toggle("none", !page.image);
  if (!page.image) {
    viewer.clear();
    page.shown = null;
  }
  describe();
});
on("frame picture", async () => {
  const { image, frame } = page;
  if (!image?.pictures.has(frame)) return;
  const bitmap = await pictureOf(image, frame);
  if (page.image !== image || page.frame !== frame) return;
  // A phone's picture is as high as its shape asks for.
  const shape = (image.width * image.pixel_ratio) / image.height;
  at("stage").style.setProperty("--shape", shape.toFixed(4));
  viewer.show(bitmap, image, page.shown?.id === image.id);
  page.shown = image;
  render();
  emit("waiting");
});
on("frame answer state structure tool", render);

const paths = new WeakMap(); // of each mask, what is drawn of it

function render() {
  const { image } = page;
  const answer = answerOf();
  viewer.chosen = page.structure;
  viewer.outlines = page.outlines;
  viewer.masks = [];
  viewer.marks = [];
  viewer.box = null;
  if (image && answer && page.shown === image) {
    for (const mask of answer.masks) viewer.masks.push(outlined(mask, image));
    for (const { structure, points, box } of answer.prompts) {
      const colour = structureOf(structure)?.colour ?? "#fff";
      viewer.marks.push(...points.map((point) => ({ ...point, colour })));
      if (box && structure === page.structure) {
        viewer.box = { x0: box[0], y0: box[1], x1: box[2], y1: box[3], colour };
      }
    }
  }
  // The chosen structure lies above the others.
  viewer.masks.sort((a, b) => (a.label === page.structure) - (b.label === page.structure));
  hover();
  describe();
}

function outlined(mask, image) {
  const colour = structureOf(mask.structure)?.colour ?? "#ffffff";
  const made = paths.get(mask.rle)
    ?? drawn(decode(mask.rle), image.width, image.height, mask.structure, colour);
  paths.set(mask.rle, made);
  return { ...made, colour, pixels: mask.rle };
}

/** What is said below the picture, and to screen readers. */
function describe() {
  const { image } = page;
  const answer = answerOf();
  at("told").textContent = image ? caption(image) : "";
  const notes = answer?.notes ?? [];
  at("notes").textContent = notes.join(" ");
  at("notes").dataset.tip = notes.join(" ");
  // Of what the annotator did it matters most.
  at("notes").classList.toggle("own", Boolean(answer?.prompts.length));
  const named = structureOf()?.name ?? "nothing";
  canvas.setAttribute(
    "aria-label",
    image ? `${image.name}. Segmenting ${named}. Arrows move a cross, Enter marks.` : "No image",
  );
  const mask = answer?.masks.find((each) => each.structure === page.structure);
  if (mask && !page.playing) tell(`${named}: ${mask.area} pixels. ${notes.join(" ")}`);
}

// All of a long note.
at("notes").addEventListener("click", () => say(at("notes").textContent));

function caption(image) {
  const parts = [image.name, `${image.width} × ${image.height}`];
  if (image.spacing) {
    const [row, column] = image.spacing;
    parts.push(`${Number(column.toPrecision(3))} × ${Number(row.toPrecision(3))} mm`);
  } else parts.push("pixel size unknown");
  const took = answerOf()?.milliseconds;
  if (took >= 1) parts.push(`${Math.round(took)} ms`);
  return parts.join(" · ");
}

/** The brush under the pointer, and what is there. */
function hover() {
  const { image } = page;
  viewer.brush = null;
  let told = "";
  const cross = viewer.cross;
  const point = cross ? { x: cross.x + 0.5, y: cross.y + 0.5 }
    : pointer && image ? viewer.at(pointer.clientX, pointer.clientY) : null;
  if (point && tool().paints) {
    const colour = page.tool === "brush" ? (structureOf()?.colour ?? "#fff") : "#fff";
    viewer.brush = { ...point, radius: page.radius, colour };
  }
  const [x, y] = point ? [Math.floor(point.x), Math.floor(point.y)] : [-1, -1];
  if (image && x >= 0 && y >= 0 && x < image.width && y < image.height) {
    told = `${x}, ${y}`;
    const over = answerOf()?.masks.find((each) => contains(each.rle, y * image.width + x));
    if (over) told += ` · ${structureOf(over.structure)?.name ?? ""}`;
  }
  at("readout").textContent = told;
  canvas.style.cursor = held ? "grab" : tool().cursor;
  // A finger moves the page, unless the picture is zoomed or drawn on.
  canvas.style.touchAction = viewer.fitted && !tool().drags && page.tool === "point" ? "pan-y" : "none";
  viewer.draw();
}

function contains({ counts }, pixel) {
  let at = 0;
  for (let k = 0; k < counts.length; k++) {
    at += counts[k];
    if (pixel < at) return k % 2 === 1;
  }
  return false;
}

// Brightness and contrast

const view = { brightness: 0, contrast: 0 }; // each in [-100, 100]

/** See the picture brighter or with more contrast. */
export function setView(brightness, contrast) {
  const within = (value) => Math.min(100, Math.max(-100, Math.round(value)));
  Object.assign(view, { brightness: within(brightness), contrast: within(contrast) });
  at("brightness").value = view.brightness;
  at("contrast").value = view.contrast;
  at("plain").disabled = !view.brightness && !view.contrast;
  const span = 255 * 2 ** (-view.contrast / 33);
  const middle = 127.5 - 1.5 * view.brightness;
  viewer.setWindow(Math.round(middle - span / 2), Math.round(middle + span / 2));
  try {
    sessionStorage.setItem("view", JSON.stringify(view));
  } catch {
    // Then it holds until the page is loaded again.
  }
}

export function restoreView() {
  try {
    const kept = JSON.parse(sessionStorage.getItem("view"));
    if (kept) setView(kept.brightness, kept.contrast);
  } catch {
    // Seen as it is.
  }
}

for (const name of ["brightness", "contrast"]) {
  at(name).addEventListener("input", () =>
    setView(Number(at("brightness").value), Number(at("contrast").value)),
  );
}
at("plain").addEventListener("click", () => setView(0, 0));

// By keys

/** Move the cross, by pixels; it begins in the middle of what is seen. */
export function moveCross(dx, dy) {
  if (!viewer.picture) return;
  const bounds = canvas.getBoundingClientRect();
  const middle = viewer.at(bounds.left + bounds.width / 2, bounds.top + bounds.height / 2);
  const from = viewer.cross ?? { x: Math.floor(middle.x) - dx, y: Math.floor(middle.y) - dy };
  viewer.cross = {
    x: Math.min(viewer.width - 1, Math.max(0, from.x + dx)),
    y: Math.min(viewer.height - 1, Math.max(0, from.y + dy)),
  };
  viewer.reveal(viewer.cross);
  tool().passed?.(viewer.cross);
  hover();
  tell(at("readout").textContent);
}

/** Do with the tool, at the cross, what a click does. */
export function stamp(opposite) {
  if (!isShown()) return;
  if (!viewer.cross) return moveCross(0, 0);
  if (tool().stamp) tool().stamp(viewer.cross, opposite);
  else warn("choose clicks, the box, the brush or the eraser to mark with keys");
}

canvas.addEventListener("blur", () => {
  viewer.cross = null;
  hover();
});

/** While the key is held every drag moves the picture; if none did, it marks. */
export function hold() {
  if (held) return;
  held = true;
  moved = false;
  hover();
}

addEventListener("keyup", (event) => {
  if (event.key !== " " || !held) return;
  held = false;
  hover();
  if (!moved && document.activeElement === canvas) stamp(event.shiftKey);
});
addEventListener("blur", () => (held = false));

export function cancel() {
  gestures.cancel();
  tool().cancel();
  viewer.cross = null;
  emit("answer");
}

// The tools' buttons

on("tool", () => {
  for (const button of document.querySelectorAll("[data-tool]")) {
    const chosen = button.dataset.tool === page.tool;
    button.setAttribute("aria-checked", chosen);
    button.tabIndex = chosen ? 0 : -1;
  }
  at("options").dataset.tool = page.tool;
  for (const button of document.querySelectorAll("[data-inside]")) {
    button.setAttribute("aria-checked", (button.dataset.inside === "yes") === page.inside);
  }
  at("radius").value = Math.round(100 * Math.log2(2 * page.radius));
  at("radius-told").textContent = `${2 * page.radius} px`;
  at("masks").setAttribute("aria-pressed", page.outlines);
});
for (const button of document.querySelectorAll("[data-tool]")) {
  button.addEventListener("click", () => useTool(button.dataset.tool));
}
for (const button of document.querySelectorAll("[data-inside]")) {
  button.addEventListener("click", () => choose({ inside: button.dataset.inside === "yes" }));
}
at("radius").addEventListener("input", (event) => {
  const radius = 2 ** (event.target.value / 100) / 2;
  choose({ radius: radius < 4 ? Math.round(2 * radius) / 2 : Math.round(radius) });
});

export function useTool(name) {
  if (name !== page.tool) tool().cancel();
  choose({ tool: name });
}
