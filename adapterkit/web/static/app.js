// The page: what begins it, its buttons and its keys.

import { file, get, ofImage, onAbsence } from "./api.js";
import {
  accept, addressed, carry, catchUp, clear, open, redo, refreshState, reopen, setState, step, undo,
} from "./actions.js";
import { resize } from "./brush.js";
import { listen, rove, showKeys } from "./keys.js";
import { warn } from "./messages.js";
import { beside, pause, play, stepFrame } from "./sequence.js";
import {
  cancel, hold, moveCross, restoreView, setView, stamp, useTool, viewer,
} from "./stage.js";
import { answerOf, choose, emit, on, page, restore } from "./store.js";
import { add, chooseAt, edit } from "./structures.js";
import "./tips.js";
import "./training.js";
import "./worklist.js";

const EVERY = 15_000; // ms between two looks at the list while the server works on it
const at = (id) => document.getElementById(id);
const canvas = at("image");

// Buttons

const zoom = (factor) => viewer.zoom(factor);
const fit = () => viewer.fit();
const outlines = () => choose({ outlines: !page.outlines });
const buttons = {
  accept, clear, fit, masks: outlines, redo, reopen, undo,
  closer: () => zoom(1.5),
  farther: () => zoom(1 / 1.5),
};
for (const [id, act] of Object.entries(buttons)) at(id).addEventListener("click", () => act());

on("image frame answer state waiting", () => {
  const { image } = page;
  const answer = answerOf();
  at("undo").disabled = !answer || answer.undo === false;
  at("redo").disabled = !answer || answer.redo === false;
  at("clear").disabled = !answer?.prompts.length && !answer?.masks.length;
  at("accept").disabled = !image;
  at("accept").hidden = image?.status === "accepted";
  at("reopen").hidden = image?.status !== "accepted";
  at("download").disabled = !image || !answer?.masks.length;
  document.body.classList.toggle("working", isBusy(image, answer));
});

function isBusy(image, answer) {
  if (page.opening || !image) return page.opening;
  return page.shown !== image || !answer || image.changes.length > 0;
}

on("image", () => {
  const endings = page.image?.endings ?? [];
  at("ending").replaceChildren(...endings.map((each) => new Option(KINDS[each] ?? each, each)));
  at("ending").disabled = !endings.length;
});
const KINDS = { ".dcm": "DICOM-SEG", ".nii.gz": "NIfTI", ".png": "PNG" };

async function download() {
  const { image } = page;
  if (at("download").disabled) return;
  const ending = at("ending").value;
  try {
    const { blob, name } = await file(`${ofImage(image.id)}/masks?ending=${ending}`);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name ?? `${image.id}_mask${ending}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  } catch (error) {
    warn(error.message);
  }
}
at("download").addEventListener("click", download);

// Keys

const fast = 10;
const arrows = Object.entries({ left: [-1, 0], right: [1, 0], up: [0, -1], down: [0, 1] });
const cross = arrows.flatMap(([name, [dx, dy]]) => [
  { keys: [`arrow${name}`], act: () => onImage(() => moveCross(dx, dy)) },
  { keys: [`Shift+arrow${name}`], act: () => onImage(() => moveCross(fast * dx, fast * dy)) },
]);
const tools = { c: "point", b: "box", p: "brush", e: "eraser", h: "move", w: "window" };

function carryOn() {
  if (!at("timeline").hidden && !at("carry").disabled) carry(page.frame + 1);
}

/** Keys that mark go to the image, which gets the focus. */
function onImage(act) {
  canvas.focus({ preventScroll: true });
  act();
}

const row = (shown, told, keys, act) => ({ shown, told, keys, act });
const TABLE = [
  row("A", "accept, save and go to the next image", ["a"], () => page.state?.folder && accept()),
  row("D", "download the masks", ["d"], download),
  row("N or Shift N", "next or previous image, as this one is", ["n"], () => step(1)),
  row("Ctrl Z", "undo", ["Ctrl+z"], () => undo()),
  row("Ctrl Shift Z or Ctrl Y", "redo", ["Ctrl+Shift+z", "Ctrl+y"], () => redo()),
  row("Del", "take all prompts and strokes of this frame back", ["delete"], () => clear()),
  row("1 … 9", "choose a structure by its place", [], null),
  row("S", "one more structure", ["s"], () => add()),
  row("F2", "rename, recolour or delete the structure", ["f2"], () => edit(page.structure)),
  row("C", "clicks; with Shift or the right button outside", ["c"], () => useTool("point")),
  row("B", "a box around the structure", ["b"], () => useTool("box")),
  row("P", "paint with the brush; with Shift or the right button erase", ["p"], () =>
    useTool("brush")),
  row("E", "erase", ["e"], () => useTool("eraser")),
  row("[ or ]", "smaller or larger brush", ["["], () => resize(-1)),
  row("X", "clicks mark inside or outside", ["x"], () => choose({ inside: !page.inside })),
  row("← or ↑ or → or ↓", "move a cross on the image; with Shift by ten pixels", [], null),
  row("Enter or Space", "mark at the cross; with Shift the opposite", ["enter"], () =>
    onImage(() => stamp(false))),
  row("H", "move the picture; also Space or the middle button and dragging", ["h"], () =>
    useTool("move")),
  row("+ or − or 0", "zoom, also by the wheel; show all of it", ["+", "="], () => zoom(1.25)),
  row("W", "brightness and contrast by dragging", ["w"], () => useTool("window")),
  row("Shift W", "brightness and contrast as in the file", ["Shift+w"], () => setView(0, 0)),
  row("M", "hide or show the masks", ["m"], outlines),
  row(", or .", "previous or next frame", [","], () => stepFrame(-1)),
  row(">", "carry the masks to the next frame", [">"], () => carryOn()),
  row("L", "play the sequence, or pause", ["l"], () => play()),
  row("V", "the other view beside", ["v"], () => page.image?.partner && beside(at("second").hidden)),
  row("Esc", "give up what was begun", ["escape"], () => cancel()),
  row("?", "this list", ["?"], () => showKeys()),
];
const silent = [
  ...cross,
  ...Object.entries(tools).map(([key, tool]) => ({ keys: [key], act: () => useTool(tool) })),
  ...[...Array(9).keys()].map((k) => ({ keys: [`${k + 1}`], act: () => chooseAt(k) })),
  { keys: ["Shift+n"], act: () => step(-1) },
  { keys: ["]"], act: () => resize(1) },
  { keys: ["Shift+enter"], act: () => onImage(() => stamp(true)) },
  { keys: [" ", "Shift+ "], act: () => onImage(hold) },
  { keys: ["-"], act: () => zoom(0.8) },
  { keys: ["0"], act: fit },
  { keys: ["."], act: () => stepFrame(1) },
];
listen(TABLE, silent);
rove(at("images"), ".open");
rove(at("structures"), ".choose");
rove(at("tools"), "[data-tool]");

// Beginning

async function show() {
  const { id, frame } = addressed();
  const known = page.state.images.some((each) => each.id === id);
  if (known) return open(id, frame);
  const first = page.state.images.find((each) => each.status !== "accepted") ?? page.state.images[0];
  return first ? open(first.id) : emit("image");
}

async function begin() {
  onAbsence((whether) => (at("absent").hidden = !whether));
  restore();
  emit("tool");
  restoreView();
  try {
    setState(await get("api/state"));
  } catch (error) {
    return warn(error.message);
  }
  const { title, folder, annotator } = page.state;
  document.title = folder ? `${title} – adapterkit` : title;
  at("folder").textContent = folder ? title : "";
  at("folder").dataset.tip = annotator ? `${folder}, annotated by ${annotator}` : (folder ?? "");
  await show();
  document.body.classList.add("ready");
  addEventListener("hashchange", show);
  // Another tab or annotator may have gone on.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) pause();
    else catchUp().catch((error) => warn(error.message));
  });
  // The server finds masks, and how sure it is of them, in the background.
  const isFinding = () => page.state.images.some((each) => each.uncertainty === null);
  setInterval(() => {
    if (page.state.adapter && !document.hidden && isFinding()) refreshState().catch(() => {});
  }, EVERY);
}

begin();
