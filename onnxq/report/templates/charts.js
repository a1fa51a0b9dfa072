/* Draws the charts of a page with plotly, in the colours of the style sheet. */
"use strict";
(() => {
  const charts = [...document.querySelectorAll(".chart")].map((place) => ({
    place,
    given: JSON.parse(place.querySelector("script").textContent),
  }));
  const isTouched = matchMedia("(pointer: coarse)").matches;

  function colours() {
    const style = getComputedStyle(document.documentElement);
    return (name) => style.getPropertyValue(name).trim();
  }

  /* A copy in which the names of colours are colours. */
  function painted(value, colour, key) {
    if (Array.isArray(value)) return value.map((item) => painted(item, colour, key));
    if (value && typeof value === "object") {
      const entries = Object.entries(value);
      return Object.fromEntries(entries.map(([own, item]) => [own, painted(item, colour, own)]));
    }
    const isName = key === "color" && typeof value === "string" && value.startsWith("--");
    return isName ? colour(value) : value;
  }

  function layoutOf(own, colour, width, height) {
    const axis = {
      gridcolor: colour("--line"),
      zerolinecolor: colour("--line"),
      linecolor: colour("--line"),
      title: { standoff: 10, font: { size: 13, color: colour("--soft") } },
      automargin: true,
    };
    const layout = {
      height,
      autosize: true,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("--ink") },
      hovermode: "closest",
      hoverlabel: {
        bgcolor: colour("--card"),
        bordercolor: colour("--soft"),
        font: { color: colour("--ink"), size: 13 },
        namelength: -1,
      },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      dragmode: isTouched ? false : "zoom",
      ...own,
      margin: { l: 56, r: 16, t: 12, b: 48, ...own.margin },
    };
    for (const name of Object.keys(own).filter((key) => /^[xy]axis/.test(key))) {
      layout[name] = { ...axis, ...own[name], title: { ...axis.title, ...own[name].title } };
    }
    if (width < 480) layout.font.size = 12;
    return layout;
  }

  function draw() {
    const colour = colours();
    for (const { place, given } of charts) {
      const layout = layoutOf(painted(given.layout, colour), colour, place.clientWidth, given.height);
      const config = { displayModeBar: false, responsive: true };
      const target = place.querySelector(".plot");
      Plotly.react(target, painted(given.data, colour), layout, config);
    }
    document.documentElement.dataset.charts = charts.length;
  }

  draw();
  for (const query of ["(prefers-color-scheme: dark)", "print"]) {
    matchMedia(query).addEventListener("change", draw);
  }
})();
