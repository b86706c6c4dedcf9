// Parts that several views show.
import { html, useEffect, useRef, useState } from "./lib.js";

export const Badge = ({ kind = "plain", children }) => html`<span class=${`badge ${kind}`}>${children}</span>`;

export const Card = ({ title, hint, action, children, ...rest }) => html`
  <section class="card" ...${rest}>
    ${(title || action) &&
    html`<header>
      <h2>${title}</h2>
      ${action}
    </header>`}
    ${hint && html`<p class="hint">${hint}</p>`}
    ${children}
  </section>
`;

export const Tile = ({ name, value, detail }) => html`
  <div class="tile">
    <div class="name">${name}</div>
    <div class="value">${value}</div>
    ${detail && html`<div class="detail">${detail}</div>`}
  </div>
`;

/** What stands where there is nothing yet: what would fill it. */
export const Empty = ({ title, children }) => html`
  <div class="empty">
    <strong>${title}</strong>
    <div>${children}</div>
  </div>
`;

/** Buttons to the pages before and after the one that is shown: `cursors` are those of the pages up to it. */
export const Pager = ({ page, cursors, go }) => html`
  <div class="buttons left">
    ${cursors.length > 0 && html`<button onClick=${() => go(cursors.slice(0, -1))}>Newer</button>`}
    ${page?.has_more && html`<button onClick=${() => go([...cursors, page.next_cursor])}>Older</button>`}
  </div>
`;

export const Trouble = ({ error }) =>
  error && error.status !== 401 && html`<p class="trouble" role="alert">${error.message}</p>`;

/** A choice of a few: radio buttons that look like one control. */
export const Choice = ({ label, options, value, onChange }) => html`
  <fieldset class="choice">
    <legend class="unseen">${label}</legend>
    ${options.map(
      ([name, text]) => html`
        <label class=${name === value ? "chosen" : ""}>
          <input type="radio" name=${label} checked=${name === value} onChange=${() => onChange(name)} />
          ${text}
        </label>
      `,
    )}
  </fieldset>
`;

/** A modal dialog; Escape and a click beside it close it. */
export function Dialog({ title, onClose, children, wide = false }) {
  const element = useRef(null);
  useEffect(() => {
    const before = document.activeElement;
    element.current.showModal();
    return () => before?.focus?.();
  }, []);
  return html`
    <dialog
      ref=${element}
      class=${wide ? "wide" : ""}
      aria-label=${title}
      onCancel=${(event) => {
        event.preventDefault();
        onClose();
      }}
      onClick=${(event) => event.target === element.current && onClose()}
    >
      <div class="inside">
        <header>
          <h2>${title}</h2>
          <button class="quiet icon" aria-label="Close" onClick=${onClose}>✕</button>
        </header>
        ${children}
      </div>
    </dialog>
  `;
}

/** Something that is done on a click: whether it is being done, and what went wrong. */
function useAct(act) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  const go = async () => {
    setBusy(true);
    setError(null);
    try {
      await act();
    } catch (failed) {
      setError(failed);
    }
    setBusy(false);
  };
  return { busy, error, go };
}

/** A button that asks before it acts, says what went wrong, and is out of use meanwhile. */
export function Asking({ label, question, children, act, kind = "", yes = label }) {
  const [open, setOpen] = useState(false);
  const { busy, error, go } = useAct(async () => {
    await act();
    setOpen(false);
  });
  return html`
    <button class=${kind} onClick=${() => setOpen(true)}>${label}</button>
    ${open &&
    html`<${Dialog} title=${question} onClose=${() => setOpen(false)}>
      <div class="text">${children}</div>
      <${Trouble} error=${error} />
      <div class="buttons">
        <button onClick=${() => setOpen(false)}>Cancel</button>
        <button class=${kind.includes("danger") ? "danger solid" : "solid"} disabled=${busy} onClick=${go}>${yes}</button>
      </div>
    <//>`}
  `;
}

/** A button that acts at once. */
export function Acting({ act, children, disabled = false, ...rest }) {
  const { busy, error, go } = useAct(act);
  return html`<button ...${rest} disabled=${busy || disabled} onClick=${go}>${children}</button><${Trouble} error=${error} />`;
}

/** How much of a whole there is. */
export const Meter = ({ name, value, whole = 1, kind = "" }) => html`
  <div class=${`meter ${kind}`} role="meter" aria-label=${name} aria-valuemin="0" aria-valuemax=${whole} aria-valuenow=${value}>
    <span style=${{ width: `${Math.max(0, Math.min(100, (100 * value) / whole))}%` }}></span>
  </div>
`;

export const Thumb = ({ down = false }) => html`
  <svg class=${down ? "down" : ""} viewBox="0 0 24 24" width="20" height="20" aria-hidden="true">
    <path
      fill="none"
      stroke="currentColor"
      stroke-width="1.8"
      stroke-linejoin="round"
      d="M7 11v9H3v-9h4zm0 0 4.2-8c1.6 0 2.5 1.2 2.2 2.8L12.8 9h6.4c1.2 0 2 1.1 1.7 2.3l-1.7 7c-.2 1-1.1 1.7-2.1 1.7H7"
    />
  </svg>
`;
