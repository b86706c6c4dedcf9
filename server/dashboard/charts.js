// Charts over time, drawn by uPlot in the page's colours.
import { html, Plot, useEffect, useRef } from "./lib.js";

const HEIGHT = 200;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/**
 * series: [{ label, colour, values, bars?, dash? }]; `bars` are stacked on each other. `say` turns a value into words.
 */
export function TimeChart({ label, times, series, range, say = String, theme }) {
  const box = useRef(null);
  useEffect(() => {
    const plot = new Plot(options(box.current, series, range, say), data(times, series), box.current);
    const watch = new ResizeObserver(() => plot.setSize({ width: box.current.clientWidth, height: HEIGHT }));
    watch.observe(box.current);
    return () => {
      watch.disconnect();
      plot.destroy();
    };
  }, [times, theme, JSON.stringify(series), JSON.stringify(range)]);
  return html`
    <figure class="chart">
      <div ref=${box} role="img" aria-label=${label}></div>
      <figcaption>
        ${series.map((one) => html`<span class=${`key ${one.bars ? "bar" : ""} ${one.colour}`}>${one.label}</span>`)}
      </figcaption>
    </figure>
  `;
}

function data(times, series) {
  const bars = series.filter((one) => one.bars);
  const stacked = bars.map((_, at) =>
    times.map((_, step) => bars.slice(0, at + 1).reduce((sum, one) => sum + one.values[step], 0)),
  );
  // The highest stack is drawn first, so that the lower ones stand before it.
  return [times, ...stacked.reverse(), ...series.filter((one) => !one.bars).map((one) => one.values)];
}

function options(box, series, range, say) {
  const bars = series.filter((one) => one.bars);
  const lines = series.filter((one) => !one.bars);
  const axis = { stroke: colour("muted"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false } };
  const drawn = [
    ...bars.reverse().map((one) => ({
      label: one.label,
      fill: colour(one.colour),
      stroke: colour(one.colour),
      width: 0,
      paths: Plot.paths.bars({ size: [0.75, 40] }),
      points: { show: false },
    })),
    ...lines.map((one) => ({
      label: one.label,
      stroke: colour(one.colour),
      width: 2,
      dash: one.dash,
      spanGaps: true,
      points: { show: one.points ?? true, size: 6, fill: colour(one.colour) },
    })),
  ];
  return {
    width: box.clientWidth,
    height: HEIGHT,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false } },
    scales: { x: { time: true }, y: { range: range ?? ((_, low, high) => [0, Math.max(1, high * 1.1)]) } },
    axes: [
      { ...axis, grid: { show: false } },
      { ...axis, size: 52, values: (_, ticks) => ticks.map((tick) => say(tick)) },
    ],
    series: [{}, ...drawn],
    plugins: [tooltip(series, say)],
  };
}

function tooltip(series, say) {
  const shown = document.createElement("div");
  shown.className = "tooltip";
  return {
    hooks: {
      init: (plot) => plot.over.append(shown),
      setCursor: (plot) => {
        const { idx, left } = plot.cursor;
        const said = idx == null ? [] : series.filter((one) => one.values[idx]);
        shown.hidden = !said.length || left < 0;
        if (shown.hidden) return;
        const head = document.createElement("strong");
        head.textContent = new Date(1000 * plot.data[0][idx]).toLocaleString();
        shown.replaceChildren(
          head,
          ...said.map((one) => {
            const line = document.createElement("span");
            line.className = `key ${one.bars ? "bar" : ""} ${one.colour}`;
            line.textContent = `${one.label}: ${say(one.values[idx])}`;
            return line;
          }),
        );
        const room = plot.over.clientWidth - shown.offsetWidth;
        shown.style.left = `${Math.max(0, Math.min(left + 12, room))}px`;
      },
    },
  };
}
