// API keys and whose they are, for admins.
import { api, useData } from "./api.js";
import { html, useState } from "./lib.js";
import { Asking, Badge, Card, Dialog, Empty, Trouble } from "./ui.js";
import { ago, several, time } from "./words.js";

const EVERY_MS = 30000;
const SCOPES = [
  ["infer", "ask the model, give feedback"],
  ["memory:read", "see memory, priors and nights"],
  ["memory:write", "forget and import"],
  ["admin", "all of it"],
];

const stateOf = (key) => {
  if (key.revoked_at) return ["revoked", "bad"];
  if (key.expires_at && new Date(key.expires_at) <= new Date()) return ["expired", "bad"];
  return ["works", "good"];
};

export function Keys() {
  const { data, error, reload } = useData("v1/keys", EVERY_MS);
  const [making, setMaking] = useState(false);
  const [secret, setSecret] = useState(null);
  const keys = data?.data ?? [];
  const tenants = [...new Set(keys.map((key) => key.tenant))].sort();
  const got = async (made) => {
    setSecret(made);
    await reload();
  };
  return html`
    <header class="head">
      <h1>Keys</h1>
      <div class="buttons"><button class="solid" onClick=${() => setMaking(true)}>Make a key</button></div>
    </header>
    <${Trouble} error=${error} />
    ${data &&
    !keys.length &&
    html`<${Card}><${Empty} title="There are no keys.">
      Without any, and without LATENTEVOLVE_API_KEY, the server answers its own machine only. Make an admin’s key first.
    <//><//>`}
    ${tenants.map((tenant) => {
      const own = keys.filter((key) => key.tenant === tenant);
      return html`
        <${Card} key=${tenant} title=${`Tenant ${tenant}`} hint=${several(own.length, "key")}>
          <ul class="plain-list keys">
            ${own.map((key) => html`<${Key} key=${key.id} one=${key} reload=${reload} got=${got} />`)}
          </ul>
        <//>
      `;
    })}
    ${making &&
    html`<${Make}
      onClose=${() => setMaking(false)}
      got=${async (made) => {
        setMaking(false);
        await got(made);
      }}
    />`}
    ${secret && html`<${Secret} made=${secret} onClose=${() => setSecret(null)} />`}
  `;
}

function Key({ one, reload, got }) {
  const [name, kind] = stateOf(one);
  return html`
    <li>
      <div class="grow">
        <p class="facts"><strong class="version">${one.name}</strong> <${Badge} kind=${kind}>${name}<//></p>
        <p class="facts">
          <code>${one.id}</code>
          <span>${one.scopes.join(", ")}</span>
          <span>${one.rate_limit ?? "no rate limit"}</span>
          <span title=${time(one.created_at)}>made ${ago(one.created_at)}</span>
          ${one.expires_at && html`<span title=${time(one.expires_at)}>ends ${ago(one.expires_at)}</span>`}
        </p>
      </div>
      ${!one.revoked_at &&
      html`<div class="buttons">
        <${Asking}
          label="Rotate"
          question=${`Give ${one.name} a new secret?`}
          act=${async () => got(await api(`v1/keys/${one.id}/rotate`, { method: "POST" }))}
        >
          <p>The old one is refused within seconds. The new one is shown once.</p>
        <//>
        <${Asking}
          label="Revoke"
          kind="danger"
          question=${`Revoke ${one.name}?`}
          act=${async () => {
            await api(`v1/keys/${one.id}/revoke`, { method: "POST" });
            await reload();
          }}
        >
          <p>Whoever uses it is refused within seconds. It does not come back.</p>
        <//>
      </div>`}
    </li>
  `;
}

function Make({ onClose, got }) {
  const [name, setName] = useState("");
  const [tenant, setTenant] = useState("");
  const [scopes, setScopes] = useState(["infer"]);
  const [rate, setRate] = useState("");
  const [days, setDays] = useState("");
  const [error, setError] = useState(null);
  const make = async (event) => {
    event.preventDefault();
    const body = { name, scopes };
    if (tenant.trim()) body.tenant = tenant.trim();
    if (rate.trim()) body.rate_limit = rate.trim();
    if (days) body.expires_at = new Date(Date.now() + 86400000 * Number(days)).toISOString();
    try {
      await got(await api("v1/keys", { method: "POST", body }));
    } catch (failed) {
      setError(failed);
    }
  };
  const turn = (scope) => setScopes(scopes.includes(scope) ? scopes.filter((one) => one !== scope) : [...scopes, scope]);
  return html`
    <${Dialog} title="Make a key" onClose=${onClose}>
      <form class="fields" onSubmit=${make}>
        <label for="name">Name, for people</label>
        <input id="name" required value=${name} onInput=${(event) => setName(event.target.value)} />
        <label for="tenant">Tenant: whose memory it works on (yours, if left out)</label>
        <input id="tenant" value=${tenant} onInput=${(event) => setTenant(event.target.value)} />
        <fieldset class="checks">
          <legend>What it may do</legend>
          ${SCOPES.map(
            ([scope, what]) => html`
              <label key=${scope}>
                <input type="checkbox" checked=${scopes.includes(scope)} onChange=${() => turn(scope)} />
                <span><code>${scope}</code>: ${what}</span>
              </label>
            `,
          )}
        </fieldset>
        <label for="rate">Most requests, such as <code>60/minute</code> (no limit, if left out)</label>
        <input id="rate" value=${rate} onInput=${(event) => setRate(event.target.value)} />
        <label for="days">Days until it ends (never, if left out)</label>
        <input id="days" type="number" min="1" max="3650" value=${days} onInput=${(event) => setDays(event.target.value)} />
        <${Trouble} error=${error} />
        <div class="buttons"><button class="solid" disabled=${!scopes.length}>Make it</button></div>
      </form>
    <//>
  `;
}

function Secret({ made, onClose }) {
  return html`
    <${Dialog} title=${`The secret of ${made.name}`} onClose=${onClose}>
      <p>Copy it now: nobody can tell it later.</p>
      <input readonly aria-label="Secret" value=${made.secret} onFocus=${(event) => event.target.select()} />
      <div class="buttons">
        <button onClick=${() => navigator.clipboard?.writeText(made.secret)}>Copy</button>
        <button class="solid" onClick=${onClose}>I have it</button>
      </div>
    <//>
  `;
}
