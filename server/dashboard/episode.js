// One remembered episode: what was asked and answered, how it is known to be good, and forgetting it.
import { api, useData } from "./api.js";
import { html, useState } from "./lib.js";
import { Asking, Badge, Dialog, Meter, Trouble } from "./ui.js";
import { several, share, shortened, time } from "./words.js";

const FOUND_BY = { none: "exploring or scored choices", vote: "a vote", evolution: "evolution", gradient: "gradients" };

export function Episode({ id, onClose, show, changed }) {
  const { data: one, error } = useData(`v1/memory/episodes/${id}`);
  const [gone, setGone] = useState(null);
  const forget = async () => setGone(await api(`v1/memory/episodes/${id}`, { method: "DELETE" }));
  if (gone) return html`<${Forgotten} gone=${gone} onClose=${changed} />`;
  return html`
    <${Dialog} title="Episode" onClose=${onClose} wide>
      <${Trouble} error=${error} />
      ${one &&
      html`
        <dl class="exchange">
          <dt>Asked</dt>
          <dd>${one.question || html`<em>No text is kept.</em>`}</dd>
          <dt>Remembered answer</dt>
          <dd>${one.answer_text.trim() || html`<em>No text is kept.</em>`}</dd>
        </dl>
        <div class="signals">
          <${Bar} name="Outcome" value=${one.reward} strong />
          <${Bar} name="Plain answer" value=${one.plain_reward} />
          ${Object.entries(one.signals).map(([name, value]) => html`<${Bar} key=${name} name=${`Signal: ${name}`} value=${value} />`)}
        </div>
        <dl class="facts-list">
          <dt>Found</dt>
          <dd>by ${FOUND_BY[one.search] ?? one.search} at effort ${one.effort}, ${time(one.created_at)}</dd>
          <dt>Asked for</dt>
          <dd>${several(one.seen, "time")}, last ${time(one.seen_at)}</dd>
          <dt>Latent</dt>
          <dd>
            ${one.latent_earned
              ? html`<${Badge} kind="good">earned its place<//>`
              : "none that did better than the plain answer; the answer is what is learned"}
          </dd>
          <dt>Prior</dt>
          <dd>${one.prior_version ?? "none was active"}</dd>
          ${one.choices.length > 0 &&
          html`<dt>Choices</dt>
            <dd>
              ${one.choices.map((choice, at) => {
                const logs = one.choice_log_probabilities;
                return html`<span class="choice-of" key=${choice}>${choice}${logs.length ? ` ${share(Math.exp(logs[at]))}` : ""}</span>`;
              })}
            </dd>`}
          <dt>Id</dt>
          <dd><code>${one.id}</code></dd>
        </dl>
        <details>
          <summary>Prompt as the model reads it</summary>
          <pre class="json">${one.prompt_text}</pre>
        </details>
        <${Alike} id=${id} show=${show} />
        <div class="buttons">
          <${Asking} label="Forget it" kind="danger" question="Forget this episode?" act=${forget}>
            <p>
              It is recalled no more, and later nights do not see it. What priors have learned from it stays in them; you will be
              told which.
            </p>
          <//>
        </div>
      `}
    <//>
  `;
}

const Bar = ({ name, value, strong }) => html`
  <div class=${`bar-line ${strong ? "strong" : ""}`}>
    <span>${name}</span>
    <${Meter} name=${name} value=${value} />
    <span class="number">${value.toFixed(2)}</span>
  </div>
`;

function Alike({ id, show }) {
  const [found, setFound] = useState(null);
  const [error, setError] = useState(null);
  const look = async () => {
    try {
      setFound((await api("v1/memory/search", { method: "POST", body: { id, k: 5 } })).data);
    } catch (failed) {
      setError(failed);
    }
  };
  return html`
    <details onToggle=${(event) => event.target.open && !found && look()}>
      <summary>Most like it</summary>
      <${Trouble} error=${error} />
      <ul class="episodes">
        ${found?.map(
          ({ episode, similarity }) => html`
            <li key=${episode.id}>
              <button class="quiet" onClick=${() => show(episode.id)}>
                <span class="question">${episode.question ? shortened(episode.question, 110) : "(no text is kept)"}</span>
                <span class="facts">cosine ${similarity.toFixed(2)}, outcome ${episode.reward.toFixed(2)}</span>
              </button>
            </li>
          `,
        )}
      </ul>
    </details>
  `;
}

export const Forgotten = ({ gone, onClose }) => html`
  <${Dialog} title="Forgotten" onClose=${onClose}>
    <div class="text">
      ${gone.priors.length
        ? html`
            <p>It taught ${several(gone.priors.length, "version")} of the prior, which ${gone.priors.length === 1 ? "keeps" : "keep"} what was learned:</p>
            <ul class="plain-list">
              ${gone.priors.map((one) => html`<li>${one.version}${one.active ? " (active)" : ""}: ${one.rows.join(", ")}</li>`)}
            </ul>
            <p>To take it out: activate none under Priors, release, and start a night.</p>
          `
        : html`<p>No prior has learned from it.</p>`}
      ${gone.night && html`<p>A night is under way, and may still learn from it.</p>`}
    </div>
    <div class="buttons"><button class="solid" onClick=${onClose}>Close</button></div>
  <//>
`;
