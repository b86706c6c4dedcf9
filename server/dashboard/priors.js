// Versions of the prior: what they are worth, and which one answers.
import { api, useData } from "./api.js";
import { Row } from "./clusters.js";
import { html, useState } from "./lib.js";
import { Asking, Badge, Card, Dialog, Empty, Trouble } from "./ui.js";
import { ago, several, share, time } from "./words.js";

const EVERY_MS = 10000;
const LABELS = { serving: ["serving", "good"], trial: ["on trial", "wait"], pinned: ["pinned", "wait"] };
const CAUSES = { night: "by a night", operator: "by an operator", rollback: "rolled back", "earlier build": "" };

export function Priors() {
  const { data, error, reload } = useData("v1/priors", EVERY_MS);
  const [shown, setShown] = useState(null);
  const [compared, setCompared] = useState(null);
  const post = (path) => async () => {
    await api(`v1/priors/${path}`, { method: "POST" });
    await reload();
  };
  const versions = data ? [...data.versions].reverse() : [];
  return html`
    <header class="head">
      <h1>Priors</h1>
      ${data &&
      html`<div class="buttons">
        ${data.pinned &&
        html`<${Asking} label="Release" question="Let nights choose again?" act=${post("release")}>
          <p>${data.active ?? "No prior"} stays active until a night puts a newer version in its place. Only rows that have proved themselves will answer.</p>
        <//>`}
        ${data.activations?.length > 1 &&
        html`<${Asking} label="Roll back" question="Roll back to what was active before?" act=${post("rollback")}>
          <p>
            Later requests are answered with ${data.activations[1].version ?? "no prior"} instead of ${data.active ?? "no prior"}, whatever the evidence, and
            nights leave it so until you release it. Requests under way finish as they began.
          </p>
        <//>`}
        ${data.active &&
        html`<${Asking} label="Use none" kind="danger" question="Answer without any prior?" act=${post("none/activate")}>
          <p>Later requests are answered plainly, and nights leave it so until you release it. No version is deleted.</p>
        <//>`}
      </div>`}
    </header>
    <${Trouble} error=${error} />
    ${data &&
    !versions.length &&
    html`<${Card}><${Empty} title="There is no prior yet.">A <a href="#nights">night</a> publishes one.<//><//>`}
    <ul class="rows">
      ${versions.map(
        (one) => html`
          <li key=${one.version} class=${one.version === data.active ? "active" : ""}>
            <div class="grow">
              <p class="facts">
                <strong class="version">${one.version}</strong>
                ${one.version === data.active && html`<${Badge} kind="good">active<//>`}
                ${(one.labels ?? []).map((label) => html`<${Badge} key=${label} kind=${LABELS[label]?.[1] ?? "plain"}>${LABELS[label]?.[0] ?? label}<//>`)}
                ${!one.labels && one.version === data.active && data.pinned && html`<${Badge} kind="wait">pinned<//>`}
              </p>
              ${one.error
                ? html`<p class="trouble">${one.error}</p>`
                : html`<p class="facts">
                    ${one.created_at && html`<span title=${time(one.created_at)}>${ago(one.created_at)}</span>`}
                    ${one.evidence && html`<span>${several(one.evidence.length, "new kind")}</span>`}
                    ${one.episodes !== undefined && html`<span>${several(one.episodes, "episode")}</span>`}
                    <span>${one.parent ? `after ${one.parent}` : "the first"}</span>
                  </p>`}
            </div>
            <div class="buttons">
              <button onClick=${() => setShown(one.version)}>Show</button>
              ${data.active && one.version !== data.active && html`<button onClick=${() => setCompared(one.version)}>Compare</button>`}
              ${one.version !== data.active &&
              !one.error &&
              html`<${Asking} label="Activate" question=${`Answer with ${one.version}?`} act=${post(`${one.version}/activate`)}>
                <p>
                  All rows of ${one.version} answer from the next request on, whatever the evidence, and nights leave it so until you release it.
                  Requests under way finish as they began.
                </p>
              <//>`}
            </div>
          </li>
        `,
      )}
    </ul>
    ${data?.activations?.length > 0 &&
    html`<${Card} title="What was active">
      <ol class="plain-list">
        ${data.activations.map(
          (one) => html`<li class="facts"><strong>${one.version ?? "none"}</strong><span>${time(one.at)}</span><span>${CAUSES[one.cause] ?? one.cause}</span></li>`,
        )}
      </ol>
    <//>`}
    ${shown && html`<${Version} version=${shown} onClose=${() => setShown(null)} />`}
    ${compared && html`<${Comparison} a=${compared} b=${data.active} onClose=${() => setCompared(null)} />`}
  `;
}

function Version({ version, onClose }) {
  const { data, error } = useData(`v1/priors/${version}`);
  const now = Object.entries(data?.evidence_now ?? {});
  return html`
    <${Dialog} title=${`Prior ${version}`} onClose=${onClose} wide>
      <${Trouble} error=${error} />
      ${data &&
      html`
        ${now.length > 0 &&
        html`<section>
          <h3>Evidence by now</h3>
          <ul class="plain-list">${now.map(([id, row]) => html`<li key=${id}><${Row} row=${{ id, ...row }} /></li>`)}</ul>
        </section>`}
        <dl class="facts-list">
          ${data.created_at && html`<dt>Published</dt><dd>${time(data.created_at)}</dd>`}
          ${data.lineage && html`<dt>Came of</dt><dd>${data.lineage.map((one) => one.version).join(" ← ")}</dd>`}
          ${data.trained_on &&
          html`<dt>Learned from</dt>
            <dd>
              ${several(data.trained_on.prompts, "prompt")} of ${several(data.trained_on.episodes, "episode")}
              ${data.trained_on.dataset_sha256 && html`<br /><code>sha256 ${data.trained_on.dataset_sha256}</code>`}
            </dd>`}
          ${data.sha256 && html`<dt>Weights</dt><dd><code>sha256 ${data.sha256}</code></dd>`}
        </dl>
      `}
    <//>
  `;
}

function Comparison({ a, b, onClose }) {
  const { data, error } = useData(`v1/priors/compare?a=${a}&b=${b}`);
  const worth = (row) => (row ? `${row.standing}, ${row.n} compared` : "–");
  return html`
    <${Dialog} title=${`${a} beside ${b}`} onClose=${onClose} wide>
      <${Trouble} error=${error} />
      ${data &&
      html`<div class="scroll" tabindex="0">
        <table>
          <thead>
            <tr><th scope="col">${a}</th><th scope="col">${b}</th><th scope="col">Regions alike</th><th scope="col">Latents alike</th></tr>
          </thead>
          <tbody>
            ${data.clusters.map(
              (one) => html`<tr>
                <td>${one.a ? html`<code>${one.a}</code><br />${worth(one.a_evidence)}` : "–"}</td>
                <td>${one.same ? "the same row" : one.b ? html`<code>${one.b}</code><br />${worth(one.b_evidence)}` : "–"}</td>
                <td>${one.b_covered === null || one.b_covered === undefined ? "–" : share(one.b_covered)}</td>
                <td>${one.latent_cosine === null || one.latent_cosine === undefined ? "–" : one.latent_cosine.toFixed(2)}</td>
              </tr>`,
            )}
          </tbody>
        </table>
      </div>`}
    <//>
  `;
}
