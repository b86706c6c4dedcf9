// Before anything is drawn, and whenever the system's changes: the theme that was chosen, else the system's.
(function () {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const show = () => {
    const chosen = localStorage.getItem("latentevolve.theme");
    const named = chosen === "light" || chosen === "dark";
    document.documentElement.dataset.theme = named ? chosen : system.matches ? "dark" : "light";
  };
  show();
  system.addEventListener("change", show);
})();
