// The image with its masks, and the tools to mark regions. Python sends what to draw (stage.py); everything that needs
// no model happens here: switching masks, drawing a prefix, marking regions.
(() => {
  "use strict";
  const SMALLEST_SIDE = 640; // smaller images are drawn with larger pixels
  const TINT = 128; // alpha of a mask, of 255
  const LARGEST_CACHE = 600; // decoded masks
  const state = {
    image: null, scene: { layers: [], size: [1, 1], tokens: 0, turns: 0 }, hidden: new Set(),
    tokens: null, layers: "", tool: "look", brush: 0.03, regions: [], draft: null, decoded: new Map(), turns: 0, focus: null,
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
  function decode(counts, [h, w]) {
    const mask = new Uint8Array(h * w);
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
    let position = 0, left = w, top = h, right = -1, bottom = -1, area = 0;
    for (let i = 0; i < runs.length; i++) {
      const end = position + runs[i];
      if (i % 2) {
        area += runs[i];
        let x = Math.floor(position / h), y = position - x * h;
        if (x < left) left = x;
        for (let p = position; p < end; p++) {
          mask[y * w + x] = 1;
          if (y < top) top = y;
          if (y > bottom) bottom = y;
          if (x > right) right = x;
          if (++y === h) { y = 0; x++; }
        }
      }
      position = end;
    }
    return { mask, area, box: [left, top, right + 1, bottom + 1] };
  }

  function countsAt(layer) {
    if (layer.region || state.tokens === null || state.tokens >= layer.tokens) return layer.counts;
    const shorter = Object.keys(layer.prefixes).map(Number).filter((n) => n <= state.tokens);
    return shorter.length ? layer.prefixes[Math.max(...shorter)] : layer.counts;
  }

  function bitmapOf(layer) {
    const counts = countsAt(layer);
    let bitmap = state.decoded.get(counts);
    if (!bitmap) {
      if (state.decoded.size >= LARGEST_CACHE) state.decoded.clear();
      bitmap = decode(counts, state.scene.size);
      state.decoded.set(counts, bitmap);
    }
    return bitmap;
  }

  const visibleLayers = () => state.scene.layers.filter((layer) => !state.hidden.has(layer.id));

  function paint(pixels, width, height, layer, bitmap, zoom) {
    const { mask, box: [x1, y1, x2, y2] } = bitmap;
    const w = state.scene.size[1];
    const [r, g, b] = layer.color;
    const tinted = (((layer.id === state.focus ? 200 : TINT) << 24) | (b << 16) | (g << 8) | r) >>> 0;
    const solid = ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
    const white = 0xffffffff;
    const line = Math.max(1, Math.round(Math.max(width, height) / 800));
    const bottom = Math.min(y2 * zoom, height), right = Math.min(x2 * zoom, width);
    const columnOf = Int32Array.from({ length: width }, (_, x) => Math.floor(x / zoom));
    const rowAt = (y) => (y < 0 || y >= height ? -1 : Math.floor(y / zoom) * w);
    for (let y = y1 * zoom; y < bottom; y++) {
      const row = rowAt(y);
      // Beyond the image's border (-1) there is no outline, as in the overlay that Python draws.
      const up = rowAt(y - line), down = rowAt(y + line), up2 = rowAt(y - 2 * line), down2 = rowAt(y + 2 * line);
      for (let x = x1 * zoom; x < right; x++) {
        const column = columnOf[x];
        if (!mask[row + column]) continue;
        const isEdge =
          (up >= 0 && !mask[up + column]) || (down >= 0 && !mask[down + column]) ||
          (x >= line && !mask[row + columnOf[x - line]]) || (x + line < width && !mask[row + columnOf[x + line]]);
        const isNear = !isEdge && (
          (up2 >= 0 && !mask[up2 + column]) || (down2 >= 0 && !mask[down2 + column]) ||
          (x >= 2 * line && !mask[row + columnOf[x - 2 * line]]) ||
          (x + 2 * line < width && !mask[row + columnOf[x + 2 * line]]));
        pixels[y * width + x] = isEdge ? white : isNear ? solid : tinted;
      }
    }
  }

  function draw() {
    const canvas = find("canvas.masks");
    if (!canvas || !state.image) return;
    const start = performance.now();
    const [h, w] = state.scene.size;
    const zoom = Math.max(1, Math.floor(SMALLEST_SIDE / Math.max(w, h)));
    if (canvas.width !== w * zoom || canvas.height !== h * zoom) {
      canvas.width = w * zoom;
      canvas.height = h * zoom;
    }
    const context = canvas.getContext("2d");
    const picture = context.createImageData(canvas.width, canvas.height);
    const pixels = new Uint32Array(picture.data.buffer);
    const labels = find(".labels");
    labels.replaceChildren();
    for (const layer of visibleLayers()) {
      const bitmap = bitmapOf(layer);
      if (!bitmap.area) continue;
      paint(pixels, canvas.width, canvas.height, layer, bitmap, zoom);
      const label = element("span", layer.uncertain ? "uncertain" : "", describe(layer));
      label.classList.toggle("below", bitmap.box[1] < 0.06 * h); // there is no room above
      label.style.background = colorOf(layer, 0.92);
      label.style.left = `${(100 * bitmap.box[0]) / w}%`;
      label.style.top = `${(100 * bitmap.box[1]) / h}%`;
      labels.append(label);
    }
    context.putImageData(picture, 0, 0);
    drawBoxes();
    canvas.dataset.zoom = zoom;
    canvas.dataset.milliseconds = (performance.now() - start).toFixed(1);
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
    const zoom = Math.max(1, Math.floor(SMALLEST_SIDE / Math.max(w, h)));
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
        const { mask } = bitmapOf(layer), [mh, mw] = state.scene.size, zoom = w / mw;
        for (let row = 0; row < mh; row++)
          for (let column = 0; column < mw; column++)
            if (mask[row * mw + column]) context.fillRect(column * zoom, row * zoom, zoom, zoom);
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
    const [h, w] = state.scene.size;
    const at = Math.min(Math.floor(y * h), h - 1) * w + Math.min(Math.floor(x * w), w - 1);
    const hit = visibleLayers().filter((layer) => layer.id !== "open" && bitmapOf(layer).mask[at]);
    hit.sort((a, b) => bitmapOf(a).area - bitmapOf(b).area);
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
  });
  document.addEventListener("pointerover", (event) => {
    const id = event.target.closest?.("[data-layer]")?.dataset.layer ?? null;
    if (id !== state.focus) { state.focus = id; draw(); }
  });

  // ---- what Gradio's events call ----------------------------------------------------------------------------------

  window.himtok = {
    state,
    showImage(text) {
      state.image = text ? JSON.parse(text) : null;
      state.scene = { layers: [], size: [1, 1], tokens: 0, turns: 0 };
      Object.assign(state, { regions: [], draft: null, tokens: null, turns: 0 });
      state.hidden.clear();
      state.decoded.clear();
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
    },
    showTokens(tokens) {
      state.tokens = tokens;
      draw();
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
