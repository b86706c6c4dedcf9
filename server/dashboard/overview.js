// Is it getting better?
import { useData } from "./api.js";
import { TimeChart } from "./charts.js";
import { Experiment } from "./experiment.js";
import { html, useEffect, useMemo, useState } from "./lib.js";
import { Badge, Card, Choice, Empty, Tile, Trouble } from "./ui.js";
import { ago, count, odds, several, share, signed } from "./words.js";

const WINDOWS = [
  ["hour", "Hour"],
  ["day", "Day"],
  ["week", "Week"],
  ["month", "Month"],
];
const EFFORTS = [
  ["none", "effort-none"],
  ["low", "effort-low"],
  ["medium", "effort-medium"],
  ["high", "effort-high"],
];
const EVERY_MS = 5000;

export function Overview({ theme }) {
  const [chosen, setWindow] = useState(null);
  const [shortest, setShortest] = useState(0);
  const window = chosen ?? WINDOWS[shortest][0];
  const timeline = useData(`v1/latent/timeline?window=${window}`, EVERY_MS);
  const stats = useData("v1/memory/stats", EVERY_MS);
  const { data } = timeline;
  useEffect(() => {
    // Until somebody chooses: the shortest window in which something happened.
    if (!chosen && data?.window === window && !data.total.requests && shortest < WINDOWS.length - 1) setShortest(shortest + 1);
  }, [data]);
  return html`
    <header class="head">
      <h1>Overview</h1>
      <${Choice} label="Window" options=${WINDOWS} value=${window} onChange=${setWindow} />
    </header>
    <${Trouble} error=${timeline.error ?? stats.error} />
    ${stats.data && data && html`<${Verdict} stats=${stats.data} total=${data.total} />`}
    ${stats.data && data && html`<${Tiles} stats=${stats.data} total=${data.total} window=${window} />`}
    ${data && html`<${Charts} data=${data} theme=${theme} />`}
    <${Experiment} />
  `;
}

function Verdict({ stats, total }) {
  const rows = Object.values(stats.prior.rows);
  const of = (standing) => rows.filter((row) => row.standing === standing);
  const [serves, trial] = [of("serves"), of("on trial")];
  const gain = total.searched ? total.reward_after - total.reward_before : null;
  let [kind, answer, why] = ["plain", "Nothing is learned yet.", null];
  if (stats.prior.pinned && rows.length) {
    kind = "wait";
    answer = `${stats.prior.version} is pinned.`;
    why = "All its rows answer, whatever the evidence about them says, until an operator releases it.";
  } else if (serves.length) {
    const best = serves.reduce((a, b) => (a.e_value > b.e_value ? a : b));
    kind = "good";
    answer = `Yes, for ${several(serves.length, "kind")} of request.`;
    why = `Where what was learned serves, answers agree more with what many samples say: ${signed(best.mean)} at best. ${odds(best)}`;
  } else if (trial.length) {
    kind = "wait";
    answer = "Not proven yet.";
    const best = trial.reduce((a, b) => (a.e_value > b.e_value ? a : b));
    why = `${several(trial.length, "kind")} of request ${trial.length === 1 ? "is" : "are"} on trial. ${trial.length === 1 ? "" : "The best of them: "}${odds(best)} From 20 to 1 on it is served.`;
  } else if (rows.length) {
    kind = "bad";
    answer = "No: what was learned did harm, and is retired.";
  }
  return html`
    <section class=${`verdict ${kind}`} aria-live="polite">
      <h2>Is it getting better?</h2>
      <p class="answer">${answer}</p>
      ${why && html`<p>${why}</p>`}
      ${!rows.length &&
      html`<p>
        Ask the server things. While nobody waits it explores what it was asked and remembers what its answers agree on;
        a <a href="#nights">night</a> learns from 16 remembered answers or more.
      </p>`}
      ${gain !== null &&
      html`<p>
        In this window, searching raised the reward of ${several(total.searched, "answer")} from
        ${" "}${total.reward_before.toFixed(2)} to ${total.reward_after.toFixed(2)} (${signed(gain)}).
      </p>`}
    </section>
  `;
}

function Tiles({ stats, total, window }) {
  const memory = stats.spaces[stats.space];
  const { prior, exploring } = stats;
  const standings = Object.values(prior.rows).map((row) => row.standing);
  const serving = prior.pinned ? standings.length : standings.filter((one) => one === "serves").length;
  return html`
    <div class="tiles">
      <${Tile} name=${`Requests, last ${window}`} value=${count(total.requests)} detail=${efforts(total)} />
      <${Tile}
        name="Answered with what was learned"
        value=${total.requests ? share(total.learned / total.requests) : "–"}
        detail=${`${several(total.learned, "answer")} in one pass`}
      />
      <${Tile}
        name="Tokens saved"
        value=${total.tokens_saved === null ? "–" : count(Math.round(total.tokens_saved))}
        detail=${
          total.tokens_saved === null
            ? "known once something was searched for"
            : `a search takes ${count(Math.round(total.tokens_per_search))} tokens here`
        }
      />
      <${Tile}
        name="Recall finds something"
        value=${stats.hit_rate === null ? "–" : share(stats.hit_rate)}
        detail="of the times it was asked, since the start"
      />
      <${Tile}
        name="Remembered"
        value=${count(memory.episodes)}
        detail=${memory.newest ? `the last one ${ago(memory.newest)}` : "nothing yet"}
      />
      <${Tile}
        name="Prior"
        value=${prior.version ?? "None"}
        detail=${
          prior.version
            ? html`${serving} of ${several(standings.length, "row")} ${serving === 1 ? "serves" : "serve"}
                ${prior.pinned ? html`<${Badge} kind="wait">pinned<//>` : ""}`
            : "plain answers"
        }
      />
      <${Tile}
        name="Exploring"
        value=${exploring.running ? "Now" : exploring.waiting ? "Soon" : "Idle"}
        detail=${`${count(exploring.waiting)} waiting, ${count(exploring.tokens_last_hour)} tokens in the last hour`}
      />
      <${Tile}
        name="People like steered answers"
        value=${total.rated_steered ? share(total.rating_steered) : "–"}
        detail=${total.rated_plain ? `plain ones ${share(total.rating_plain)}` : `${several(total.rated_steered, "rating")}, none of plain ones`}
      />
    </div>
  `;
}

function efforts(total) {
  const said = EFFORTS.filter(([name]) => total.by_effort[name]).map(([name]) => `${count(total.by_effort[name])} ${name}`);
  return said.join(", ") || "none yet";
}

function Charts({ data, theme }) {
  const { steps, total } = data;
  const times = useMemo(() => steps.map((step) => new Date(step.start) / 1000), [data]);
  const values = (name) => steps.map((step) => step[name]);
  const rated = total.rated_steered + total.rated_plain > 0;
  return html`
    <div class="two">
      <${Card} title="Outcome, steered and unsteered" hint="Reward of the same requests’ unsteered answers, and of the answers given.">
        ${
          total.searched
            ? html`<${TimeChart}
                label="Mean reward over time, of unsteered answers and of those that were given"
                theme=${theme}
                times=${times}
                range=${[0, 1.02]}
                say=${(value) => value.toFixed(2)}
                series=${[
                  { label: "Unsteered", colour: "unsteered", values: values("reward_before") },
                  { label: "Steered", colour: "steered", values: values("reward_after") },
                ]}
              />`
            : html`<${Empty} title="No request was searched for.">
                Ask at effort medium or high, for instance with the model’s name followed by <code>:medium</code>.
              <//>`
        }
      <//>
      <${Card} title="What was learned, against going without" hint="Outcomes of rows of the prior, compared on prompts that they have not learned from.">
        ${
          total.measured
            ? html`<${TimeChart}
                label="Mean difference of outcomes over time"
                theme=${theme}
                times=${times}
                range=${[-1, 1]}
                say=${signed}
                series=${[
                  { label: "Difference", colour: "steered", values: values("difference") },
                  { label: "No difference", colour: "unsteered", values: steps.map(() => 0), dash: [6, 6], points: false },
                ]}
              />`
            : html`<${Empty} title="Nothing was compared.">
                A night compares what it has learned; by day, requests that are explored do, where a prior covers them.
              <//>`
        }
      <//>
      <${Card} title="Requests by effort">
        ${
          total.requests
            ? html`<${TimeChart}
                label="Requests over time by effort"
                theme=${theme}
                times=${times}
                say=${(value) => (Number.isInteger(value) ? count(value) : "")}
                series=${EFFORTS.map(([name, colour]) => ({
                  label: name,
                  colour,
                  bars: true,
                  values: steps.map((step) => step.by_effort[name] ?? 0),
                }))}
              />`
            : html`<${Empty} title="No requests in this window.">Send one to <code>/v1/chat/completions</code>.<//>`
        }
      <//>
      <${Card} title="What people said" hint="Mean ratings, by feedback.">
        ${
          rated
            ? html`<${TimeChart}
                label="Mean rating over time, of plain and of steered answers"
                theme=${theme}
                times=${times}
                range=${[0, 1.02]}
                say=${share}
                series=${[
                  { label: `Plain (${count(total.rated_plain)})`, colour: "unsteered", values: values("rating_plain") },
                  { label: `Steered (${count(total.rated_steered)})`, colour: "steered", values: values("rating_steered") },
                ]}
              />`
            : html`<${Empty} title="Nobody has said anything.">
                Rate answers under <a href="#traces">Traces</a>, or let your application send <code>POST /v1/feedback</code>.
              <//>`
        }
      <//>
    </div>
  `;
}
