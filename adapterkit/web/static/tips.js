// What is said of a control when the pointer rests on it, or when a key reaches it: `data-tip`.

const tip = document.getElementById("tip");
const DELAY = 350; // ms
const STAYS = 6000;
let timer = null;
let owner = null;

function show(of) {
  if (!of.isConnected || !of.dataset.tip) return;
  owner = of;
  tip.textContent = of.dataset.tip;
  tip.hidden = false;
  // Within an open dialog, which lies above all else.
  (of.closest("dialog") ?? document.body).append(tip);
  const bounds = of.getBoundingClientRect();
  const { width, height } = tip.getBoundingClientRect();
  const left = bounds.left + bounds.width / 2 - width / 2;
  const below = bounds.bottom + 6;
  const top = below + height > innerHeight ? bounds.top - height - 6 : below;
  tip.style.left = `${Math.max(6, Math.min(innerWidth - width - 6, left))}px`;
  tip.style.top = `${top}px`;
  clearTimeout(timer);
  timer = setTimeout(() => (tip.hidden = true), STAYS);
}

function hide() {
  clearTimeout(timer);
  owner = null;
  tip.hidden = true;
}

addEventListener("pointerover", (event) => {
  const of = event.target.closest?.("[data-tip]");
  if (of === owner) return;
  hide();
  if (of && event.pointerType !== "touch") timer = setTimeout(show, DELAY, of);
});
addEventListener("focusin", (event) => {
  if (event.target.matches?.("[data-tip]:focus-visible")) show(event.target);
});
addEventListener("focusout", hide);
addEventListener("pointerdown", (event) => {
  hide();
  owner = event.target.closest?.("[data-tip]"); // What is pressed is known.
});
addEventListener("keydown", (event) => event.key === "Escape" && hide());
addEventListener("scroll", hide, true);
