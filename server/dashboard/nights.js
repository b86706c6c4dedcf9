// Nights: the one that runs, those that were, what each found, and when the next one comes.
import { api, stream, useData } from "./api.js";
import { html, useEffect, useState } from "./lib.js";
import { Acting, Asking, Badge, Card, Dialog, Empty, Meter, Pager, Trouble } from "./ui.js";
import { ago, odds, seconds, several, shortened, STANDINGS, time } from "./words.js";

const LIST = "v1/consolidations?limit=25";
const EVERY_MS = 10000;
const AGAIN_MS = 2000;
const STATES = {
  queued: ["Queued", "wait"],
  running: ["Running", "wait"],
  promoted: ["Serves something new", "good"],
  "on trial": ["On trial", "wait"],
  refused: ["Refused", "bad"],
  skipped: ["Skipped", "plain"],
  failed: ["Failed", "bad"],
  cancelled: ["Cancelled", "plain"],
};
const PHASES = [
  ["snapshot", "Snapshot"],
  ["load", "Load the model"],
  ["dataset", "Decide labels"],
  ["train", "Train"],
  ["evidence", "Compare"],
  ["publish", "Publish"],
];
const TRIGGERS = {
  api: "asked for",
  cli: "asked for",
  schedule: "by schedule",
  episodes: "enough was new",
  erasure: "after something was forgotten",
};
const ended = (night) => !["queued", "running"].includes(night.state);

export function Nights() {
  const [cursors, setCursors] = useState([]);
  const cursor = cursors.at(-1);
  const newest = useData(LIST, EVERY_MS);
  const older = useData(cursor ? `${LIST}&cursor=${encodeURIComponent(cursor)}` : null);
  const { reload } = newest;
  const { data, error } = cursor ? older : newest;
  const latest = newest.data?.data;
  const open = latest?.find((night) => !ended(night));
  const start = async () => {
    await api("v1/consolidations", { method: "POST" });
    await reload();
  };
  return html`
    <header class="head">
      <h1>Nights</h1>
      <div class="buttons"><${Acting} class="solid" act=${start} disabled=${!!open}>Start a night<//></div>
    </header>
    <${Trouble} error=${error} />
    ${open && html`<${Live} key=${open.id} first=${open} over=${reload} />`}
    <${Schedule} stamp=${latest?.[0]?.id} />
    ${latest?.length === 0 &&
    html`<${Card}><${Empty} title="There was no night yet.">
      A night learns one latent for each kind of request and compares it with what is served now. It needs 16 remembered answers.
    <//><//>`}
    <ol class="timeline">
      ${data?.data.filter(ended).map((night) => html`<${Past} key=${night.id} night=${night} />`)}
    </ol>
    <${Pager} page=${data} cursors=${cursors} go=${setCursors} />
  `;
}

/** The night that is open, as it goes on. */
function Live({ first, over }) {
  const [night, setNight] = useState(first);
  const [error, setError] = useState(null);
  useEffect(() => {
    let here = null;
    let timer = null;
    const watch = async () => {
      if (document.hidden) return;
      here = new AbortController();
      const { signal } = here;
      try {
        await stream(`v1/consolidations/${first.id}/events`, (_, record) => setNight(record), signal);
        over();
      } catch (failed) {
        if (failed.name === "AbortError") return;
        setError(failed);
      }
      if (!signal.aborted) timer = setTimeout(watch, AGAIN_MS);
    };
    const turn = () => {
      here?.abort();
      clearTimeout(timer);
      watch();
    };
    watch();
    document.addEventListener("visibilitychange", turn);
    return () => {
      document.removeEventListener("visibilitychange", turn);
      here?.abort();
      clearTimeout(timer);
    };
  }, [first.id]);
  useEffect(() => {
    if (ended(night)) over();
  }, [night.state]);
  const at = PHASES.findIndex(([name]) => name === night.phase);
  const cancel = async () => {
    await api(`v1/consolidations/${night.id}/cancel`, { method: "POST" });
    over();
  };
  return html`
    <section class="card live" aria-live="polite">
      <header>
        <h2>${night.state === "queued" ? "A night waits for a worker" : "A night is under way"}</h2>
        <${Asking} label="Cancel" kind="danger" yes="Cancel the night" question="Cancel this night?" act=${cancel}>
          <p>Its worker stops within seconds, and nothing is published. What is remembered stays.</p>
        <//>
      </header>
      <ol class="phases">
        ${PHASES.map(
          ([name, title], number) => html`
            <li key=${name} class=${night.state === "queued" ? "" : number < at ? "done" : number === at ? "now" : ""}>
              ${title}
            </li>
          `,
        )}
      </ol>
      <progress
        aria-label="Steps of this phase"
        max=${night.total || 1}
        value=${night.state === "running" && night.total > 1 ? night.done : undefined}
      ></progress>
      <p class="hint">
        ${several(night.episodes, "episode")}${night.message ? `, ${night.message}` : ""}${
          night.total > 1 ? ` (${night.done} of ${night.total})` : ""
        }
      </p>
      <${Trouble} error=${error} />
    </section>
  `;
}

function Past({ night }) {
  const [name, kind] = STATES[night.state] ?? [night.state, "plain"];
  const took = night.started_at && night.finished_at ? (new Date(night.finished_at) - new Date(night.started_at)) / 1000 : null;
  const clusters = night.evidence?.clusters ?? [];
  return html`
    <li class=${`card ${kind}`}>
      <header>
        <h2>
          <time datetime=${night.created_at}>${time(night.created_at)}</time>
        </h2>
        <${Badge} kind=${kind}>${name}<//>
      </header>
      <p class="facts">
        <span>${ago(night.created_at)}</span>
        <span>${TRIGGERS[night.trigger] ?? night.trigger}</span>
        <span>${several(night.episodes, "episode")}</span>
        ${took !== null && html`<span>took ${seconds(took)}</span>`}
        ${night.version && html`<span>published <a href="#priors">${night.version}</a></span>`}
      </p>
      ${night.error && html`<p class="trouble">${night.error}</p>`}
      ${!clusters.length && night.message && html`<p>${night.message}</p>`}
      ${clusters.length > 0 && html`<${Evidence} clusters=${clusters} version=${night.version} />`}
    </li>
  `;
}

/** Outcomes as they were served and with what was learned, kind by kind, and what that proves. */
export function Evidence({ clusters, version }) {
  return html`
    <div class="evidence">
      <p class="legend">
        <span class="key dot unsteered">as it was served</span>
        <span class="key dot steered">with what was learned</span>
      </p>
      <ul class="plain-list">
        ${clusters.map((one) => {
          const [name, kind] = STANDINGS[one.standing] ?? [one.standing, "plain"];
          const judged = one.baseline !== null && one.baseline !== undefined;
          return html`
            <li key=${one.row}>
              <div class="facts">
                <code>${version ? `${version}/${one.row}` : one.row}</code>
                <${Badge} kind=${kind}>${name}<//>
                <span>${several(one.examples, "prompt")}${one.like ? `, answers like “${shortened(one.like, 40)}”` : ""}</span>
              </div>
              ${judged && html`<${Dumbbell} from=${one.baseline} to=${one.candidate} />`}
              <p class="hint">${odds(one)}</p>
            </li>
          `;
        })}
      </ul>
    </div>
  `;
}

function Dumbbell({ from, to }) {
  const x = (value) => 4 + 92 * value;
  return html`
    <div class="dumbbell">
      <svg viewBox="0 0 100 14" preserveAspectRatio="none" aria-hidden="true">
        <line class="axis" x1="4" x2="96" y1="7" y2="7" />
        <line class=${to >= from ? "gain" : "loss"} x1=${x(from)} x2=${x(to)} y1="7" y2="7" />
      </svg>
      <span class="dot unsteered" style=${{ left: `${x(from)}%` }}></span>
      <span class="dot steered" style=${{ left: `${x(to)}%` }}></span>
      <span class="said">${from.toFixed(2)} → ${to.toFixed(2)}</span>
    </div>
  `;
}

function Schedule({ stamp }) {
  const { data, error, reload } = useData("v1/schedule", EVERY_MS);
  const [open, setOpen] = useState(false);
  useEffect(() => {
    if (stamp) reload();
  }, [stamp]);
  if (!data) return error?.status === 404 ? null : html`<${Trouble} error=${error} />`;
  return html`
    <section class="card">
      <header>
        <h2>The next night</h2>
        <button onClick=${() => setOpen(true)}>Change</button>
      </header>
      <p>
        ${data.next_run ? html`By schedule (<code>${data.cron}</code>): ${time(data.next_run)}, ${ago(data.next_run)}.` : "None by schedule."}
        ${data.episodes > 0 ? ` When ${data.episodes} answers are new: ${data.new_episodes} are.` : ""}
        ${data.due.length > 0 ? " One is due, and starts as soon as none is open." : ""}
      </p>
      ${data.episodes > 0 &&
      html`<${Meter} name="New answers, of those that start a night" value=${data.new_episodes} whole=${data.episodes} />`}
      ${data.erasure && html`<p class="hint">A night without what was forgotten is due from ${time(data.erasure.at)} on.</p>`}
      ${open &&
      html`<${Change}
        data=${data}
        onClose=${() => {
          setOpen(false);
          reload();
        }}
      />`}
    </section>
  `;
}

function Change({ data, onClose }) {
  const [cron, setCron] = useState(data.cron);
  const [episodes, setEpisodes] = useState(String(data.episodes));
  const [error, setError] = useState(null);
  const act = (work) => async (event) => {
    event.preventDefault();
    try {
      await work();
      onClose();
    } catch (failed) {
      setError(failed);
    }
  };
  // What stays as it was is not chosen: it goes on following the settings.
  const chosen = (name, value) => (value === data[name] ? data.chosen[name] : value);
  const save = act(() =>
    api("v1/schedule", { method: "PUT", body: { cron: chosen("cron", cron.trim()), episodes: chosen("episodes", Number(episodes)) } }),
  );
  const reset = act(() => api("v1/schedule", { method: "DELETE" }));
  return html`
    <${Dialog} title="When nights start" onClose=${onClose}>
      <form class="fields" onSubmit=${save}>
        <label for="cron">Schedule, in UTC: cron’s five fields, or <code>never</code></label>
        <input id="cron" required value=${cron} onInput=${(event) => setCron(event.target.value)} />
        <label for="episodes">New answers that start one; 0: none do</label>
        <input id="episodes" type="number" min="0" required value=${episodes} onInput=${(event) => setEpisodes(event.target.value)} />
        <${Trouble} error=${error} />
        <div class="buttons">
          <button type="button" onClick=${reset}>As in the settings</button>
          <button class="solid">Save</button>
        </div>
      </form>
    <//>
  `;
}
