// The work list: the images, how far they are, and which one is shown.

import { post, remove, upload } from "./api.js";
import { close, open, refreshState, step } from "./actions.js";
import { ask, warn } from "./messages.js";
import { on, page } from "./store.js";

const list = document.getElementById("images");
const STATUS = { new: "not begun", draft: "begun", accepted: "accepted" };

on("state image", render);

function render() {
  const { state } = page;
  if (!state) return;
  const { images } = state;
  const accepted = images.filter((each) => each.status === "accepted").length;
  const at = images.findIndex((each) => each.id === page.image?.id);
  const kept = state.folder === null ? "not kept" : `${accepted} of ${images.length} accepted`;
  text("progress", images.length ? kept : "No images yet");
  text("position", images.length ? `${at + 1 || "–"} / ${images.length}` : "");
  text("shown", page.image?.id ?? "Images");
  document.getElementById("done").value = images.length ? accepted / images.length : 0;
  document.getElementById("previous").disabled = at <= 0;
  document.getElementById("following").disabled = at < 0 || at + 1 >= images.length;
  document.getElementById("order").value = state.order;
  document.getElementById("order").hidden = !images.some((each) => each.uncertainty !== null);
  document.body.classList.toggle("uploads", state.folder === null);
  document.body.classList.toggle("empty", !images.length);
  rows(images, at);
}

const text = (id, told) => (document.getElementById(id).textContent = told);

function rows(images, at) {
  while (list.children.length > images.length) list.lastChild.remove();
  images.forEach((image, k) => {
    const row = list.children[k] ?? list.appendChild(newRow());
    const shown = k === at;
    const scroll = shown && row.dataset.id !== image.id;
    row.dataset.id = image.id;
    row.dataset.status = image.status;
    row.classList.toggle("chosen", shown);
    const button = row.querySelector(".open");
    button.setAttribute("aria-current", shown ? "true" : "false");
    button.setAttribute("aria-label", `${image.name}, ${STATUS[image.status]}`);
    button.tabIndex = shown || (at < 0 && k === 0) ? 0 : -1;
    row.querySelector(".name").textContent = image.id;
    button.dataset.tip = image.name;
    row.querySelector(".frames").textContent = image.frames > 1 ? `${image.frames} frames` : "";
    const doubt = row.querySelector(".doubt");
    doubt.hidden = image.uncertainty === null;
    doubt.value = image.uncertainty ?? 0;
    doubt.dataset.tip = `Uncertainty ${Math.round(100 * (image.uncertainty ?? 0))} %`;
    row.querySelector(".discard").setAttribute("aria-label", `Remove ${image.name}`);
    if (scroll || (shown && !row.dataset.seen)) row.scrollIntoView({ block: "nearest" });
    row.dataset.seen = shown ? "yes" : "";
  });
}

function newRow() {
  const row = document.createElement("li");
  row.innerHTML = `
    <button type="button" class="open">
      <svg class="status"><use href="#icon-status"></use></svg><span class="name"></span>
      <span class="frames"></span><meter class="doubt" min="0" max="1"></meter>
    </button>
    <button type="button" class="discard icon" data-tip="Remove this image"><svg><use
      href="#icon-bin"></use></svg></button>`;
  row.querySelector(".open").addEventListener("click", () => {
    document.getElementById("list").classList.remove("open");
    open(row.dataset.id);
  });
  row.querySelector(".discard").addEventListener("click", () => discard(row.dataset.id));
  return row;
}

async function discard(id) {
  const { name } = page.state.images.find((each) => each.id === id);
  const sure = await ask({
    title: `Remove ${name}?`,
    text: "Its masks go with it. The file on your disk stays.",
    yes: "Remove",
  });
  if (!sure) return;
  try {
    await remove(`api/images/${encodeURIComponent(id)}`);
    if (page.image?.id === id) close();
    await refreshState();
    if (!page.image && page.state.images.length) await open(page.state.images[0].id);
  } catch (error) {
    warn(error.message);
  }
}

// Uploads

async function add(files) {
  for (const file of files) {
    const form = new FormData();
    form.append("file", file);
    document.body.classList.add("loading");
    try {
      await come(await upload("api/images", form));
    } catch (error) {
      warn(error.message);
    } finally {
      document.body.classList.remove("loading");
    }
  }
}

async function come({ id }) {
  await refreshState();
  await open(id);
}

async function example() {
  try {
    await come(await post("api/example"));
  } catch (error) {
    warn(error.message);
  }
}

const input = document.getElementById("files");
input.addEventListener("change", async () => {
  await add([...input.files]);
  input.value = "";
});
for (const button of document.querySelectorAll(".browse")) {
  button.addEventListener("click", () => input.click());
}
for (const button of document.querySelectorAll(".example")) {
  button.addEventListener("click", example);
}
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (!event.dataTransfer.files.length) return;
  if (page.state?.folder === null) add([...event.dataTransfer.files]);
  else warn("images are those of the folder: put the file there, and load the page again");
});

// Order and neighbours

document.getElementById("previous").addEventListener("click", () => step(-1));
document.getElementById("following").addEventListener("click", () => step(1));
document.getElementById("order").addEventListener("change", async (event) => {
  try {
    await post("api/order", { order: event.target.value });
  } catch (error) {
    warn(error.message);
  }
  await refreshState();
});
document.getElementById("current").addEventListener("click", () => {
  document.getElementById("list").classList.toggle("open");
  list.querySelector(".chosen")?.scrollIntoView({ block: "nearest" });
});
