// The dialog of all concepts: pictures, what each is and is made for, a search.

import { t, translated } from "./language.js";
import { make } from "./make.js";
import { picture } from "./picture.js";
import { searched } from "./text.js";

/**
 * @param {import("./server.js").Server} server
 * @param {string} current the file that is chosen now
 * @param {string | null} family of the connected model, where it is known
 * @returns {Promise<string | null>} the file that was chosen
 */
export function openChooser(server, current, family) {
  const search = make("input", {
    type: "search",
    placeholder: t`Search by word, name, family …`,
    "aria-label": t`Search concepts`,
  });
  const list = make("div", { class: "perfusion-list", role: "listbox", "aria-label": t`Concepts` });
  const told = make("div", { class: "perfusion-told", role: "status", text: t`Reading the files …` });
  const close = make("button", { type: "button", text: t`Close` });
  const dialog = make("dialog", { class: "perfusion-chooser", "aria-label": t`Choose a concept` }, [
    make("div", { class: "perfusion-row" }, [search, close]),
    told,
    list,
  ]);
  dialog.dataset.perfusion = "chooser";

  return new Promise((resolve) => {
    let chosen = null;
    const choose = (file) => {
      chosen = file;
      dialog.close();
    };
    const show = (cards, more) => {
      const found = searched(cards, search.value);
      list.replaceChildren(...found.map((card) => item(server, card, current, family, choose)));
      // One stop of the Tab key for the whole list; the arrow keys go through it.
      const first = list.querySelector('button[aria-selected="true"]') ?? list.querySelector("button");
      if (first) first.tabIndex = 0;
      const rest = more ? `; ${t`${more} more are in the node's own list`}` : "";
      told.textContent = cards.length
        ? t`${found.length} of ${cards.length} concepts` + rest
        : t`There is no concept in models/perfusion yet: train one, or copy its file there.`;
    };
    server.all().then(
      ({ concepts, more }) => {
        search.addEventListener("input", () => show(concepts, more));
        show(concepts, more);
        list.querySelector('[aria-selected="true"]')?.scrollIntoView({ block: "nearest" });
      },
      (error) => {
        told.textContent = error.message;
      },
    );
    close.addEventListener("click", () => dialog.close());
    // A click beside it closes it: the dialog itself is hit only outside of what it holds.
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("keydown", (event) => {
      walk(event, list, search);
      // The graph has keys of its own.
      event.stopPropagation();
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(chosen);
    });
    document.body.append(dialog);
    dialog.showModal();
    search.focus();
  });
}

function item(server, card, current, family, choose) {
  const selected = String(card.file === current);
  if (card.error) {
    return make("div", { class: "perfusion-item", role: "option", "aria-disabled": "true", "aria-selected": selected, title: card.error }, [
      make("div", { class: "perfusion-about" }, [
        make("strong", { text: card.file }),
        make("div", { class: "perfusion-warning", text: card.error }),
      ]),
    ]);
  }
  const other = family !== null && card.family !== family;
  const button = make("button", { type: "button", class: "perfusion-item", role: "option", tabindex: "-1", "aria-selected": selected, title: card.file }, [
    picture(card.has_preview ? server.preview(card) : "", card.name),
    make("div", { class: "perfusion-about" }, [
      make("strong", { text: `${card.name} (${card.placeholder})` }),
      make("div", { text: `${card.superclass} · ${translated(card.family_title)}` }),
      make("div", { class: "perfusion-told", text: t`bias ${card.bias}, temperature ${card.temperature}` }),
      make("div", { class: "perfusion-warning", text: other ? t`for another family than the connected model` : "" }),
    ]),
  ]);
  button.dataset.file = card.file;
  button.dataset.fits = String(!other);
  button.addEventListener("click", () => choose(card.file));
  return button;
}

/** Arrow keys go through the list; Enter chooses, as it does on any button. */
function walk(event, list, search) {
  const steps = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity };
  const by = steps[event.key];
  if (by === undefined || (event.target === search && !event.key.startsWith("Arrow"))) return;
  const buttons = [...list.querySelectorAll("button")];
  const at = buttons.indexOf(document.activeElement);
  if (!buttons.length) return;
  event.preventDefault();
  const next = Math.min(Math.max(at + by, 0), buttons.length - 1);
  if (at === 0 && by === -1) search.focus();
  else buttons[next].focus();
}
