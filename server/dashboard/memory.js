// What is remembered: a map of it, a list beside it, and each episode.
import { api, useData } from "./api.js";
import { Episode } from "./episode.js";
import { html, useEffect, useMemo, useRef, useState } from "./lib.js";
import { Badge, Card, Empty, Trouble } from "./ui.js";
import { ago, count, several, shortened } from "./words.js";

const EVERY_MS = 10000;
const DRAWING_MS = 1500;
const NEAR_PX = 14;
const LABEL_PX = 100; // width of the map for each kind that is named on it
const MARGIN = 24;
const LABEL = 24;

export function Memory({ theme }) {
  const [drawing, setDrawing] = useState(true);
  const map = useData("v1/memory/map", drawing ? DRAWING_MS : EVERY_MS);
  const kinds = useData("v1/memory/clusters", drawing ? DRAWING_MS : EVERY_MS);
  const [open, setOpen] = useState(null);
  const [pointed, setPointed] = useState(null);
  const { data } = map;
  useEffect(() => setDrawing(!data || data.state === "drawing"), [data]);
  const changed = () => {
    setOpen(null);
    map.reload();
    kinds.reload();
  };
  return html`
    <header class="head"><h1>Memory</h1></header>
    <${Trouble} error=${map.error} />
    <div class="memory">
      <${Card}
        title="What is remembered"
        hint="Each point is a prompt; prompts that the model takes for alike lie near each other. A click opens one."
      >
        ${data?.state === "empty" &&
        html`<${Empty} title="Nothing is remembered yet.">
          Ask the server things. While nobody waits, it explores what it was asked at effort low and remembers what its
          answers agree on; requests at medium and high are remembered by what they find.
        <//>`}
        ${data?.state === "drawing" && html`<p class="hint" role="status">The map is being drawn …</p>`}
        ${data?.failure && html`<p class="trouble" role="alert">The map could not be drawn: ${data.failure}</p>`}
        ${data?.state === "ready" &&
        html`
          <${Chart} points=${data.points} kinds=${kinds.data?.clusters ?? []} theme=${theme} pointed=${pointed} open=${setOpen} />
          <p class="legend">
            <span class="scale" aria-hidden="true"></span>
            <span>Outcome from 0 to 1.</span>
            <span>
              ${data.shown < data.episodes
                ? `${count(data.shown)} of ${several(data.episodes, "episode")}`
                : several(data.shown, "episode")}${data.updating ? ", being drawn anew" : `, drawn ${ago(data.drawn_at)}`}
            </span>
          </p>
        `}
      <//>
      <${List} open=${setOpen} point=${setPointed} stamp=${data?.shown} kinds=${kinds.data?.clusters ?? []} />
    </div>
    ${open && html`<${Episode} id=${open} show=${setOpen} onClose=${() => setOpen(null)} changed=${changed} />`}
  `;
}

const said = new Map();

/** The question of an episode, asked for once. */
async function question(id) {
  if (!said.has(id)) {
    said.set(
      id,
      api(`v1/memory/episodes/${id}`).then(
        (one) => ({ question: one.question || "(no text is kept)", answer: one.answer_text.trim() }),
        (error) => {
          said.delete(id);
          return { question: error.message, answer: "" };
        },
      ),
    );
  }
  return said.get(id);
}

function Chart({ points, kinds, theme, pointed, open }) {
  const box = useRef(null);
  const canvas = useRef(null);
  const [size, setSize] = useState({ width: 0, height: 0 });
  const [over, setOver] = useState(null);
  useEffect(() => {
    const fit = () => {
      const width = box.current.clientWidth;
      setSize({ width, height: Math.round(Math.min(600, Math.max(320, 0.72 * width))) });
    };
    const watch = new ResizeObserver(fit);
    watch.observe(box.current);
    fit();
    return () => watch.disconnect();
  }, []);
  const frame = useMemo(() => edges(points), [points]);
  const place = ({ x, y }) => {
    const across = (x - frame.left) / (frame.right - frame.left || 1);
    const up = (y - frame.low) / (frame.top - frame.low || 1);
    return [MARGIN + across * (size.width - 2 * MARGIN), size.height - MARGIN - up * (size.height - 2 * MARGIN - LABEL)];
  };
  useEffect(() => {
    if (size.width) draw(canvas.current, size, points, kinds, place, over?.id ?? pointed);
  }, [size, points, kinds, theme, over?.id, pointed]);
  const nearest = (event) => {
    const frame = canvas.current.getBoundingClientRect();
    const [left, top] = [event.clientX - frame.left, event.clientY - frame.top];
    let best = null;
    let least = NEAR_PX;
    for (const point of points) {
      const [x, y] = place(point);
      const distance = Math.hypot(x - left, y - top);
      if (distance < least) [best, least] = [point, distance];
    }
    return best;
  };
  const move = async (event) => {
    const point = nearest(event);
    if (!point) return setOver(null);
    if (point.id === over?.id) return;
    const [x, y] = place(point);
    setOver({ id: point.id, x, y, reward: point.reward });
    const words = await question(point.id);
    setOver((now) => (now?.id === point.id ? { ...now, ...words } : now));
  };
  return html`
    <div class="map" ref=${box}>
      <canvas
        ref=${canvas}
        role="img"
        aria-label=${`Map of ${points.length} episodes; the list beside it has them all`}
        class=${over ? "over" : ""}
        onPointerMove=${move}
        onPointerLeave=${() => setOver(null)}
        onClick=${(event) => {
          const point = nearest(event);
          if (point) open(point.id);
        }}
      ></canvas>
      ${over &&
      html`<div class=${`bubble ${over.x > 0.4 * size.width ? "left" : ""}`} style=${{ left: `${over.x}px`, top: `${over.y}px` }}>
        <strong>${over.question ?? "…"}</strong>
        ${over.answer && html`<span>${over.answer}</span>`}
        <span class="hint">Outcome ${over.reward.toFixed(2)}</span>
      </div>`}
    </div>
  `;
}

/** What the map is stretched to: all points, so that it fills its frame. */
function edges(points) {
  const [xs, ys] = [points.map(({ x }) => x), points.map(({ y }) => y)];
  return { left: Math.min(...xs), right: Math.max(...xs), low: Math.min(...ys), top: Math.max(...ys) };
}

function draw(canvas, { width, height }, points, kinds, place, marked) {
  const dots = window.devicePixelRatio || 1;
  canvas.width = width * dots;
  canvas.height = height * dots;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const scale = ["low", "middle", "high"].map((name) => rgb(colour(name)));
  const pen = canvas.getContext("2d");
  pen.scale(dots, dots);
  const radius = points.length > 600 ? 3.2 : points.length > 150 ? 4.5 : 6;
  pen.lineWidth = 1;
  pen.strokeStyle = colour("card");
  for (const point of points) {
    const [x, y] = place(point);
    pen.fillStyle = mix(scale, point.reward);
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fill();
    pen.stroke();
  }
  label(pen, points, kinds, place, width, colour);
  const found = points.find((point) => point.id === marked);
  if (found) {
    const [x, y] = place(found);
    pen.lineWidth = 2.5;
    pen.strokeStyle = colour("ink");
    pen.beginPath();
    pen.arc(x, y, radius + 4, 0, 2 * Math.PI);
    pen.stroke();
  }
}

/** Write the words of the largest kinds beside them, as far as they do not cover each other. */
function label(pen, points, kinds, place, width, colour) {
  const taken = [];
  pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  pen.textBaseline = "middle";
  const largest = kinds.filter((kind) => kind.episodes > 1 && kind.typical[0]?.question);
  largest.sort((a, b) => b.episodes - a.episodes);
  for (const kind of largest.slice(0, Math.max(3, Math.min(8, Math.floor(width / LABEL_PX))))) {
    const members = points.filter((point) => point.cluster === kind.number).map(place);
    if (!members.length) continue;
    const words = shortened(kind.typical[0].question, 36);
    const across = pen.measureText(words).width + 14;
    const middle = members.reduce((sum, [x]) => sum + x, 0) / members.length;
    const top = Math.min(...members.map(([, y]) => y));
    const x = Math.max(2, Math.min(width - across - 2, middle - across / 2));
    let y = Math.max(2, top - 30);
    while (taken.some((one) => x < one.x + one.across && one.x < x + across && Math.abs(y - one.y) < 24)) y += 24;
    taken.push({ x, y, across });
    pen.globalAlpha = 0.9;
    pen.fillStyle = colour("card");
    pen.strokeStyle = colour("line");
    pen.beginPath();
    pen.roundRect(x, y, across, 21, 10);
    pen.fill();
    pen.stroke();
    pen.globalAlpha = 1;
    pen.fillStyle = colour("ink");
    pen.fillText(words, x + 7, y + 11);
  }
}

const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

/** A colour between those of 0, ½ and 1. */
function mix([low, middle, high], value) {
  const [from, to, part] = value < 0.5 ? [low, middle, 2 * value] : [middle, high, 2 * value - 1];
  return `rgb(${from.map((each, at) => Math.round(each + (to[at] - each) * part)).join(" ")})`;
}

function List({ open, point, stamp, kinds }) {
  const [words, setWords] = useState("");
  const [chosen, setChosen] = useState("");
  const [found, setFound] = useState(null);
  const [pages, setPages] = useState([]);
  const [more, setMore] = useState(null);
  const [error, setError] = useState(null);
  const rows = kinds.flatMap((kind) => kind.rows.map(({ id }) => ({ id, like: kind.typical[0]?.question })));
  const row = rows.some(({ id }) => id === chosen) ? chosen : ""; // its prior may have gone
  const load = async (cursor) => {
    try {
      const asked = new URLSearchParams({ limit: 25, ...(row && { cluster: row }), ...(cursor && { cursor }) });
      const page = await api(`v1/memory/episodes?${asked}`);
      setPages((before) => (cursor ? [...before, ...page.data] : page.data));
      setMore(page.next_cursor);
      setError(null);
    } catch (failed) {
      setError(failed);
    }
  };
  useEffect(() => {
    load(null);
  }, [stamp, row]);
  const search = async (event) => {
    event.preventDefault();
    if (!words.trim()) return setFound(null);
    try {
      const { data } = await api("v1/memory/search", { method: "POST", body: { text: words, k: 25 } });
      setFound(data.map(({ episode, similarity }) => ({ ...episode, similarity })));
      setError(null);
    } catch (failed) {
      setError(failed);
    }
  };
  const shown = found ?? pages;
  return html`
    <${Card} title=${found ? "Most like it" : "Episodes, newest first"}>
      <form class="search" role="search" onSubmit=${search}>
        <input
          type="search"
          aria-label="Find episodes like a text"
          placeholder="Find what is like …"
          value=${words}
          onInput=${(event) => {
            setWords(event.target.value);
            if (!event.target.value) setFound(null);
          }}
        />
        <button>Find</button>
      </form>
      ${!found &&
      rows.length > 0 &&
      html`<select aria-label="Kind of request" value=${row} onChange=${(event) => setChosen(event.target.value)}>
        <option value="">All kinds of request</option>
        ${rows.map(({ id, like }) => html`<option key=${id} value=${id}>${id}${like ? ` ${shortened(like, 40)}` : ""}</option>`)}
      </select>`}
      <${Trouble} error=${error} />
      <ul class="episodes">
        ${shown.map(
          (one) => html`
            <li key=${one.id}>
              <button
                class="quiet"
                onClick=${() => open(one.id)}
                onFocus=${() => point(one.id)}
                onBlur=${() => point(null)}
                onPointerEnter=${() => point(one.id)}
                onPointerLeave=${() => point(null)}
              >
                <span class="question">${one.question ? shortened(one.question, 110) : "(no text is kept)"}</span>
                <span class="facts">
                  <span>Outcome ${one.reward.toFixed(2)}</span>
                  ${one.similarity !== undefined && html`<span>cosine ${one.similarity.toFixed(2)}</span>`}
                  ${one.latent_earned && html`<${Badge} kind="good">latent<//>`}
                  <span>${ago(one.seen_at)}</span>
                </span>
              </button>
            </li>
          `,
        )}
      </ul>
      ${!shown.length && !error && html`<p class="hint">Nothing here.</p>`}
      ${!found && more && html`<div class="buttons left"><button onClick=${() => load(more)}>More</button></div>`}
    <//>
  `;
}
