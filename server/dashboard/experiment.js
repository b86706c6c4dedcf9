// Whether steering is worth it: some requests are answered without, and both kinds are compared.
import { api, useData } from "./api.js";
import { html } from "./lib.js";
import { Asking, Badge, Card, Empty, Trouble } from "./ui.js";
import { count, odds, seconds, share, time } from "./words.js";

const EVERY_MS = 10000;
const METRICS = [
  ["rating", "Ratings by people", (value) => value.toFixed(2)],
  ["agreement", "Agreement with many samples", share],
  ["tokens", "Tokens of an answer", (value) => value.toFixed(1)],
  ["latency_s", "Time to the answer’s end", seconds],
];

export function Experiment() {
  const { data, error, reload } = useData("v1/experiments", EVERY_MS);
  const one = data?.data[0];
  if (!one) return html`<${Trouble} error=${error} />`;
  const off = one.switch.steering === "off";
  const turn = (steering) => async () => {
    await api("v1/experiments", { method: "PUT", body: { steering } });
    await reload();
  };
  const known = METRICS.filter(([name]) => one.metrics[name].steered.n + one.metrics[name].holdout.n > 0);
  return html`
    <${Card}
      title="With and without steering"
      hint=${one.share ? `${share(one.share)} of users, else of prompts, are answered without it.` : undefined}
      action=${off
        ? html`<${Asking} label="Turn steering on" question="Turn steering on again?" act=${turn("on")}>
            <p>Requests are steered from the next one on, and the experiment begins anew.</p>
          <//>`
        : html`<${Asking} label="Turn steering off" kind="danger" question="Turn steering off?" act=${turn("off")}>
            <p>Every request is answered plainly until somebody turns it on again. What is remembered stays.</p>
          <//>`}
    >
      <p>
        <${Badge} kind=${off ? "bad" : "good"}>${off ? "Steering is off" : "Steering is on"}<//>
        ${one.switch.at && html` <span class="hint">${one.switch.cause === "evidence" ? "by the evidence" : "by an operator"}, ${time(one.switch.at)}</span>`}
        ${one.switch.message && html` <span>${one.switch.message}</span>`}
      </p>
      ${known.length > 0 &&
      html`<div class="scroll" tabindex="0">
        <table>
          <thead>
            <tr><th scope="col"><span class="unseen">What</span></th><th scope="col">Steered</th><th scope="col">Without</th><th scope="col">Difference, 95 %</th></tr>
          </thead>
          <tbody>
            ${known.map(([name, title, say]) => html`<${Metric} key=${name} one=${one.metrics[name]} title=${title} say=${say} />`)}
          </tbody>
        </table>
      </div>`}
      ${!known.length &&
      (one.share
        ? html`<p class="hint">Nothing is compared yet.</p>`
        : html`<${Empty} title="Nobody is answered without it.">
            <code>LATENTEVOLVE_HOLDOUT_SHARE</code> holds out a share of users, so that you see what steering is worth to them.
          <//>`)}
    <//>
  `;
}

function Metric({ one, title, say }) {
  const arm = ({ n, mean }) => (mean === null ? "–" : html`${say(mean)} <span class="hint">of ${count(n)}</span>`);
  const signed = (value) => `${value < 0 ? "−" : "+"}${say(Math.abs(value))}`;
  return html`
    <tr>
      <th scope="row">${title}</th>
      <td>${arm(one.steered)}</td>
      <td>${arm(one.holdout)}</td>
      <td>
        ${one.difference === null ? "–" : signed(one.difference)}
        ${one.interval && html`<span class="hint"> (${signed(one.interval[0])} to ${signed(one.interval[1])})</span>`}
        ${one.evidence?.n > 0 && html`<br /><span class="hint">${odds(one.evidence)}</span>`}
      </td>
    </tr>
  `;
}
