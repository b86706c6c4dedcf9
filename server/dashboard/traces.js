// The last requests, and what people think of their answers.
import { api, useData } from "./api.js";
import { Forgotten } from "./episode.js";
import { html, useState } from "./lib.js";
import { Acting, Asking, Badge, Card, Dialog, Empty, Pager, Thumb, Trouble } from "./ui.js";
import { ago, MODES, seconds, time } from "./words.js";

const EVERY_MS = 10000;

export function Traces() {
  const [cursors, setCursors] = useState([]);
  const cursor = cursors.at(-1);
  const { data, error, reload } = useData(
    `v1/latent/traces?limit=25${cursor ? `&cursor=${cursor}` : ""}`,
    cursor ? 0 : EVERY_MS,
  );
  const [shown, setShown] = useState(null);
  return html`
    <header class="head"><h1>Traces</h1></header>
    <${Trouble} error=${error} />
    ${data && !data.data.length && html`<${Card}><${Empty} title="No requests yet.">
      Every request that is steered leaves a trace here, with what was decided and why.
    <//><//>`}
    <ul class="rows">
      ${data?.data.map((one) => html`<${Line} key=${one.id} one=${one} reload=${reload} show=${() => setShown(one.id)} />`)}
    </ul>
    <${Pager} page=${data} cursors=${cursors} go=${setCursors} />
    ${shown &&
    html`<${Trace}
      id=${shown}
      onClose=${() => {
        setShown(null);
        reload();
      }}
    />`}
  `;
}

function Line({ one, reload, show }) {
  const rate = (value) => async () => {
    await api("v1/feedback", { method: "POST", body: { inference_id: one.id, metric_name: "rating", value } });
    await reload();
  };
  const steered = one.mode !== "plain";
  return html`
    <li>
      <div class="grow">
        <button class="link" onClick=${show}>${one.question || one.id}</button>
        ${one.answer && html`<p class="answered">${one.answer}</p>`}
        ${one.question === null && html`<p class="hint">No text is kept of this request.</p>`}
        <p class="facts">
          <${Badge} kind=${steered ? "good" : "plain"}>${MODES[one.mode] ?? one.mode}<//>
          <span>${one.effort}</span>
          <span>${one.reason}</span>
          ${one.seconds !== null && html`<span>${seconds(one.seconds)}</span>`}
          <time datetime=${one.created_at} title=${time(one.created_at)}>${ago(one.created_at)}</time>
        </p>
      </div>
      <div class="thumbs" role="group" aria-label="Rate the answer">
        <${Acting} class="quiet icon" aria-label="Good answer" aria-pressed=${one.rating !== null && one.rating >= 0.5} act=${rate(true)}><${Thumb} /><//>
        <${Acting} class="quiet icon" aria-label="Bad answer" aria-pressed=${one.rating !== null && one.rating < 0.5} act=${rate(false)}><${Thumb} down /><//>
      </div>
    </li>
  `;
}

export function Trace({ id, onClose }) {
  const { data, error } = useData(`v1/latent/traces/${id}`);
  const [gone, setGone] = useState(null);
  const forget = async () => setGone(await api(`v1/latent/traces/${id}`, { method: "DELETE" }));
  if (gone) return html`<${Forgotten} gone=${gone} onClose=${onClose} />`;
  return html`
    <${Dialog} title="Trace" onClose=${onClose} wide>
      <${Trouble} error=${error} />
      ${data &&
      html`
        <pre class="json" tabindex="0">${JSON.stringify(data, null, 2)}</pre>
        <div class="buttons">
          <${Asking} label="Forget it" kind="danger" question="Forget this request?" act=${forget}>
            <p>
              What was asked and answered goes, with the episode of the same prompt and what people said. What priors have learned
              from it stays in them; you will be told which.
            </p>
          <//>
        </div>
      `}
    <//>
  `;
}
