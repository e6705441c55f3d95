// Draws the tiles of a grid with a WebGL2 shader, or without a graphics card by table look-up.

import { colour, css, curves, tones } from "./pixels.js";
import { context2d, page } from "./shared.js";

/** ``channels`` is 1 for values, and 1 or 3 for colours around grey; ``fresh`` are the channels that the texture lacks.
 * @typedef {{kind: "map" | "signed", count: number, h: number, w: number, channels: number, data: Uint8Array,
 *   have: Uint8Array, low: Float32Array, high: Float32Array, texture?: WebGLTexture | null, fresh: Set<number>,
 *   plots: boolean, ends?: [number, number]}} Tiles */
/** In pixels of the canvas.
 * @typedef {{channel: number, x: number, y: number, width: number, height: number}} Place */
/** @typedef {{table: Uint32Array<ArrayBuffer>, shared: boolean, contrast: number}} Look */
/** @typedef {{gl: WebGL2RenderingContext, canvas: HTMLCanvasElement, layers: number, side: number,
 *   at(uniform: string): WebGLUniformLocation | null}} Shader */
/** The members of the tiles that the scale reads.
 * @typedef {Pick<Tiles, "kind" | "count" | "have" | "low" | "high" | "ends">} Scaled */

/** For each channel, the factor and the shift from its bytes to the scale on which it is shown.
 * @param {Scaled} tiles @param {boolean} shared @returns {(channel: number) => [number, number]} */
export function scaling(tiles, shared) {
  let [low, high] = tiles.ends ?? [Infinity, -Infinity]; // given where several grids share a scale
  for (let k = 0; k < tiles.count; k++) {
    if (!tiles.have[k]) continue;
    low = Math.min(low, tiles.low[k]);
    high = Math.max(high, tiles.high[k]);
  }
  return (channel) => {
    const [own, top] = [tiles.low[channel], tiles.high[channel]];
    if (tiles.kind === "signed") return shared ? [top / (high || 1), 0] : [1, 0];
    // A channel with a single value (after a global pooling) is coloured by its place among all channels.
    if (!shared && own !== top) return [1, 0];
    return [(top - own) / (high - low || 1), (255 * (own - low)) / (high - low || 1)];
  };
}

/** From a byte of a channel to its step on the scale, which may lie outside 0..255.
 * @param {Scaled} tiles @param {Pick<Look, "shared" | "contrast">} look */
export function levels(tiles, { shared, contrast }) {
  const scale = scaling(tiles, shared);
  return (/** @type {number} */ channel) => {
    const [factor, shift] = scale(channel);
    return tiles.kind === "signed"
      ? (/** @type {number} */ byte) => 128 + (byte - 128) * contrast * factor
      : (/** @type {number} */ byte) => factor * byte + shift;
  };
}

/** Paint by table look-up, on the 2D canvas.
 * @param {CanvasRenderingContext2D} context @param {Tiles} tiles @param {Place[]} places @param {Look} look */
export function paintByTable(context, tiles, places, look) {
  const { h, w, channels } = tiles;
  const level = levels(tiles, look);
  const size = h * w * channels;
  const across = Math.ceil(Math.sqrt(places.length)) || 1;
  const image = new ImageData(across * w, Math.max(1, Math.ceil(places.length / across)) * h);
  places.forEach(({ channel }, place) => {
    const own = tones(level(channel), tiles.kind === "signed" ? undefined : look.table);
    const [top, left] = [Math.floor(place / across) * h, (place % across) * w];
    colour(image, top, left, tiles.data.subarray(channel * size, (channel + 1) * size), [h, w, channels], own);
  });
  page.native ??= document.createElement("canvas");
  const native = page.native;
  native.width = image.width;
  native.height = image.height;
  context2d(native).putImageData(image, 0, 0);
  context.imageSmoothingEnabled = places.length > 0 && places[0].width < w;
  // "high" averages enough pixels for halving and beyond.
  context.imageSmoothingQuality = places.length > 0 && 2 * places[0].width < w ? "high" : "low";
  places.forEach(({ x, y, width, height }, place) => {
    context.drawImage(native, (place % across) * w, Math.floor(place / across) * h, w, h, x, y, width, height);
  });
}

/** Paint signals as curves.
 * @param {CanvasRenderingContext2D} context @param {Tiles} tiles @param {Place[]} places @param {Look} look */
export function paintCurves(context, tiles, places, look) {
  const size = tiles.w * tiles.channels;
  const signed = tiles.kind === "signed";
  const own = levels(tiles, look);
  const colours = Array.from(look.table, css);
  for (const { channel, ...box } of places) {
    const step = own(channel);
    const level = (/** @type {number} */ byte) => step(byte) / 255;
    const ink = (/** @type {number} */ byte) => colours[Math.round(255 * Math.min(1, Math.max(0, level(byte))))];
    context.fillStyle = "rgba(128,128,128,0.12)";
    context.fillRect(box.x, box.y, box.width, box.height);
    const base = signed ? (tiles.channels === 1 ? 128 / 255 : null) : 0;
    const data = tiles.data.subarray(channel * size, (channel + 1) * size);
    curves(context, box, data, tiles.channels, level, base, signed ? null : ink);
  }
}

const VERTEX = `#version 300 es
in vec4 place;  // left, top, width, height in pixels of the canvas
in vec3 source; // channel, factor, shift
uniform vec2 canvas;
out vec2 at;
flat out vec3 tile;
void main() {
  at = vec2(gl_VertexID & 1, gl_VertexID >> 1);
  tile = source;
  vec2 corner = (place.xy + at * place.zw) / canvas;
  gl_Position = vec4(2.0 * corner.x - 1.0, 1.0 - 2.0 * corner.y, 0.0, 1.0);
}`;
const FRAGMENT = `#version 300 es
precision highp float;
precision highp sampler2DArray;
in vec2 at;
flat in vec3 tile;
uniform sampler2DArray bytes;
uniform sampler2D table;
uniform vec2 size;      // of a tile, in texels
uniform vec2 footprint; // of a pixel of the canvas, in texels
uniform ivec2 samples;  // that are averaged along each side of it
uniform float contrast;
uniform bool signed_;
uniform bool grey;
out vec4 colour;
void main() {
  vec3 sum = vec3(0.0);
  for (int i = 0; i < samples.x; i++)
    for (int j = 0; j < samples.y; j++) {
      vec2 inside = at * size + footprint * ((vec2(i, j) + 0.5) / vec2(samples) - 0.5);
      ivec2 texel = ivec2(clamp(floor(inside), vec2(0.0), size - 1.0));
      vec3 steps = 255.0 * texelFetch(bytes, ivec3(texel, int(tile.x)), 0).rgb;
      if (signed_) sum += clamp(128.0 + ((grey ? steps.rrr : steps) - 128.0) * contrast * tile.y, 0.0, 255.0) / 255.0;
      else sum += texelFetch(table, ivec2(int(clamp(tile.y * steps.r + tile.z, 0.0, 255.0) + 0.5), 0), 0).rgb;
    }
  colour = vec4(sum / float(samples.x * samples.y), 1.0);
}`;

/** The page's one WebGL2 program for all its grids (a page may have only a few contexts); null where there is none,
 * or none that is quicker than the table. @returns {Shader | null} */
function shader() {
  if (page.shader !== undefined) return page.shader?.gl.isContextLost() ? null : page.shader;
  page.shader = null;
  const canvas = document.createElement("canvas");
  const gl = canvas.getContext("webgl2", { failIfMajorPerformanceCaveat: !page.forceShader, antialias: false });
  if (!gl) return null;
  // A shader in software takes several times as long as the table; tests use it anyway.
  const renderer = gl.getParameter(
    gl.getExtension("WEBGL_debug_renderer_info")?.UNMASKED_RENDERER_WEBGL ?? gl.RENDERER,
  );
  if (/swiftshader|llvmpipe|softpipe|software|basic render/i.test(renderer) && !page.forceShader) return null;
  const program = /** @type {WebGLProgram} */ (gl.createProgram());
  for (const [type, source] of /** @type {[number, string][]} */ ([
    [gl.VERTEX_SHADER, VERTEX],
    [gl.FRAGMENT_SHADER, FRAGMENT],
  ])) {
    const part = /** @type {WebGLShader} */ (gl.createShader(type));
    gl.shaderSource(part, source);
    gl.compileShader(part);
    gl.attachShader(program, part);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) return null;
  gl.useProgram(program);
  gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
  for (const [name, length, offset] of /** @type {[string, number, number][]} */ ([
    ["place", 4, 0],
    ["source", 3, 16],
  ])) {
    const location = gl.getAttribLocation(program, name);
    gl.enableVertexAttribArray(location);
    gl.vertexAttribPointer(location, length, gl.FLOAT, false, 28, offset);
    gl.vertexAttribDivisor(location, 1);
  }
  gl.activeTexture(gl.TEXTURE1);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
  gl.activeTexture(gl.TEXTURE0);
  const at = (/** @type {string} */ name) => gl.getUniformLocation(program, name);
  gl.uniform1i(at("table"), 1);
  page.shader = {
    gl,
    canvas,
    at,
    layers: gl.getParameter(gl.MAX_ARRAY_TEXTURE_LAYERS),
    side: gl.getParameter(gl.MAX_TEXTURE_SIZE),
  };
  return page.shader;
}

/** Paint with the shader: each tile goes to the graphics card once, and a change of colours is a single call.
 * @param {CanvasRenderingContext2D} context @param {Tiles} tiles @param {Place[]} places @param {Look} look
 * @returns {boolean} false where that is impossible */
function paintByShader(context, tiles, places, { table, shared, contrast }) {
  const made = shader();
  if (!made || tiles.count > made.layers || Math.max(tiles.h, tiles.w) > made.side || !places.length) return false;
  const { gl, canvas, at } = made;
  const { h, w, channels } = tiles;
  const format = channels === 1 ? gl.RED : gl.RGB;
  if (!tiles.texture) {
    tiles.texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D_ARRAY, tiles.texture);
    gl.texStorage3D(gl.TEXTURE_2D_ARRAY, 1, channels === 1 ? gl.R8 : gl.RGB8, w, h, tiles.count);
    gl.texParameteri(gl.TEXTURE_2D_ARRAY, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D_ARRAY, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    if (gl.getError() === gl.OUT_OF_MEMORY) {
      page.shader = null; // from now on, use the table
      return false;
    }
    tiles.fresh = new Set([...tiles.have.keys()].filter((k) => tiles.have[k]));
  }
  gl.bindTexture(gl.TEXTURE_2D_ARRAY, tiles.texture);
  const size = h * w * channels;
  for (const k of tiles.fresh)
    gl.texSubImage3D(
      gl.TEXTURE_2D_ARRAY,
      0,
      0,
      0,
      k,
      w,
      h,
      1,
      format,
      gl.UNSIGNED_BYTE,
      tiles.data.subarray(k * size, (k + 1) * size),
    );
  tiles.fresh.clear();

  canvas.width = context.canvas.width;
  canvas.height = context.canvas.height;
  gl.viewport(0, 0, canvas.width, canvas.height);
  gl.clear(gl.COLOR_BUFFER_BIT);
  gl.activeTexture(gl.TEXTURE1);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, 256, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(table.buffer));
  gl.activeTexture(gl.TEXTURE0);
  const { width, height } = places[0];
  const footprint = [w / width, h / height];
  gl.uniform2f(at("canvas"), canvas.width, canvas.height);
  gl.uniform2f(at("size"), w, h);
  gl.uniform2f(at("footprint"), footprint[0], footprint[1]);
  // 8 by 8 at most: a tile that is drawn even smaller was sent smaller, too.
  const [right, down] = footprint.map((texels) => Math.min(8, Math.max(1, Math.ceil(texels))));
  gl.uniform2i(at("samples"), right, down);
  gl.uniform1f(at("contrast"), contrast);
  gl.uniform1i(at("signed_"), Number(tiles.kind === "signed"));
  gl.uniform1i(at("grey"), Number(channels === 1));
  const scale = scaling(tiles, shared);
  const instances = new Float32Array(7 * places.length);
  places.forEach((p, i) => {
    instances.set([p.x, p.y, p.width, p.height, p.channel, ...scale(p.channel)], 7 * i);
  });
  gl.bufferData(gl.ARRAY_BUFFER, instances, gl.STREAM_DRAW);
  gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, places.length);
  context.drawImage(canvas, 0, 0);
  return true;
}

/** @param {CanvasRenderingContext2D} context @param {Tiles} tiles @param {Place[]} places @param {Look} look */
export function paint(context, tiles, places, look) {
  if (tiles.plots) {
    paintCurves(context, tiles, places, look);
    return "curves";
  }
  const byShader = paintByShader(context, tiles, places, look);
  if (!byShader) paintByTable(context, tiles, places, look);
  return byShader ? "webgl2" : "table";
}

/** Free the texture of tiles that are no longer drawn. @param {Tiles | undefined} tiles */
export function release(tiles) {
  if (tiles?.texture) page.shader?.gl.deleteTexture(tiles.texture);
  if (tiles) tiles.texture = null;
}
