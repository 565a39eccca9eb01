// Runs before anything is drawn: a theme that was chosen must not flash.
"use strict";
try {
  const theme = localStorage.getItem("glm4.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // no storage: as the system has it
}
