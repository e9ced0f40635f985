// Not a module: it runs before the page is first drawn, so that no other theme flashes up.

(() => {
  const THEMES = ["auto", "light", "dark"];
  const root = document.documentElement;
  const told = { auto: "as the system", light: "light", dark: "dark" };

  const use = (theme) => {
    root.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.dataset.tip = `Colours: ${told[theme]}`;
    if (button) button.setAttribute("aria-label", button.dataset.tip);
  };
  const kept = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null; // The browser keeps nothing.
    }
  };

  use(THEMES.includes(kept()) ? kept() : "auto");
  document.addEventListener("DOMContentLoaded", () => {
    use(root.dataset.theme);
    document.getElementById("theme").addEventListener("click", () => {
      const next = THEMES[(THEMES.indexOf(root.dataset.theme) + 1) % THEMES.length];
      use(next);
      try {
        localStorage.setItem("theme", next);
      } catch {
        // Then it holds until the page is left.
      }
    });
  });
})();
