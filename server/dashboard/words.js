// How numbers, times and evidence are said.
const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const TIME = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const AGO = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const UNITS = [
  ["day", 86400],
  ["hour", 3600],
  ["minute", 60],
];

export const count = (value) => (value >= 100000 ? COMPACT : NUMBER).format(value);
export const share = (value) => `${Math.round(100 * value)} %`;
export const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
export const time = (iso) => TIME.format(new Date(iso));
export const several = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

export function ago(iso) {
  const seconds = (new Date(iso) - Date.now()) / 1000;
  for (const [unit, length] of UNITS) {
    if (Math.abs(seconds) >= length) return AGO.format(Math.trunc(seconds / length), unit);
  }
  return seconds < -5 ? "some seconds ago" : "just now";
}

export function seconds(value) {
  if (value < 1) return `${Math.round(1000 * value)} ms`;
  if (value < 60) return `${value.toFixed(1)} s`;
  return value < 3600 ? `${Math.round(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;
}

/** A text on one line; of a long one both ends, for what tells prompts of one kind apart is often the last. */
export function shortened(text, most) {
  const line = text.trim().replace(/\s+/g, " ");
  if (line.length <= most) return line;
  const start = line.slice(0, Math.ceil(most * 0.45)).replace(/\s\S*$/, "");
  const end = line.slice(start.length + 3 - most).replace(/^\S*\s/, "");
  return `${start} … ${end}`;
}

/** What is not the same at the beginning of all texts, from a word's beginning on. */
export function differing(texts) {
  const [first, ...others] = texts;
  let same = first?.length ?? 0;
  for (const other of others) {
    let at = 0;
    while (at < same && first[at] === other[at]) at += 1;
    same = at;
  }
  const cut = others.length ? (first ?? "").lastIndexOf(" ", same) + 1 : 0;
  return texts.map((text) => (cut > 20 ? `… ${text.slice(cut)}` : text));
}

/** Evidence as odds: what the e-values of a row say, for people. */
export function odds(evidence) {
  const { n, e_value: good, e_against: harm } = evidence;
  if (!n) return "Not compared yet.";
  const [odd, what] = good >= harm ? [good, "it helps"] : [harm, "it harms"];
  if (odd < 2) return `No telling yet, after ${several(n, "comparison")}.`;
  return `${odd >= 1e6 ? "More than a million" : count(Math.floor(odd))} to 1 that ${what}, after ${several(n, "comparison")}.`;
}

export const STANDINGS = {
  serves: ["Serving", "good"],
  "on trial": ["On trial", "wait"],
  retired: ["Retired", "bad"],
};

export const MODES = {
  plain: "Plain",
  recall: "Recalled",
  prior: "Learned",
  "recall+prior": "Learned + recalled",
  calibrated: "Scored choices",
  voted: "Voted",
  refined: "Refined",
};
