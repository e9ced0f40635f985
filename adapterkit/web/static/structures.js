// The structures: which one prompts are about, their names and colours.

import { patch, post, remove } from "./api.js";
import { reload } from "./actions.js";
import { ask, warn } from "./messages.js";
import { answerOf, choose, emit, on, page, structureOf } from "./store.js";

// Okabe and Ito 2008, "Color Universal Design": distinct under the common colour vision
// deficiencies; of white one sees the outline on any image.
const PALETTE = {
  "#e69f00": "orange",
  "#56b4e9": "sky blue",
  "#cc79a7": "pink",
  "#f0e442": "yellow",
  "#009e73": "green",
  "#d55e00": "vermilion",
  "#0072b2": "blue",
  "#ffffff": "white",
};

const list = document.getElementById("structures");
const dialog = document.getElementById("structure");

on("state structure answer image", render);

function render() {
  const structures = page.state?.structures ?? [];
  while (list.children.length > structures.length) list.lastChild.remove();
  structures.forEach((structure, k) => {
    const row = list.children[k] ?? list.appendChild(newRow());
    const chosen = structure.label === page.structure;
    row.dataset.label = structure.label;
    row.classList.toggle("chosen", chosen);
    const button = row.querySelector(".choose");
    button.setAttribute("aria-checked", chosen);
    button.tabIndex = chosen ? 0 : -1;
    button.dataset.tip = k < 9 ? `Segment ${structure.name} (${k + 1})` : structure.name;
    row.querySelector(".swatch").style.backgroundColor = structure.colour;
    row.querySelector(".name").textContent = structure.name;
    row.querySelector(".told").textContent = told(structure.label);
    if (chosen) document.getElementById("chosen-told").textContent = told(structure.label);
    row.querySelector(".edit").setAttribute("aria-label", `Edit ${structure.name}`);
  });
}

/** How large it is here; where pixels have a size, in mm². */
function told(label) {
  const { image } = page;
  if (!image) return "";
  const answer = answerOf();
  const mask = answer?.masks.find((each) => each.structure === label);
  if (!mask?.area) return "–";
  const area = image.spacing ? mask.area * image.spacing[0] * image.spacing[1] : mask.area;
  const size = `${Math.round(area).toLocaleString("en")} ${image.spacing ? "mm²" : "px"}`;
  return mask.edited ? `${size}, by hand` : size;
}

function newRow() {
  const row = document.createElement("li");
  row.innerHTML = `
    <button type="button" class="choose" role="radio">
      <span class="swatch"></span><span class="name"></span><span class="told"></span>
    </button>
    <button type="button" class="edit icon" data-tip="Rename, recolour or delete (F2)">
      <svg><use href="#icon-pencil"></use></svg>
    </button>`;
  const label = () => Number(row.dataset.label);
  row.querySelector(".choose").addEventListener("click", () => choose({ structure: label() }));
  row.querySelector(".choose").addEventListener("dblclick", () => edit(label()));
  row.querySelector(".edit").addEventListener("click", () => edit(label()));
  return row;
}

/** The structure that prompts are about; where there is none yet, one more. */
export async function ensureStructure() {
  return structureOf() ?? (await add());
}

/** Choose the one of this place in the list, from 0. */
export function chooseAt(place) {
  const structure = page.state.structures[place];
  if (structure) choose({ structure: structure.label });
}

let adding = null;

/** One more structure, which is chosen; the one that is being added, if there is one. */
export function add() {
  adding ??= addOne().finally(() => (adding = null));
  return adding;
}

async function addOne() {
  const names = new Set(page.state.structures.map((each) => each.name));
  let number = names.size + 1;
  while (names.has(`structure ${number}`)) number++;
  const before = new Set(page.state.structures.map((each) => each.label));
  const done = await changed(() => post("api/structures", { name: `structure ${number}` }));
  const made = done && page.state.structures.find((each) => !before.has(each.label));
  if (made) choose({ structure: made.label });
  return made ?? null;
}

async function changed(ask) {
  try {
    page.state.structures = (await ask()).structures;
    emit("state", "structure", "answer");
    return true;
  } catch (error) {
    warn(error.message);
    return false;
  }
}

/** The dialog to rename, recolour or delete a structure. */
export async function edit(label) {
  const structure = structureOf(label);
  if (!structure) return;
  const form = dialog.querySelector("form");
  form.elements.name.value = structure.name;
  swatches(structure.colour.toLowerCase());
  dialog.returnValue = "";
  dialog.showModal();
  form.elements.name.select();
  await new Promise((closed) => dialog.addEventListener("close", closed, { once: true }));
  if (dialog.returnValue === "delete") await discard(structure);
  if (dialog.returnValue !== "save") return;
  const name = form.elements.name.value.trim();
  const colour = form.elements.colour.value;
  if (name && (name !== structure.name || colour !== structure.colour)) {
    await changed(() => patch(`api/structures/${label}`, { name, colour }));
  }
}

async function discard(structure) {
  const sure = await ask({
    title: `Delete ${structure.name}?`,
    text: "It goes from the list of every image. Adding the same name brings its masks back.",
    yes: "Delete",
  });
  if (!sure) return;
  try {
    await remove(`api/structures/${structure.label}`);
    await reload();
  } catch (error) {
    warn(error.message);
  }
}

function swatches(chosen) {
  const place = dialog.querySelector(".palette");
  const colours = chosen in PALETTE ? PALETTE : { ...PALETTE, [chosen]: "its own" };
  place.replaceChildren(
    ...Object.entries(colours).map(([colour, name]) => {
      const choice = document.createElement("label");
      choice.dataset.tip = name;
      const input = Object.assign(document.createElement("input"), {
        type: "radio",
        name: "colour",
        value: colour,
        checked: colour === chosen,
      });
      input.setAttribute("aria-label", name);
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.backgroundColor = colour;
      choice.append(input, swatch);
      return choice;
    }),
  );
}

for (const button of dialog.querySelectorAll("[type=button]")) {
  button.addEventListener("click", () => dialog.close(button.value));
}
document.getElementById("add").addEventListener("click", add);
