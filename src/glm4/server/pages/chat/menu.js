import { el, placeBeside } from "./dom.js";

/** Open a menu of [{label, act, danger?}] below a button, which has the focus again when it closes. */
export function openMenu(button, label, items) {
  const menu = el("div", { class: "menu", role: "menu", popover: "auto", "aria-label": label });
  for (const item of items) {
    const row = el("button", { type: "button", role: "menuitem", tabindex: "-1", class: item.danger ? "danger" : null },
      item.label);
    row.onclick = () => {
      menu.hidePopover();
      item.act();
    };
    menu.append(row);
  }
  menu.addEventListener("keydown", (event) => moveInMenu(event, menu));
  menu.addEventListener("toggle", (event) => {
    if (event.newState !== "closed") return;
    button.setAttribute("aria-expanded", "false");
    if (menu.contains(document.activeElement) || document.activeElement === document.body) button.focus();
    menu.remove();
  });
  // Inside the same dialog or landmark: what is outside of a modal one takes no clicks.
  (button.closest("dialog, nav, main") ?? document.body).append(menu);
  menu.showPopover();
  placeBeside(menu, button, { atEnd: getComputedStyle(button).direction !== "rtl" });
  button.setAttribute("aria-expanded", "true");
  menu.firstElementChild.focus();
}

function moveInMenu(event, menu) {
  const rows = [...menu.children];
  const at = rows.indexOf(document.activeElement);
  const steps = { ArrowDown: at + 1, ArrowUp: at - 1 + rows.length, Home: 0, End: rows.length - 1 };
  if (event.key === "Tab") menu.hidePopover();
  if (event.key === "Escape") event.stopPropagation(); // closes the menu, and not the drawer
  if (!(event.key in steps)) return;
  event.preventDefault();
  event.stopPropagation();
  rows[steps[event.key] % rows.length].focus();
}
