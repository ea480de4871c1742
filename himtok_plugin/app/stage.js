// The image with its masks, and the tools to mark regions. Python sends what to draw (stage.py); everything that needs
// no model happens here: switching masks, drawing a prefix, marking regions.
(() => {
  "use strict";
  const SMALLEST_SIDE = 640; // smaller images are drawn with larger pixels
  const TINT = 128, FOCUS_TINT = 200; // alpha of a mask, of 255
  const LARGEST_CACHE = 2 ** 28; // pixels of masks, a byte each
  const INSIDE = 1, NEAR = 2, EDGE = 3; // of a mask: its tint, a line in its colour, and a white line around that
  const whenIdle = window.requestIdleCallback ?? ((work) => setTimeout(() => work({ timeRemaining: () => 1 }), 50));
  const SLIDER = "#himtok-tokens input[type=range]";
  const cancelIdle = window.cancelIdleCallback ?? clearTimeout;
  const state = {
    image: null, scene: { layers: [], size: [1, 1], tokens: 0, turns: 0 }, hidden: new Set(),
    tokens: null, layers: "", tool: "look", brush: 0.03, regions: [], draft: null, turns: 0, focus: null,
    shapes: new Map(), kept: 0, ahead: 0, picture: null, // traced masks by their counts, and how many pixels these are
  };

  const find = (selector) => document.querySelector(`#himtok-stage ${selector}`);
  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const colorOf = (layer, alpha = 1) => `rgba(${layer.color.join(",")},${alpha})`;

  // COCO RLE: runs column by column, in characters of 6 bits (pycocotools, common/maskApi.c).
  function decode(counts) {
    const runs = [];
    for (let at = 0; at < counts.length; ) {
      let value = 0, shift = 0, more = true;
      while (more) {
        const character = counts.charCodeAt(at++) - 48;
        value |= (character & 31) << shift;
        more = (character & 32) !== 0;
        shift += 5;
        if (!more && character & 16) value |= -1 << shift;
      }
      if (runs.length > 2) value += runs[runs.length - 2];
      runs.push(value);
    }
    return runs;
  }

  // The mask as the canvas shows it, cropped to its box: 0 is background, the others are indices of `colorsOf`. All that
  // takes time is done here, once for every prefix.
  function trace(counts, [h, w], zoom) {
    const runs = decode(counts);
    let left = w, top = h, right = 0, bottom = 0, area = 0;
    const forEachColumn = (visit) => {
      let position = 0;
      runs.forEach((run, i) => {
        for (let at = position, end = position + run; i % 2 && at < end; ) {
          const x = Math.floor(at / h), y = at - x * h, stop = Math.min(h, y + end - at);
          visit(x, y, stop);
          at += stop - y;
        }
        position += run;
      });
    };
    forEachColumn((x, y, stop) => {
      left = Math.min(left, x);
      right = Math.max(right, x + 1);
      top = Math.min(top, y);
      bottom = Math.max(bottom, stop);
      area += stop - y;
    });
    if (!area) return { area, box: [0, 0, 0, 0], x: 0, y: 0, width: 0, height: 0, classes: new Uint8Array(0) };

    // With a margin of background around it. Beyond the image's border there is no outline, as in the overlay that
    // Python draws, so that counts as foreground.
    const line = Math.max(1, Math.round((Math.max(w, h) * zoom) / 800)), margin = 2 * line;
    const width = (right - left) * zoom, height = (bottom - top) * zoom, stride = width + 2 * margin;
    const mask = new Uint8Array(stride * (height + 2 * margin));
    const originX = margin - left * zoom, originY = margin - top * zoom;
    if (originY > 0) mask.fill(1, 0, stride * originY);
    if (originY + h * zoom < height + 2 * margin) mask.fill(1, stride * (originY + h * zoom));
    for (let row = 0; row < mask.length; row += stride) {
      if (originX > 0) mask.fill(1, row, row + originX);
      if (originX + w * zoom < stride) mask.fill(1, row + originX + w * zoom, row + stride);
    }
    forEachColumn((x, y, stop) => {
      const first = x * zoom + originX, last = stop * zoom + originY;
      for (let row = y * zoom + originY; row < last; row++)
        for (let column = first; column < first + zoom; column++) mask[row * stride + column] = 1;
    });

    const classes = new Uint8Array(width * height);
    const far = line * stride;
    for (let y = 0, to = 0; y < height; y++) {
      let at = (y + margin) * stride + margin;
      for (let x = 0; x < width; x++, at++, to++) {
        if (!mask[at]) continue;
        if (!(mask[at - far] & mask[at + far] & mask[at - line] & mask[at + line])) classes[to] = EDGE;
        else if (!(mask[at - 2 * far] & mask[at + 2 * far] & mask[at - margin] & mask[at + margin])) classes[to] = NEAR;
        else classes[to] = INSIDE;
      }
    }
    return { area, box: [left, top, right, bottom], x: left * zoom, y: top * zoom, width, height, classes };
  }

  function countsAt(layer) {
    if (layer.region || state.tokens === null || state.tokens >= layer.tokens) return layer.counts;
    const shorter = Object.keys(layer.prefixes).map(Number).filter((n) => n <= state.tokens);
    return shorter.length ? layer.prefixes[Math.max(...shorter)] : layer.counts;
  }

  const zoomOf = ([h, w]) => Math.max(1, Math.floor(SMALLEST_SIDE / Math.max(w, h))); // canvas pixels per pixel

  function shapeOf(counts) {
    let shape = state.shapes.get(counts);
    if (!shape) {
      shape = trace(counts, state.scene.size, zoomOf(state.scene.size));
      state.shapes.set(counts, shape);
      state.kept += shape.classes.length;
      for (const [oldest, { classes }] of state.shapes) {
        if (state.kept <= LARGEST_CACHE || oldest === counts) break;
        state.shapes.delete(oldest);
        state.kept -= classes.length;
      }
    }
    return shape;
  }

  // Prefixes are traced while the browser has nothing else to do, so that the slider finds them; the longest ones first,
  // because the slider starts with these.
  function traceAhead() {
    const all = visibleLayers().filter((layer) => layer.id !== "open").flatMap((layer) =>
      Object.keys(layer.prefixes).map((n) => [Number(n), layer.prefixes[n]]));
    all.sort(([n], [m]) => m - n);
    const work = (deadline) => {
      state.ahead = 0;
      while (all.length && state.kept < LARGEST_CACHE / 2) {
        if (deadline.timeRemaining() < 1) {
          state.ahead = whenIdle(work);
          return;
        }
        shapeOf(all.shift()[1]);
      }
    };
    if (state.ahead) cancelIdle(state.ahead);
    state.ahead = whenIdle(work);
  }

  const visibleLayers = () => state.scene.layers.filter((layer) => !state.hidden.has(layer.id));

  function colorsOf(layer) {
    const [r, g, b] = layer.color;
    const color = (alpha) => ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;
    const colors = new Uint32Array(4);
    colors[INSIDE] = color(layer.id === state.focus ? FOCUS_TINT : TINT);
    colors[NEAR] = color(255);
    colors[EDGE] = 0xffffffff;
    return colors;
  }

  function paint(pixels, stride, layer, { x, y, width, height, classes }) {
    const colors = colorsOf(layer);
    for (let row = 0, from = 0; row < height; row++) {
      let to = (y + row) * stride + x;
      for (const end = from + width; from < end; from++, to++) if (classes[from]) pixels[to] = colors[classes[from]];
    }
  }

  function draw() {
    const canvas = find("canvas.masks");
    if (!canvas || !state.image) return;
    const [h, w] = state.scene.size;
    const zoom = zoomOf(state.scene.size);
    if (canvas.width !== w * zoom || canvas.height !== h * zoom) {
      canvas.width = w * zoom;
      canvas.height = h * zoom;
    }
    const context = canvas.getContext("2d");
    if (state.picture?.width !== canvas.width || state.picture.height !== canvas.height)
      state.picture = context.createImageData(canvas.width, canvas.height);
    const picture = state.picture, pixels = new Uint32Array(picture.data.buffer);
    pixels.fill(0);
    const labels = find(".labels");
    labels.replaceChildren();
    for (const layer of visibleLayers()) {
      const shape = shapeOf(countsAt(layer));
      if (!shape.area) continue;
      paint(pixels, canvas.width, layer, shape);
      const label = element("span", layer.uncertain ? "uncertain" : "", describe(layer));
      label.classList.toggle("below", shape.box[1] < 0.06 * h); // there is no room above
      label.style.background = colorOf(layer, 0.92);
      label.style.left = `${(100 * shape.box[0]) / w}%`;
      label.style.top = `${(100 * shape.box[1]) / h}%`;
      labels.append(label);
    }
    context.putImageData(picture, 0, 0);
    drawBoxes();
    canvas.dataset.zoom = zoom;
  }

  function drawPrefix(tokens) {
    if (tokens === state.tokens) return;
    state.tokens = tokens;
    draw();
  }

  // Boxes that the last answer has written as text, in fractions of the image.
  function drawBoxes() {
    find(".boxes").replaceChildren(...(state.scene.boxes ?? []).map(([x1, y1, x2, y2]) => {
      const box = element("div", "");
      Object.assign(box.style, { left: `${100 * x1}%`, top: `${100 * y1}%`, width: `${100 * (x2 - x1)}%`, height: `${100 * (y2 - y1)}%` });
      return box;
    }));
  }

  const describe = (layer) =>
    layer.name + (layer.score === null ? "" : ` ${layer.score.toFixed(2)}`) + (layer.uncertain ? " ?" : "");

  function drawLegend() {
    const legend = find(".legend");
    legend.replaceChildren();
    let turn = null;
    for (const layer of state.scene.layers) {
      if (state.scene.turns > 1 && layer.turn !== turn) {
        turn = layer.turn;
        legend.append(element("b", "turn", `${turn + 1}.`));
      }
      const entry = element("label", "entry");
      const box = element("input", "");
      box.type = "checkbox";
      box.checked = !state.hidden.has(layer.id);
      box.dataset.switch = layer.id;
      const swatch = element("i", "swatch");
      swatch.style.background = colorOf(layer);
      entry.append(box, swatch, element("span", "name", layer.name));
      if (layer.score !== null) entry.append(element("span", "score", layer.score.toFixed(2)));
      if (layer.uncertain) entry.append(element("span", "doubt", "uncertain"));
      entry.dataset.layer = layer.id;
      legend.append(entry);
    }
    for (const chip of document.querySelectorAll("button.himtok-chip[data-layer]"))
      chip.classList.toggle("himtok-off", state.hidden.has(chip.dataset.layer));
  }

  function toggle(id) {
    if (state.hidden.has(id)) state.hidden.delete(id);
    else state.hidden.add(id);
    draw();
    drawLegend();
  }

  // ---- regions ----------------------------------------------------------------------------------------------------

  function drawRegions() {
    const canvas = find("canvas.regions");
    if (!canvas || !state.image) return;
    const [w, h] = state.image.size;
    const zoom = zoomOf([h, w]);
    canvas.width = w * zoom;
    canvas.height = h * zoom;
    const context = canvas.getContext("2d");
    const all = state.draft ? [...state.regions, state.draft] : state.regions;
    all.forEach((region, i) => drawRegion(context, canvas, region, i + 1));
    const list = find(".marked");
    list.replaceChildren();
    state.regions.forEach((region, i) => {
      const chip = element("button", "region-chip", `region ${i + 1}: ${nameOf(region)} ×`);
      chip.type = "button";
      chip.title = "Remove this region";
      chip.dataset.remove = i;
      list.append(chip);
    });
  }

  function nameOf(region) {
    if (region.kind !== "click") return region.kind === "stroke" ? "brush" : region.kind;
    const layer = region.mask && state.scene.layers.find((each) => each.id === region.mask);
    return layer ? layer.name : "click";
  }

  function drawRegion(context, canvas, region, number) {
    const w = canvas.width, h = canvas.height, long = Math.max(w, h);
    context.save();
    context.strokeStyle = "#fff";
    context.fillStyle = "rgba(20,24,32,.45)";
    context.lineWidth = Math.max(2, long / 400);
    context.lineJoin = context.lineCap = "round";
    let x, y;
    if (region.kind === "box") {
      x = Math.min(region.x1, region.x2) * w;
      y = Math.min(region.y1, region.y2) * h;
      const size = [Math.abs(region.x2 - region.x1) * w, Math.abs(region.y2 - region.y1) * h];
      context.fillRect(x, y, ...size);
      context.strokeRect(x, y, ...size);
    } else if (region.kind === "stroke") {
      [x, y] = [region.points[0][0] * w, region.points[0][1] * h];
      context.strokeStyle = "rgba(20,24,32,.55)";
      context.lineWidth = 2 * region.radius * long;
      context.beginPath();
      context.moveTo(x, y);
      region.points.forEach(([px, py]) => context.lineTo(px * w, py * h));
      context.lineTo(x === region.points.at(-1)[0] * w ? x + 0.01 : region.points.at(-1)[0] * w, region.points.at(-1)[1] * h);
      context.stroke();
    } else {
      [x, y] = [region.x * w, region.y * h];
      const layer = region.mask && state.scene.layers.find((each) => each.id === region.mask);
      if (layer) {
        const { x: left, y: top, width, classes } = shapeOf(countsAt(layer));
        for (let first = 0; first < classes.length; first++) {
          if (!classes[first]) continue;
          let end = first;
          while (classes[end] && Math.floor(end / width) === Math.floor(first / width)) end++;
          context.fillRect(left + (first % width), top + Math.floor(first / width), end - first, 1);
          first = end - 1;
        }
      } else {
        context.beginPath();
        context.arc(x, y, Number(find(".frame").dataset.clickRadius) * long, 0, 2 * Math.PI);
        context.fill();
        context.stroke();
      }
    }
    const size = Math.max(14, long / 40);
    context.font = `600 ${size}px system-ui, sans-serif`;
    context.fillStyle = "#fff";
    context.strokeStyle = "#141820";
    context.lineWidth = size / 5;
    context.strokeText(number, x + 3, y + size);
    context.fillText(number, x + 3, y + size);
    context.restore();
  }

  // The smallest visible mask at a place, because a large one can lie under it.
  function layerAt(x, y) {
    const { width, height } = find("canvas.masks");
    const column = Math.min(Math.floor(x * width), width - 1), row = Math.min(Math.floor(y * height), height - 1);
    const holds = ({ x: left, y: top, width: w, height: h, classes }) =>
      column >= left && column < left + w && row >= top && row < top + h && classes[(row - top) * w + column - left] > 0;
    const hit = visibleLayers()
      .map((layer) => ({ id: layer.id, shape: shapeOf(countsAt(layer)) }))
      .filter(({ id, shape }) => id !== "open" && holds(shape));
    hit.sort((a, b) => a.shape.area - b.shape.area);
    return hit.length ? hit[0].id : null;
  }

  function place(event) {
    const frame = find("canvas.regions").getBoundingClientRect();
    const inside = (value) => Math.min(Math.max(value, 0), 1);
    return [inside((event.clientX - frame.left) / frame.width), inside((event.clientY - frame.top) / frame.height)];
  }

  function press(event) {
    if (state.tool === "look" || !state.image || event.button) return;
    event.preventDefault();
    event.target.setPointerCapture(event.pointerId);
    const [x, y] = place(event);
    if (state.tool === "click") state.draft = { kind: "click", x, y, mask: layerAt(x, y) };
    if (state.tool === "box") state.draft = { kind: "box", x1: x, y1: y, x2: x, y2: y };
    if (state.tool === "brush") state.draft = { kind: "stroke", points: [[x, y]], radius: state.brush };
    drawRegions();
  }

  function move(event) {
    if (!state.draft) return;
    const [x, y] = place(event);
    if (state.draft.kind === "box") [state.draft.x2, state.draft.y2] = [x, y];
    if (state.draft.kind === "stroke") state.draft.points.push([x, y]);
    drawRegions();
  }

  function release() {
    const region = state.draft;
    state.draft = null;
    if (!region) return;
    const isPoint = region.kind === "box" && (Math.abs(region.x2 - region.x1) < 0.004 || Math.abs(region.y2 - region.y1) < 0.004);
    if (!isPoint) state.regions.push(region);
    drawRegions();
    if (!isPoint) document.querySelector("#himtok-region-added")?.click();
  }

  function removeRegion(index) {
    state.regions.splice(index, 1);
    state.removed = index;
    drawRegions();
    document.querySelector("#himtok-region-removed")?.click();
  }

  function chooseTool(tool) {
    state.tool = tool;
    document.querySelectorAll("#himtok-stage [data-tool]").forEach((button) =>
      button.setAttribute("aria-pressed", String(button.dataset.tool === tool)));
    find(".frame").dataset.tool = tool;
    find(".brush").hidden = tool !== "brush";
    const help = {
      look: "Click a name in the text or the legend to show or hide its mask.",
      click: "Click a mask of an answer to ask about it; elsewhere, a click marks a small disc.",
      box: "Drag a box around what you want to ask about.",
      brush: "Paint over what you want to ask about.",
    };
    find(".help").textContent = help[tool];
  }

  document.addEventListener("pointerdown", (event) => event.target.closest?.("#himtok-stage canvas.regions") && press(event));
  document.addEventListener("pointermove", move);
  document.addEventListener("pointerup", release);
  document.addEventListener("pointercancel", () => { state.draft = null; drawRegions(); });
  document.addEventListener("click", (event) => {
    const target = event.target.closest?.("[data-tool], [data-remove], button.himtok-chip[data-layer]");
    if (!target) return;
    if (target.dataset.tool) chooseTool(target.dataset.tool);
    else if (target.dataset.remove !== undefined) removeRegion(Number(target.dataset.remove));
    else toggle(target.dataset.layer);
  });
  document.addEventListener("change", (event) => event.target.dataset?.switch && toggle(event.target.dataset.switch));
  document.addEventListener("input", (event) => {
    if (event.target.id === "himtok-brush") state.brush = Number(event.target.value) / 100;
    if (event.target.matches?.(SLIDER)) drawPrefix(Number(event.target.value));
  });
  document.addEventListener("pointerover", (event) => {
    const id = event.target.closest?.("[data-layer]")?.dataset.layer ?? null;
    if (id !== state.focus) { state.focus = id; draw(); }
  });

  // ---- images from outside the upload, which takes only what is dropped on it ---------------------------------------

  function addImage(event, data) {
    const input = document.querySelector("#himtok-upload input[type=file]");
    const file = [...(data?.files ?? [])].find(({ type }) => type.startsWith("image/"));
    if (!input || !file) return;
    event.preventDefault();
    const files = new DataTransfer();
    files.items.add(file);
    input.files = files.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }

  const isElsewhere = (event) => event.dataTransfer?.types.includes("Files") && !event.target.closest?.("#himtok-upload");
  document.addEventListener("paste", (event) => addImage(event, event.clipboardData));
  document.addEventListener("drop", (event) => {
    if (!isElsewhere(event)) return;
    event.preventDefault(); // the browser would leave the page, and show the file
    addImage(event, event.dataTransfer);
  });
  document.addEventListener("dragover", (event) => isElsewhere(event) && event.preventDefault());

  // ---- what Gradio's events call ----------------------------------------------------------------------------------

  window.himtok = {
    state,
    showImage(text) {
      state.image = text ? JSON.parse(text) : null;
      state.scene = { layers: [], size: [1, 1], tokens: 0, turns: 0 };
      Object.assign(state, { regions: [], draft: null, tokens: null, turns: 0 });
      state.hidden.clear();
      state.shapes.clear();
      state.kept = 0;
      const stage = document.querySelector("#himtok-stage");
      stage.classList.toggle("empty", !state.image);
      const picture = find("img");
      if (state.image) {
        picture.src = state.image.url;
        picture.alt = state.image.name;
        const [w, h] = state.image.size;
        find(".frame").style.setProperty("--ratio", w / h);
        find(".frame").style.aspectRatio = `${w} / ${h}`;
        find(".about").textContent = `${state.image.name} · ${state.image.full[0]} × ${state.image.full[1]} pixels`;
        state.scene.size = [h, w];
      }
      draw();
      drawLegend();
      drawRegions();
      this.showLayers(state.layers);
    },
    // Gradio sends an image and its masks at once, and does not say which of them arrives first.
    showLayers(text) {
      state.layers = text;
      if (!text || !state.image || JSON.parse(text).image !== state.image.number) return;
      state.scene = JSON.parse(text);
      if (state.scene.turns > state.turns) {
        // A new answer is looked at first; the earlier ones can be switched on again.
        state.scene.layers.filter((layer) => layer.turn < state.scene.turns - 1).forEach((layer) => state.hidden.add(layer.id));
        Object.assign(state, { tokens: null, turns: state.scene.turns, regions: [] });
        drawRegions();
      }
      draw();
      drawLegend();
      traceAhead();
    },
    // Gradio says a while after the slider where it was.
    showTokens(tokens) {
      const slider = document.querySelector(SLIDER);
      if (!slider || Number(slider.value) === tokens) drawPrefix(tokens);
    },
    showChips: () => requestAnimationFrame(drawLegend),
    // The link of a hidden button is up to date a moment after its value.
    fetchFile: (file) => file && setTimeout(() => document.querySelector("#himtok-file").click(), 100),
    regions: () => JSON.stringify(state.regions),
    view: () => JSON.stringify({ hidden: [...state.hidden], tokens: state.tokens }),
    addPlaceholder(question) {
      const text = question ?? "";
      const missing = state.regions.length - (text.match(/<mask>/g) || []).length;
      return missing > 0 ? `${text}${text && !/\s$/.test(text) ? " " : ""}${Array(missing).fill("<mask>").join(" ")}` : text;
    },
    removePlaceholder(question) {
      let at = -1;
      return (question ?? "").replace(/\s?<mask>/g, (found) => (++at === state.removed ? "" : found));
    },
  };
})();
