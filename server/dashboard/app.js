// The page: who looks at it, which view, and in what light.
import { api, hasKey, onRefused, setKey } from "./api.js";
import { Clusters } from "./clusters.js";
import { Keys } from "./keys.js";
import { html, render, useEffect, useState } from "./lib.js";
import { Memory } from "./memory.js";
import { Nights } from "./nights.js";
import { Overview } from "./overview.js";
import { Priors } from "./priors.js";
import { Traces } from "./traces.js";

const VIEWS = [
  ["overview", "Overview", Overview],
  ["memory", "Memory", Memory],
  ["kinds", "Kinds of request", Clusters],
  ["nights", "Nights", Nights],
  ["priors", "Priors", Priors],
  ["traces", "Traces", Traces],
  ["keys", "Keys", Keys],
];
const THEME = "latentevolve.theme";
const system = matchMedia("(prefers-color-scheme: dark)");
// theme.js sets it, and has listened to the system before this does.
const shown = () => document.documentElement.dataset.theme;

const here = () => VIEWS.find(([name]) => name === location.hash.slice(1)) ?? VIEWS[0];

function App() {
  const [view, setView] = useState(here);
  const [signIn, setSignIn] = useState(false);
  const [session, setSession] = useState(0);
  const [admin, setAdmin] = useState(false);
  const [theme, setTheme] = useState(shown);
  useEffect(() => {
    onRefused(() => setSignIn(true));
    const turn = () => setView(here());
    const follow = () => setTheme(shown());
    addEventListener("hashchange", turn);
    system.addEventListener("change", follow);
    return () => {
      removeEventListener("hashchange", turn);
      system.removeEventListener("change", follow);
    };
  }, []);
  useEffect(() => {
    document.title = `${view[1]} · LatentEvolve`;
    document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  }, [view]);
  useEffect(() => {
    api("v1/keys").then(
      () => setAdmin(true),
      () => setAdmin(false),
    );
  }, [session]);
  const light = () => {
    const next = theme === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    localStorage.setItem(THEME, next);
    setTheme(next);
  };
  const leave = () => {
    setKey(null);
    setSession(session + 1);
  };
  if (signIn) {
    return html`<${SignIn}
      done=${() => {
        setSignIn(false);
        setSession(session + 1);
      }}
    />`;
  }
  const [name, , View] = view;
  return html`
    <a class="skip" href="#main" onClick=${(event) => {
      event.preventDefault();
      document.getElementById("main").focus();
    }}>Skip to content</a>
    <nav aria-label="Views">
      <a class="brand" href="#overview"><img src="dashboard/icon.svg" alt="" width="28" height="28" />LatentEvolve</a>
      <ul>
        ${VIEWS.filter(([each]) => admin || each !== "keys").map(
          ([each, title]) => html`
            <li><a href=${`#${each}`} aria-current=${each === name ? "page" : undefined}>${title}</a></li>
          `,
        )}
      </ul>
      <div class="end">
        <button class="quiet" onClick=${light} aria-label=${`Use ${theme === "dark" ? "light" : "dark"} colours`}>
          ${theme === "dark" ? "☀" : "☾"}<span class="word"> ${theme === "dark" ? "Light" : "Dark"}</span>
        </button>
        ${hasKey() && html`<button class="quiet" onClick=${leave}>Sign out</button>`}
      </div>
    </nav>
    <main id="main" tabindex="-1"><${View} key=${`${name} ${session}`} theme=${theme} /></main>
  `;
}

function SignIn({ done }) {
  const [key, change] = useState("");
  const submit = (event) => {
    event.preventDefault();
    setKey(key.trim());
    done();
  };
  return html`
    <main class="signin">
      <form onSubmit=${submit}>
        <img src="dashboard/icon.svg" alt="" width="48" height="48" />
        <h1>Sign in</h1>
        <p>${hasKey() ? "The server does not take this key." : "This server asks for its API key."}</p>
        <label for="key">API key</label>
        <input id="key" type="password" autocomplete="off" required value=${key} onInput=${(event) => change(event.target.value)} autofocus />
        <button class="solid">Sign in</button>
        <p class="hint">It is kept in this tab until you close it, and sent to this server alone.</p>
      </form>
    </main>
  `;
}

render(html`<${App} />`, document.getElementById("app"));
