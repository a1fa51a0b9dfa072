/* The graph of a model on a canvas: zoom, hover, search, colours, blocks that fold. */
"use strict";
for (const root of document.querySelectorAll(".graph")) {
  const data = JSON.parse(root.querySelector("script").textContent);
  const canvas = root.querySelector("canvas");
  const pen = canvas.getContext("2d");
  const [tip, details, found] = [".tip", ".details", ".found"].map((s) => root.querySelector(s));
  const search = root.querySelector("input[type=search]");
  const foldButton = root.querySelector("button.fold");
  const [NAME, OP, PRECISION, ACCUMULATED, TYPE, REASON, OWN] = [0, 1, 2, 3, 4, 5, 6];
  const ERRORS = { local: [OWN, "own SQNR"], accumulated: [ACCUMULATED, "accumulated SQNR"] };
  const WIDTH = 128, HEIGHT = 34, ACROSS = 150, DOWN = 58, GUTTER = 90;
  const EXACT = 999, BEST = 60, WORST = 0;
  const CIVIDIS = [
    [0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115],
    [138, 134, 120], [165, 156, 116], [195, 179, 105], [225, 204, 85], [254, 232, 56],
  ];

  const unitOf = new Map();
  const sectionOf = new Map();
  data.units.forEach((unit, at) => unit.sections.forEach((section) => {
    unitOf.set(section, at);
    for (const [node] of data.sections[section].nodes) sectionOf.set(node, section);
  }));
  const allUnits = data.units.map((_, at) => at);
  const isBlock = (unit) => data.units[unit].count > 1;
  const folded = new Set(allUnits.filter(isBlock));
  const readers = new Map(), sources = new Map();
  const links = [...data.far];
  data.sections.forEach((section) => section.links.forEach(([a, b]) => {
    links.push([a < 0 ? section.from : a, b]);
  }));
  for (const [a, b] of links) {
    for (const [map, key, value] of [[readers, a, b], [sources, b, a]]) {
      if (!map.has(key)) map.set(key, []);
      map.get(key).push(value);
    }
  }

  /* What is drawn: boxes are nodes by number, and units as "u3". */
  let boxes = new Map(), frames = [], paths = [], extent = [0, 0, 1, 1];
  let view = { scale: 1, x: 0, y: 0 }, size = [1, 1];
  let colourBy = "precision", chosen = null, hovered = null, matches = [], current = -1;
  let isPlanned = false, paint = {};

  const blockName = (unit) => `Block ${data.units[unit].number} of ${data.units[unit].count}`;
  const boxOf = (node) => {
    const unit = unitOf.get(sectionOf.get(node));
    return folded.has(unit) ? `u${unit}` : node;
  };
  const members = (unit) => data.units[unit].sections.flatMap(
    (section) => data.sections[section].nodes.map(([node]) => node));

  function heightOf(unit) {
    if (folded.has(unit)) return 1;
    const rows = data.units[unit].sections.reduce((sum, s) => sum + data.sections[s].rows, 0);
    return rows + (isBlock(unit) ? 1 : 0);
  }

  function sidesOf(unit) {
    const own = folded.has(unit) ? [] : data.units[unit].sections.map((s) => data.sections[s]);
    const left = Math.min(0, ...own.map((s) => s.left)), right = Math.max(0, ...own.map((s) => s.right));
    return [left - 0.5, right + 0.5];
  }

  /* Units below each other, in as many columns as show them largest. */
  function columns(count) {
    const shown = allUnits.filter((unit) => heightOf(unit) > 0);
    const total = shown.reduce((sum, unit) => sum + heightOf(unit), 0);
    const found = [[]];
    let rows = 0;
    for (const unit of shown) {
      const own = heightOf(unit);
      if (rows && rows + own / 2 > total / count && found.length < count) {
        found.push([]);
        rows = 0;
      }
      found[found.length - 1].push(unit);
      rows += own;
    }
    return found.map((units) => ({
      units,
      rows: units.reduce((sum, unit) => sum + heightOf(unit), 0),
      left: Math.min(...units.map((unit) => sidesOf(unit)[0])),
      right: Math.max(...units.map((unit) => sidesOf(unit)[1])),
    }));
  }

  function arranged() {
    let best = null, most = 0;
    for (let count = 1; count <= 16; count++) {
      const tried = columns(count);
      if (tried.length < count) break;
      const wide = tried.reduce((sum, c) => sum + (c.right - c.left) * ACROSS + GUTTER, 0);
      const scale = Math.min(size[0] / wide, size[1] / (Math.max(...tried.map((c) => c.rows)) * DOWN), 1);
      if (scale > most * 1.02) [best, most] = [tried, scale];
    }
    return best || columns(1);
  }

  function arrange() {
    [boxes, frames, paths] = [new Map(), [], []];
    const bends = [], gutters = [], ports = [];
    let edge = 0, column = 0;
    for (const { units, left, right } of arranged()) {
      const middle = edge - left * ACROSS;
      gutters.push(edge - GUTTER / 2);
      ports.push([middle, 0]);
      // Above the first row of a column lines come from the column before.
      let y = column ? DOWN * 0.6 : 0;
      for (const unit of units) {
        const top = y;
        if (folded.has(unit)) {
          boxes.set(`u${unit}`, { x: middle, y: y + DOWN / 2, column });
          y += DOWN;
        } else {
          y += isBlock(unit) ? DOWN : 0;
          for (const number of data.units[unit].sections) {
            const section = data.sections[number];
            for (const [node, x, row] of section.nodes) {
              boxes.set(node, { x: middle + x * ACROSS, y: y + (row + 0.5) * DOWN, column });
            }
            const rowOf = new Map(section.nodes.map(([node, , row]) => [node, row]));
            for (const [a, b, own] of section.links) {
              if (!own.length) continue;
              const first = a < 0 ? -1 : rowOf.get(a);
              bends.push([a, b, section, own.map(
                (x, at) => [middle + x * ACROSS, y + (first + 1.5 + at) * DOWN])]);
            }
            y += section.rows * DOWN;
          }
          if (isBlock(unit)) {
            const [from, to] = sidesOf(unit);
            frames.push({
              unit, x: middle + from * ACROSS, y: top + 8, width: (to - from) * ACROSS, height: y - top - 12,
            });
          }
        }
      }
      edge += (right - left) * ACROSS + GUTTER;
      column += 1;
    }
    const bent = new Map(bends.map(([a, b, section, points]) => [`${a < 0 ? section.from : a} ${b}`, points]));
    const drawn = new Set(), far = new Set(data.far.map(([a, b]) => `${a} ${b}`));
    for (const [a, b] of links) {
      const [from, to] = [boxOf(a), boxOf(b)];
      if (from === to || !boxes.has(from) || !boxes.has(to) || drawn.has(`${from} ${to}`)) continue;
      drawn.add(`${from} ${to}`);
      const [start, end] = [boxes.get(from), boxes.get(to)];
      const [first, last] = [[start.x, start.y + HEIGHT / 2], [end.x, end.y - HEIGHT / 2]];
      const own = bent.get(`${a} ${b}`) || [];
      if (start.column === end.column) {
        paths.push({ from, to, points: [first, ...own, last] });
        continue;
      }
      const gutter = gutters[end.column], port = ports[end.column];
      if (far.has(`${a} ${b}`)) {
        const [low, high] = [first[1] + DOWN / 5, last[1] - DOWN / 5];
        const turns = [[start.x, low], [gutter, low], [gutter, high], [end.x, high]];
        paths.push({ from, to, points: [first, ...turns, last] });
      } else {
        const low = first[1] + DOWN / 4;
        const turns = [[start.x, low], [gutter, low], [gutter, port[1]]];
        paths.push({ from, to, points: [first, ...turns, port, ...own, last] });
      }
    }
    const all = [...boxes.values()];
    extent = [
      Math.min(...all.map((b) => b.x)) - ACROSS / 2 - 20, Math.min(...all.map((b) => b.y)) - DOWN / 2 - 10,
      Math.max(...all.map((b) => b.x)) + ACROSS / 2 + 20, Math.max(...all.map((b) => b.y)) + DOWN / 2 + 10,
    ];
  }

  function fit() {
    const [left, top, right, bottom] = extent;
    const scale = Math.min(size[0] / (right - left), size[1] / (bottom - top), 1.4);
    view = {
      scale,
      x: size[0] / 2 - (scale * (left + right)) / 2,
      y: Math.max(size[1] / 2 - (scale * (top + bottom)) / 2, -scale * top),
    };
    plan();
  }

  function zoom(factor, at = [size[0] / 2, size[1] / 2]) {
    const scale = Math.min(Math.max(view.scale * factor, 0.02), 4);
    const real = scale / view.scale;
    view = { scale, x: at[0] - (at[0] - view.x) * real, y: at[1] - (at[1] - view.y) * real };
    plan();
  }

  function pan(x, y) {
    view = { ...view, x: view.x + x, y: view.y + y };
    plan();
  }

  function rearranged() {
    arrange();
    foldButton.textContent = folded.size ? "Unfold all" : "Fold all";
    foldButton.hidden = !allUnits.some(isBlock);
  }

  /* Fold or unfold a block; what the pointer is on stays where it is. */
  function toggle(unit) {
    const before = boxes.get(`u${unit}`) || frames.find((frame) => frame.unit === unit);
    const isOpening = folded.delete(unit);
    if (!isOpening) folded.add(unit);
    rearranged();
    const after = boxes.get(`u${unit}`) || frames.find((frame) => frame.unit === unit);
    pan(view.scale * (before.x - after.x), view.scale * (before.y - after.y));
    choose(isOpening ? members(unit)[0] : `u${unit}`, false);
  }

  /* Drawing */

  function plan() {
    if (isPlanned) return;
    isPlanned = true;
    requestAnimationFrame(() => {
      isPlanned = false;
      draw();
    });
  }

  function readColours() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    paint = { ink: colour("--ink"), soft: colour("--soft"), line: colour("--line"), card: colour("--card"),
      accent: colour("--accent"), page: colour("--page"), mark: colour("--bad") };
    paint.precisions = data.kinds.map((kind) => colour(`--${kind}`));
    paint.font = getComputedStyle(document.body).fontFamily;
  }

  function shadeOfSqnr(sqnr) {
    if (sqnr === null) return paint.card;
    const share = Math.min(Math.max((BEST - sqnr) / (BEST - WORST), 0), 1) * (CIVIDIS.length - 1);
    const at = Math.min(Math.floor(share), CIVIDIS.length - 2);
    const mixed = CIVIDIS[at].map((c, i) => Math.round(c + (CIVIDIS[at + 1][i] - c) * (share - at)));
    return `rgb(${mixed.join(",")})`;
  }

  const worstOf = (unit, kind) => {
    const known = members(unit).map((node) => data.nodes[node][ERRORS[kind][0]]).filter((sqnr) => sqnr !== null);
    return known.length ? Math.min(...known) : null;
  };

  function fillOf(node) {
    const own = data.nodes[node];
    if (own[PRECISION] < 0) return paint.card;
    return colourBy in ERRORS ? shadeOfSqnr(own[ERRORS[colourBy][0]]) : paint.precisions[own[PRECISION]];
  }

  const inkOn = new Map();
  function textOn(fill) {
    if (!inkOn.has(fill)) {
      pen.fillStyle = fill;
      const hex = pen.fillStyle;
      const [r, g, b] = [1, 3, 5].map((at) => {
        const c = parseInt(hex.slice(at, at + 2), 16) / 255;
        return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
      });
      const light = 0.2126 * r + 0.7152 * g + 0.0722 * b;
      inkOn.set(fill, 1.05 / (light + 0.05) >= (light + 0.05) / 0.05 ? "#ffffff" : "#000000");
    }
    return inkOn.get(fill);
  }

  function draw() {
    const ratio = devicePixelRatio || 1;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, size[0], size[1]);
    pen.setTransform(ratio * view.scale, 0, 0, ratio * view.scale, ratio * view.x, ratio * view.y);
    const seen = [-view.x / view.scale, -view.y / view.scale,
      (size[0] - view.x) / view.scale, (size[1] - view.y) / view.scale];
    for (const frame of frames) drawFrame(frame);
    const near = [chosen, hovered];
    for (const isLit of [false, true]) {
      pen.beginPath();
      for (const path of paths) {
        if ((near.includes(path.from) || near.includes(path.to)) !== isLit) continue;
        if (isVisible(path.points, seen)) trace(path.points);
      }
      pen.strokeStyle = isLit ? paint.accent : paint.soft;
      pen.globalAlpha = isLit ? 1 : 0.55;
      pen.lineWidth = Math.max(isLit ? 2.5 : 1.2, (isLit ? 1.5 : 0.6) / view.scale);
      pen.stroke();
      pen.globalAlpha = 1;
    }
    const hits = new Set(matches.map(boxOf));
    let count = 0;
    for (const [key, box] of boxes) {
      if (box.x + ACROSS < seen[0] || box.x - ACROSS > seen[2]) continue;
      if (box.y + DOWN < seen[1] || box.y - DOWN > seen[3]) continue;
      drawBox(key, box, hits.has(key));
      count += 1;
    }
    Object.assign(canvas.dataset, { scale: view.scale.toFixed(4), drawn: count, boxes: boxes.size });
  }

  function isVisible(points, [left, top, right, bottom]) {
    const [xs, ys] = [points.map((p) => p[0]), points.map((p) => p[1])];
    return Math.max(...xs) >= left && Math.min(...xs) <= right
      && Math.max(...ys) >= top && Math.min(...ys) <= bottom;
  }

  function trace(points) {
    pen.moveTo(...points[0]);
    for (let at = 1; at < points.length; at++) {
      const [[x, y], [toX, toY]] = [points[at - 1], points[at]];
      const half = (y + toY) / 2;
      if (x === toX || y === toY) pen.lineTo(toX, toY);
      else pen.bezierCurveTo(x, half, toX, half, toX, toY);
    }
  }

  function drawFrame({ unit, x, y, width, height }) {
    pen.beginPath();
    pen.roundRect(x, y, width, height, 12);
    pen.fillStyle = paint.page;
    pen.globalAlpha = 0.7;
    pen.fill();
    pen.globalAlpha = 1;
    pen.strokeStyle = paint.soft;
    pen.lineWidth = Math.max(1, 0.7 / view.scale);
    pen.stroke();
    if (view.scale > 0.3) write(`− ${blockName(unit)}`, x + width / 2, y + 20, paint.ink, "600 13px");
  }

  function drawBox(key, box, isHit) {
    const isUnit = typeof key === "string";
    const unit = isUnit ? Number(key.slice(1)) : -1;
    const fill = !isUnit ? fillOf(key) : colourBy in ERRORS ? shadeOfSqnr(worstOf(unit, colourBy)) : paint.card;
    const [left, top] = [box.x - WIDTH / 2, box.y - HEIGHT / 2];
    const isEnd = !isUnit && data.nodes[key][PRECISION] < 0;
    pen.beginPath();
    pen.roundRect(left, top, WIDTH, HEIGHT, isEnd ? HEIGHT / 2 : isUnit ? 10 : 5);
    pen.fillStyle = fill;
    pen.fill();
    pen.strokeStyle = paint.soft;
    pen.lineWidth = Math.max(isUnit ? 2 : 1, 0.6 / view.scale);
    pen.stroke();
    if (isUnit && colourBy === "precision") drawShares(unit, left, top);
    if (isHit || key === chosen || key === hovered) {
      pen.strokeStyle = isHit ? paint.mark : paint.ink;
      pen.lineWidth = Math.max(3, 2 / view.scale);
      pen.stroke();
    }
    if (view.scale < 0.35) return;
    const ink = textOn(fill);
    if (isUnit) {
      write(`+ Block ${data.units[unit].number}/${data.units[unit].count}`, box.x, box.y - 2, ink, "600 13px");
      return;
    }
    const own = data.nodes[key];
    const under = isEnd ? own[OP] : colourBy in ERRORS ? sqnrText(own[ERRORS[colourBy][0]]) : data.precisions[own[PRECISION]];
    const isDetailed = view.scale > 0.6;
    write(isEnd ? own[NAME] : own[OP], box.x, isDetailed ? box.y - 6 : box.y, ink, "600 13px");
    if (isDetailed) write(under, box.x, box.y + 9, ink, "11px");
  }

  /* The precisions of a folded block, along its lower edge. */
  function drawShares(unit, left, top) {
    const own = members(unit).map((node) => data.nodes[node][PRECISION]).filter((p) => p >= 0);
    let x = left + 8;
    data.precisions.forEach((_, at) => {
      const width = ((WIDTH - 16) * own.filter((p) => p === at).length) / Math.max(own.length, 1);
      pen.fillStyle = paint.precisions[at];
      pen.fillRect(x, top + HEIGHT - 10, width, 5);
      x += width;
    });
    pen.beginPath();
    pen.roundRect(left, top, WIDTH, HEIGHT, 10);
  }

  const shortened = new Map();
  function write(text, x, y, ink, font) {
    pen.font = `${font} ${paint.font}`;
    pen.fillStyle = ink;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    const key = `${font}${text}`;
    if (!shortened.has(key)) {
      let shown = text;
      while (shown.length > 2 && pen.measureText(shown).width > WIDTH - 12) shown = `${shown.slice(0, -2)}…`;
      shortened.set(key, shown);
    }
    pen.fillText(shortened.get(key), x, y);
  }

  /* What is said of a box */

  function sqnrText(sqnr) {
    if (sqnr === null) return "not measured";
    return sqnr >= EXACT ? "exact" : `${sqnr.toFixed(1)} dB`;
  }

  function told(key) {
    if (typeof key === "string") {
      const unit = Number(key.slice(1));
      const own = members(unit).map((node) => data.nodes[node]).filter((node) => node[PRECISION] >= 0);
      const counts = data.precisions
        .map((name, at) => [own.filter((node) => node[PRECISION] === at).length, name])
        .filter(([count]) => count).map(([count, name]) => `${count} ${name}`);
      return [blockName(unit), `${own.length} operators: ${counts.join(", ")}`,
        ...data.errors.map((kind) => `worst ${ERRORS[kind][1]}: ${sqnrText(worstOf(unit, kind))}`),
        "folded: Enter or a click unfolds it"];
    }
    const own = data.nodes[key];
    if (own[PRECISION] < 0) return [own[NAME], `${own[OP]} of the model`];
    const lines = [own[NAME], `${own[OP]}, ${data.precisions[own[PRECISION]]}`];
    for (const kind of data.errors) lines.push(`${ERRORS[kind][1]}: ${sqnrText(own[ERRORS[kind][0]])}`);
    if (own[TYPE]) lines.push(`gives ${data.said[own[TYPE]]}`);
    if (own[REASON]) lines.push(data.said[own[REASON]]);
    return lines;
  }

  function fill(element, lines) {
    element.replaceChildren(...lines.map((line, at) => {
      const part = document.createElement(at ? "span" : "strong");
      part.textContent = line;
      return part;
    }));
  }

  function choose(key, isShown = true) {
    chosen = key;
    canvas.dataset.chosen = key === null ? "" : typeof key === "string" ? key : data.nodes[key][NAME];
    fill(details, key === null ? ["Nothing is chosen"] : told(key));
    if (key !== null && isShown) show(key);
    plan();
  }

  /* Bring a box into view, and near enough to be read. */
  function show(key, isCentred = false) {
    const box = boxes.get(key);
    if (isCentred && view.scale < 0.8) zoom(0.9 / view.scale);
    const [x, y] = [view.x + view.scale * box.x, view.y + view.scale * box.y];
    const isInside = x > 80 && x < size[0] - 80 && y > 40 && y < size[1] - 40;
    if (isCentred || !isInside) pan(size[0] / 2 - x, size[1] / 2 - y);
  }

  function hover(key, x = 0, y = 0) {
    hovered = key;
    tip.hidden = key === null;
    canvas.style.cursor = key === null ? "grab" : "pointer";
    if (key !== null) {
      fill(tip, told(key));
      tip.style.left = `${Math.max(Math.min(x + 14, size[0] - tip.offsetWidth - 4), 4)}px`;
      tip.style.top = `${y + 18 + tip.offsetHeight > size[1] ? y - tip.offsetHeight - 10 : y + 18}px`;
    }
    plan();
  }

  function at(x, y) {
    const [ownX, ownY] = [(x - view.x) / view.scale, (y - view.y) / view.scale];
    for (const [key, box] of boxes) {
      if (Math.abs(ownX - box.x) <= WIDTH / 2 && Math.abs(ownY - box.y) <= HEIGHT / 2) return key;
    }
    return null;
  }

  function frameAt(x, y) {
    const [ownX, ownY] = [(x - view.x) / view.scale, (y - view.y) / view.scale];
    return frames.find((f) => ownX >= f.x && ownX <= f.x + f.width && ownY >= f.y && ownY <= f.y + 36);
  }

  /* Pointer, wheel and touch */

  const pointers = new Map();
  let moved = 0;
  const local = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, local(event));
    moved = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = local(event);
    const before = pointers.get(event.pointerId);
    if (!before) {
      hover(at(x, y), x, y);
      return;
    }
    const other = [...pointers].find(([id]) => id !== event.pointerId);
    moved += Math.abs(x - before[0]) + Math.abs(y - before[1]);
    if (other) {
      const [ox, oy] = other[1];
      zoom(Math.hypot(x - ox, y - oy) / Math.max(Math.hypot(before[0] - ox, before[1] - oy), 1),
        [(x + ox) / 2, (y + oy) / 2]);
    } else {
      pan(x - before[0], y - before[1]);
    }
    pointers.set(event.pointerId, [x, y]);
  });
  const released = (event) => {
    const place = pointers.get(event.pointerId);
    pointers.delete(event.pointerId);
    if (!place || moved > 6 || event.type === "pointercancel") return;
    const key = at(...place);
    if (typeof key === "string") toggle(Number(key.slice(1)));
    else if (key === null && frameAt(...place)) toggle(frameAt(...place).unit);
    else choose(key, false);
  };
  canvas.addEventListener("pointerup", released);
  canvas.addEventListener("pointercancel", released);
  canvas.addEventListener("pointerleave", () => hover(null));
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && document.activeElement !== canvas) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), local(event));
  }, { passive: false });

  /* Keyboard */

  function follow(map) {
    const own = typeof chosen === "string" ? members(Number(chosen.slice(1))) : [chosen];
    const linked = own.flatMap((node) => map.get(node) || []).map(boxOf).filter((key) => key !== chosen);
    const { x, y } = boxes.get(chosen);
    const far = (key) => Math.abs(boxes.get(key).y - y) * 100 + Math.abs(boxes.get(key).x - x);
    const [next] = linked.sort((a, b) => far(a) - far(b));
    if (next !== undefined) choose(next);
  }

  function beside(direction) {
    const own = boxes.get(chosen);
    const others = [...boxes].filter(([, box]) => Math.abs(box.y - own.y) < 1 && (box.x - own.x) * direction > 1);
    others.sort(([, a], [, b]) => (a.x - b.x) * direction);
    if (others.length) choose(others[0][0]);
  }

  const keys = {
    ArrowDown: () => follow(readers),
    ArrowUp: () => follow(sources),
    ArrowLeft: () => beside(-1),
    ArrowRight: () => beside(1),
    "+": () => zoom(1.25),
    "=": () => zoom(1.25),
    "-": () => zoom(0.8),
    0: fit,
    Escape: () => choose(null),
    Enter: () => {
      const unit = typeof chosen === "string" ? Number(chosen.slice(1)) : unitOf.get(sectionOf.get(chosen));
      if (unit !== undefined && isBlock(unit)) toggle(unit);
    },
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || !(event.key in keys)) return;
    event.preventDefault();
    if (chosen === null && /^(Arrow|Enter)/.test(event.key)) choose([...boxes.keys()][0]);
    else keys[event.key]();
  });

  /* Search, colours, buttons */

  function look() {
    const wanted = search.value.trim().toLowerCase();
    matches = [];
    current = -1;
    if (wanted) {
      data.nodes.forEach((node, number) => {
        const said = [node[NAME], node[OP], node[PRECISION] < 0 ? "" : data.precisions[node[PRECISION]]];
        if (sectionOf.has(number) && said.some((text) => text.toLowerCase().includes(wanted))) matches.push(number);
      });
    }
    found.textContent = !wanted ? "" : matches.length === 1 ? "1 match" : `${matches.length} matches`;
    plan();
  }

  function jump(step) {
    if (!matches.length) return;
    current = (current + step + matches.length) % matches.length;
    const node = matches[current];
    const unit = unitOf.get(sectionOf.get(node));
    if (folded.delete(unit)) rearranged();
    choose(node, false);
    show(node, true);
    found.textContent = `${current + 1} of ${matches.length}`;
  }

  search.addEventListener("input", look);
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    jump(event.shiftKey && current >= 0 ? -1 : 1);
  });
  for (const radio of root.querySelectorAll("input[type=radio]")) {
    radio.addEventListener("change", () => {
      colourBy = radio.value;
      for (const legend of root.querySelectorAll(".legend")) legend.hidden = legend.dataset.of !== colourBy;
      plan();
    });
  }
  const buttons = { in: () => zoom(1.25), out: () => zoom(0.8), fit };
  for (const button of root.querySelectorAll("button[data-zoom]")) {
    button.addEventListener("click", buttons[button.dataset.zoom]);
  }
  foldButton.addEventListener("click", () => {
    const isUnfolding = folded.size > 0;
    folded.clear();
    if (!isUnfolding) allUnits.filter(isBlock).forEach((unit) => folded.add(unit));
    if (chosen !== null && !boxes.has(chosen)) chosen = null;
    rearranged();
    choose(null);
    fit();
  });

  let isFirst = true;
  new ResizeObserver(() => {
    const box = canvas.getBoundingClientRect();
    if (!box.width || !box.height) return;
    const ratio = devicePixelRatio || 1;
    size = [box.width, box.height];
    [canvas.width, canvas.height] = size.map((length) => Math.round(length * ratio));
    if (isFirst) {
      rearranged();
      fit();
    }
    isFirst = false;
    plan();
  }).observe(canvas);
  for (const query of ["(prefers-color-scheme: dark)", "print"]) {
    matchMedia(query).addEventListener("change", () => {
      readColours();
      plan();
    });
  }
  readColours();
}
