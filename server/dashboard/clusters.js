// What kinds of request there are, in their own words, and what is known of answering each.
import { useData } from "./api.js";
import { Episode } from "./episode.js";
import { html, useEffect, useState } from "./lib.js";
import { Badge, Card, Empty, Meter, Trouble } from "./ui.js";
import { differing, odds, several, share, signed, STANDINGS } from "./words.js";

const EVERY_MS = 15000;
const DRAWING_MS = 1500;

export function Clusters() {
  const [drawing, setDrawing] = useState(true);
  const { data, error, reload } = useData("v1/memory/clusters", drawing ? DRAWING_MS : EVERY_MS);
  const [open, setOpen] = useState(null);
  useEffect(() => setDrawing(!data || data.state === "drawing"), [data]);
  return html`
    <header class="head"><h1>Kinds of request</h1></header>
    <${Trouble} error=${error} />
    <p class="hint">
      Prompts that the model takes for alike are one kind. A night learns one latent for each; it serves once the evidence is 20 to 1
      that it helps.
    </p>
    ${data?.failure && html`<p class="trouble" role="alert">Kinds could not be found: ${data.failure}</p>`}
    ${data?.state === "drawing" && html`<p class="hint" role="status">Kinds are being found …</p>`}
    ${data?.state === "empty" &&
    html`<${Card}><${Empty} title="Nothing is remembered yet.">Kinds appear once the server has answered and explored some requests.<//><//>`}
    <ul class="kinds">
      ${data?.clusters.map((kind) => html`<${Kind} key=${kind.number} kind=${kind} open=${setOpen} />`)}
    </ul>
    ${data?.more > 0 && html`<p class="hint">${several(data.more, "smaller kind")} more.</p>`}
    ${data?.others.length > 0 &&
    html`<${Card} title="Learned, but remembered no more" hint="Rows of the prior that cover nothing on the map.">
      <ul class="plain-list">${data.others.map((row) => html`<li key=${row.id}><${Row} row=${row} /></li>`)}</ul>
    <//>`}
    ${open &&
    html`<${Episode}
      id=${open}
      show=${setOpen}
      onClose=${() => setOpen(null)}
      changed=${() => {
        setOpen(null);
        reload();
      }}
    />`}
  `;
}

function Kind({ kind, open }) {
  const [first, ...others] = kind.typical;
  const lines = differing(kind.typical.map((one) => one.question ?? "(no text is kept)")).slice(1);
  const [name, tone] = STANDINGS[kind.standing] ?? ["Not learned yet", "plain"];
  return html`
    <li class="card">
      <header>
        <${Badge} kind=${tone}>${name}<//>
        <span class="hint">${several(kind.episodes, "episode")}, ${share(kind.share)}</span>
      </header>
      <h2><button class="link" onClick=${() => open(first.id)}>${first.question ?? "(no text is kept)"}</button></h2>
      <ul class="typical">
        ${others.map(
          (one, at) => html`<li key=${one.id}><button class="link" onClick=${() => open(one.id)}>${lines[at]}</button></li>`,
        )}
      </ul>
      ${kind.rows.length
        ? html`<ul class="plain-list">${kind.rows.map((row) => html`<li key=${row.id}><${Row} row=${row} /></li>`)}</ul>`
        : html`<p class="hint">A night learns such requests once enough of them are remembered.</p>`}
    </li>
  `;
}

/** What is known of a row: odds in words, and how near the proof is. */
export function Row({ row }) {
  const [name, tone] = STANDINGS[row.standing];
  return html`
    <div class="row-line">
      <code>${row.id}</code> <${Badge} kind=${tone}>${name}<//>
      <span>${odds(row)}</span>
      ${row.n > 0 && html`<span class="hint">Mean difference ${signed(row.mean)}.</span>`}
      <${Proof} row=${row} />
    </div>
  `;
}

const PROOF = 20;

/** How near a row is to its proof, for or against, as a bar on a scale of powers. */
function Proof({ row }) {
  const part = (value) => Math.max(0, Math.min(1, Math.log(value) / Math.log(PROOF)));
  const [good, harm] = [part(row.e_value), part(row.e_against)];
  const [kind, full] = good >= harm ? ["good", good] : ["bad", harm];
  return html`<${Meter} name=${`Proof that it ${kind === "good" ? "helps" : "harms"}`} value=${full} kind=${`thin ${kind}`} />`;
}
