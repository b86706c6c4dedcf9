// Before anything is drawn: the theme that was chosen, else the system's.
(function () {
  const chosen = localStorage.getItem("latentevolve.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
