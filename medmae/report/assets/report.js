"use strict";
// Text from the data is only ever set as textContent, never as markup.
(function () {
  const root = document.documentElement;
  document.getElementById("theme").addEventListener("click", function () {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  document.querySelectorAll(".switch").forEach(function (group) {
    group.addEventListener("change", function () {
      group.querySelectorAll("input").forEach(function (input) {
        document.getElementById(input.value).hidden = !input.checked;
      });
    });
  });
  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  // Black, purple, orange, pale yellow: the amount of an error can be read in gray as well.
  function heat(t) {
    const stops = [[0, 0, 0], [66, 10, 104], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
    const at = Math.min(0.9999, Math.max(0, t)) * 4, k = Math.floor(at), f = at - k;
    return [0, 1, 2].map(function (i) { return stops[k][i] + f * (stops[k + 1][i] - stops[k][i]); });
  }

  function unpack(entry) {
    return new Promise(function (done, failed) {
      const image = new Image();
      image.onload = function () {
        const canvas = make("canvas");
        canvas.width = image.width; canvas.height = image.height;
        const context = canvas.getContext("2d", { willReadFrequently: true });
        context.drawImage(image, 0, 0);
        const rgba = context.getImageData(0, 0, image.width, image.height).data;
        const gray = new Uint8Array(rgba.length / 4);
        for (let i = 0; i < gray.length; i++) gray[i] = rgba[4 * i];
        done({ gray: gray, width: image.width, entry: entry });
      };
      image.onerror = failed;
      image.src = entry.png;
    });
  }

  function at(volume, x, y, z) {
    const s = volume.entry.shape, per = volume.entry.perRow;
    return volume.gray[(Math.floor(z / per) * s[1] + y) * volume.width + (z % per) * s[0] + x];
  }

  // Which axes run right and up in each plane, and which is cut. Axis 0 is mirrored: the patient's right is shown on the
  // left, as radiologists look at it.
  const PLANES = { axial: [0, 1, 2], coronal: [0, 2, 1], sagittal: [1, 2, 0] };

  function start(section) {
    const data = JSON.parse(document.getElementById(section.dataset.source).textContent);
    const controls = section.querySelector(".controls"), caption = section.querySelector(".caption");
    const panes = section.querySelector(".panes");
    const ready = {};
    let plane = "axial", place = [0.5, 0.5, 0.5], from = "", token = 0, shown = null;

    const selects = data.choices.map(function (choice) {
      const label = make("label", "field", choice.name), select = make("select");
      choice.options.forEach(function (option, i) { const o = make("option", "", option); o.value = String(i); select.append(o); });
      select.addEventListener("change", choose);
      label.append(select); controls.append(label);
      return select;
    });
    const planeLabel = make("label", "field", "plane"), planeSelect = make("select");
    Object.keys(PLANES).forEach(function (name) { planeSelect.append(make("option", "", name)); });
    planeSelect.addEventListener("change", function () { plane = planeSelect.value; reset(); draw(); });
    planeLabel.append(planeSelect); controls.append(planeLabel);
    const sliceLabel = make("label", "field"), sliceText = make("span", "", "slice"), slider = make("input");
    slider.type = "range"; slider.min = "0";
    slider.addEventListener("input", function () {
      const axis = PLANES[plane][2];
      place[axis] = (Number(slider.value) + 0.5) / (Number(slider.max) + 1); draw();
    });
    sliceLabel.append(sliceText, slider); controls.append(sliceLabel);
    const scale = make("div", "scale"), bar = make("canvas"), most = make("span", "", "");
    bar.width = 150; bar.height = 1;
    const ctx = bar.getContext("2d");
    for (let i = 0; i < 150; i++) { const c = heat(i / 149); ctx.fillStyle = "rgb(" + c.map(Math.round).join(",") + ")"; ctx.fillRect(i, 0, 1, 1); }
    scale.append(make("span", "", "error 0"), bar, most); controls.append(scale);

    function options(scene) { return scene.options; }
    function chosen() { return selects.map(function (s, i) { return data.choices[i].options[Number(s.value)]; }); }
    function exists(prefix) { return data.scenes.some(function (s) { return prefix.every(function (v, i) { return s.options[i] === v; }); }); }

    // Later selectors offer only what exists for the earlier ones.
    function choose() {
      const wanted = [];
      selects.forEach(function (select, i) {
        Array.from(select.options).forEach(function (o, k) {
          const there = exists(wanted.concat([data.choices[i].options[k]]));
          o.disabled = !there; o.hidden = !there;
        });
        if (select.selectedOptions.length === 0 || select.selectedOptions[0].disabled) {
          const free = Array.from(select.options).filter(function (o) { return !o.disabled; });
          select.value = free[free.length - 1].value;
        }
        wanted.push(data.choices[i].options[Number(select.value)]);
      });
      const now = chosen();
      const scene = data.scenes.find(function (s) { return options(s).every(function (v, i) { return v === now[i]; }); });
      caption.textContent = scene.caption;
      const mine = ++token;
      const names = new Set();
      scene.panes.forEach(function (p) { [p.name, p.minus, p.inside].forEach(function (n) { if (n) names.add(n); }); });
      Promise.all(Array.from(names).map(function (name) {
        if (!ready[name]) ready[name] = unpack(data.volumes[name]).then(function (v) { ready[name].value = v; return v; });
        return ready[name];
      })).then(function () { 
        if (mine !== token) return;
        shown = scene;
        if (from !== String(scene.place)) { from = String(scene.place); place = scene.place.slice(); }
        build(); reset(); draw();
      },
      function () { caption.textContent = "A picture could not be decoded."; });
    }

    function build() {
      panes.replaceChildren();
      shown.canvases = shown.panes.map(function (pane) {
        const figure = make("figure", "pane"), title = make("figcaption", "", pane.title), canvas = make("canvas");
        canvas.setAttribute("role", "img"); canvas.setAttribute("aria-label", pane.title);
        canvas.addEventListener("pointerdown", function (event) {
          const box = canvas.getBoundingClientRect(), axes = PLANES[plane];
          const across = Math.min(0.999, Math.max(0.001, (event.clientX - box.left) / box.width));
          place[axes[0]] = axes[0] === 0 ? 1 - across : across;
          place[axes[1]] = 1 - Math.min(0.999, Math.max(0.001, (event.clientY - box.top) / box.height));
        });
        canvas.addEventListener("wheel", function (event) {
          if (!event.shiftKey) return;
          event.preventDefault(); slider.value = String(Number(slider.value) + Math.sign(event.deltaY || event.deltaX));
          slider.dispatchEvent(new Event("input"));
        }, { passive: false });
        figure.append(title, canvas, make("span", "small", pane.note)); panes.append(figure);
        return canvas;
      });
    }

    function reset() {
      const shape = data.volumes[shown.panes[0].name].shape, axis = PLANES[plane][2];
      slider.max = String(shape[axis] - 1);
      slider.value = String(Math.min(shape[axis] - 1, Math.floor(place[axis] * shape[axis])));
    }

    function draw() {
      const k = Number(slider.value);
      sliceText.textContent = "slice " + (k + 1) + " of " + (Number(slider.max) + 1);
      let limit = "";
      shown.panes.forEach(function (pane, i) {
        const volume = ready[pane.name].value, minus = pane.minus ? ready[pane.minus].value : null;
        const inside = pane.inside ? ready[pane.inside].value : null;
        const entry = volume.entry, axes = PLANES[plane], w = entry.shape[axes[0]], h = entry.shape[axes[1]];
        const raw = make("canvas"); raw.width = w; raw.height = h;
        const rawContext = raw.getContext("2d"), pixels = rawContext.createImageData(w, h), p = [0, 0, 0];
        p[axes[2]] = k;
        for (let v = 0; v < h; v++) for (let u = 0; u < w; u++) {
          p[axes[0]] = axes[0] === 0 ? w - 1 - u : u; p[axes[1]] = h - 1 - v;
          const value = at(volume, p[0], p[1], p[2]), o = 4 * (v * w + u);
          let color = [value, value, value];
          if (minus) {
            let apart = Math.abs(value - at(minus, p[0], p[1], p[2])) / 255 * 2;
            if (inside && at(inside, p[0], p[1], p[2]) === 0) apart = 0;
            color = heat(apart);
          }
          pixels.data[o] = color[0]; pixels.data[o + 1] = color[1]; pixels.data[o + 2] = color[2]; pixels.data[o + 3] = 255;
        }
        if (minus) limit = "≥ " + ((entry.high - entry.low) / 2).toPrecision(2);
        rawContext.putImageData(pixels, 0, 0);
        const canvas = shown.canvases[i], wide = w * entry.spacing[axes[0]], tall = h * entry.spacing[axes[1]];
        canvas.width = 400; canvas.height = Math.max(1, Math.round(400 * tall / wide));
        const context = canvas.getContext("2d");
        context.imageSmoothingEnabled = true; context.imageSmoothingQuality = "high";
        context.drawImage(raw, 0, 0, canvas.width, canvas.height);
      });
      most.textContent = limit; scale.hidden = limit === "";
    }
    choose();
  }

  document.querySelectorAll(".viewer").forEach(start);
})();
