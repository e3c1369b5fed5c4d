// The API key of a server that wants one: kept in this tab, sent with each request.

import { $, hide } from "./dom.js";

const ITEM = "lct-deploy.api-key";

let key = read();

export function apiKey() {
  return key;
}

/** Ask for a key because a request was refused without one, or with the present one. */
export function askForKey(reason) {
  $("key-reason").textContent = key ? `The key was not accepted: ${reason}` : reason;
  $("key-form").hidden = false;
  $("key").value = "";
  $("key").focus();
}

/** Call `changed` after each change: with true where there is a new key to try. */
export function onKeyChange(changed) {
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const given = $("key").value.trim();
    if (!/^[\x21-\x7e]+$/.test(given)) {
      $("key-reason").textContent = "A key has no spaces and nothing but ASCII in it.";
      return;
    }
    keep(given);
    hide($("key-form"), $("result"));
    changed(true);
  });
  $("forget-key").addEventListener("click", () => {
    keep("");
    changed(false);
  });
}

function keep(value) {
  key = value;
  try {
    if (key) sessionStorage.setItem(ITEM, key);
    else sessionStorage.removeItem(ITEM);
  } catch {
    // Storage is forbidden: the key lives as long as the page.
  }
  show();
}

function read() {
  try {
    return sessionStorage.getItem(ITEM) ?? "";
  } catch {
    return "";
  }
}

function show() {
  if (key) $("key-in-use").hidden = false;
  else hide($("key-in-use"), $("file"));
}

show();
