// Elements made and moved between without parsing anything: text from others stays text.

export const $ = (id) => document.getElementById(id);

/** An element with attributes, text and children. */
export function element(tag, { text, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

/** Hide `target`; a keyboard that was in it goes on at `next`, not at the top of the page. */
export function hide(target, next) {
  const focused = target.contains(document.activeElement);
  target.hidden = true;
  if (focused) next.focus({ preventScroll: true });
}
