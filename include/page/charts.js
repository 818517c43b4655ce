// Draws the charts of the overview with uPlot, in the colours of the style sheet.
const WEEK = 7 * 86400; // s
const HEIGHT = 230; // px

const drawChart = (figure) => {
  const { axis, times, values, labels, thresholds } = JSON.parse(figure.dataset.chart);
  const plot = figure.querySelector(".plot"), readout = figure.querySelector(".readout");
  const style = (element, property) => () => getComputedStyle(element)[property];
  const ink = style(plot, "color"), quiet = style(readout, "color");
  const line = style(plot, "borderTopColor"), bad = style(plot, "outlineColor");

  const plotted = [...values, ...(thresholds ?? [])];
  const low = Math.min(...plotted), high = Math.max(...plotted);
  const margin = (high - low) * 0.1 || Math.abs(high) * 0.02 || 0.01;
  const from = times[0], to = times.at(-1), side = (to - from) * 0.03 || WEEK;
  // Points at both ends, without a value, extend the line of thresholds across the whole chart.
  const data = [[from - side, ...times, to + side], [null, ...values, null]];
  if (thresholds) data.push([thresholds[0], ...thresholds, thresholds.at(-1)]);

  const digits = high > 10 ? 2 : 3;
  const countDecimals = (step) => `${step}`.split(".")[1]?.length ?? 0;
  const pickTimes = (chart) => { // as many dates as fit, including the newest
    const step = Math.ceil(times.length / Math.max(1, Math.floor(chart.width / 90)));
    return times.filter((_, index) => (times.length - 1 - index) % step === 0);
  };
  const day = (time) => { // as in the table; "en-GB" abbreviates September to "Sept"
    const date = new Date(time * 1000);
    return `${date.getUTCDate()} ${date.toLocaleDateString("en-US", { month: "short", timeZone: "UTC" })}`;
  };
  const font = "13px system-ui, sans-serif";
  const axes = { stroke: quiet, font, labelFont: font, labelSize: 22, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
  const chart = new uPlot({
    width: plot.clientWidth,
    height: HEIGHT,
    tzDate: (time) => uPlot.tzDate(new Date(time * 1000), "UTC"),
    legend: { show: false },
    cursor: { drag: { x: false, y: false }, y: false },
    scales: { x: { range: [from - side, to + side] }, y: { range: [low - margin, high + margin] } },
    axes: [
      { ...axes, label: "date of the run (UTC)", size: 32, splits: pickTimes, values: (_, ticks) => ticks.map(day) },
      { ...axes, label: axis, size: 64, values: (_u, ticks, _axis, _space, step) => ticks.map((tick) => tick.toFixed(countDecimals(step))) },
    ],
    series: [
      {},
      { stroke: ink, width: 2, points: { show: true, size: 8, fill: ink } },
      ...(thresholds ? [{ stroke: bad, width: 1.5, dash: [6, 5], points: { show: false }, paths: uPlot.paths.stepped({ align: 1 }) }] : []),
    ],
    hooks: {
      setCursor: [({ cursor: { idx } }) => {
        const value = data[1][idx];
        readout.textContent = value == null ? "" : `${labels[idx - 1]}: ${value.toFixed(digits)}`;
      }],
    },
  }, data, plot);
  new ResizeObserver(() => chart.setSize({ width: plot.clientWidth, height: HEIGHT })).observe(plot);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chart.redraw(false, true));
};

document.querySelectorAll("[data-chart]").forEach(drawChart);
