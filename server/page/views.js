// Answers and cards as elements.

import { element } from "./dom.js";

const STAGES = ["decode", "queue", "compute"];
const ATTENTION = { lct: "LCT", se: "SE", se_plus: "SE+", none: "none" };

/** A probability in percent, never rounded to a certainty or an impossibility that it is not. */
export function percent(probability) {
  if (probability > 0 && probability < 0.0001) return "< 0.01 %";
  if (probability < 1 && probability > 0.9999) return "> 99.99 %";
  return `${(100 * probability).toFixed(2)} %`;
}

export function showBars(list, predictions) {
  list.replaceChildren(
    ...predictions.map(({ label, probability }) => {
      const fill = element("div", { class: "fill" });
      fill.style.width = `${100 * probability}%`;
      return element(
        "li",
        {},
        element("span", { class: "label", text: label }),
        element("span", { class: "value", text: percent(probability) }),
        element("div", { class: "track", "aria-hidden": "true" }, fill),
      );
    }),
  );
}

/** A bar of the stages and their values; `roundTrip` is what the browser measured. */
export function showTiming(group, timing, roundTrip) {
  const measured = STAGES.map((stage) => ({ stage, value: timing[stage] }));
  const rest = timing.total - measured.reduce((sum, { value }) => sum + value, 0);
  const stages = [...measured, { stage: "other", value: Math.max(0, rest) }];
  const bar = element("div", { class: "stages", "aria-hidden": "true" });
  for (const { stage, value } of stages) {
    const part = element("div", { class: `stage ${stage}` });
    part.style.flexGrow = value;
    bar.append(part);
  }
  const list = element("dl", { class: "legend" });
  for (const { stage, value } of stages) list.append(entry(stage, milliseconds(value), `swatch ${stage}`));
  list.append(entry("total", milliseconds(timing.total), "sum"));
  list.append(entry("round trip", milliseconds(roundTrip), "sum"));
  group.replaceChildren(bar, list);
}

export function showCard(container, card) {
  const entries = cardEntries(card).map(([name, value]) => entry(name, value));
  container.replaceChildren(element("dl", { class: "card" }, ...entries));
}

export function showNoCard(container, message) {
  container.replaceChildren(element("p", { class: "hint", text: message }));
}

function entry(term, value, kind = "") {
  return element("div", {}, element("dt", { class: kind, text: term }), element("dd", { text: value }));
}

function cardEntries(card) {
  const { input } = card;
  return [
    ["Model", `${card.name}, version ${card.version}`],
    ["Network", card.arch],
    ["Attention", attention(card.attention)],
    ["Fused", `${card.fusion.fused} of ${card.fusion.blocks} attention blocks`],
    ["Classes", card.num_classes.toLocaleString("en")],
    ["Input", `${input.width} × ${input.height} pixels: short side to ${input.resize} (${input.interpolation}), centre ${input.crop} kept`],
    ["Runs on", `${card.runtime}, ${card.precision}`],
    ["Proof", proof(card.parity, card.precision)],
  ];
}

function attention(card) {
  if (card === null) return "differs from block to block";
  const kind = ATTENTION[card.kind] ?? card.kind;
  return card.groups === null ? kind : `${kind}, ${card.groups} groups`;
}

function proof(parity, precision) {
  if (parity === null) return `none in the bundle for ${precision}`;
  const images = parity.images.toLocaleString("en");
  const agreement = `${Number((100 * parity.top1_agreement).toFixed(2))} %`;
  return (
    `max |Δlogit| ${parity.max_abs_error.toExponential(1)} against ${parity.reference}, ` +
    `the same best class on ${agreement} of ${images} images (${parity.runtime})`
  );
}

function milliseconds(value) {
  const digits = value < 10 ? 2 : value < 100 ? 1 : 0;
  return `${value.toFixed(digits)} ms`;
}
