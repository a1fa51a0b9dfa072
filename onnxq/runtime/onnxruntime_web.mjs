// Models in onnxruntime-web; what the backend of that name asks of its page.
import * as ort from "/ort/ort.wasm.min.mjs";

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, float16: Uint16Array, bool: Uint8Array,
  int8: Int8Array, int16: Int16Array, int32: Int32Array, int64: BigInt64Array,
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, uint64: BigUint64Array,
};
const sessions = new Map();

function tensor({ type, dims, base64 }) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  return new ort.Tensor(type, new ARRAYS[type](bytes.buffer), dims);
}

function tensors(feeds) {
  return Object.fromEntries(Object.entries(feeds).map(([name, value]) => [name, tensor(value)]));
}

function plain({ type, dims, data }) {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  let text = "";
  for (let at = 0; at < bytes.length; at += 32768) {
    text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  }
  return { type, dims, base64: btoa(text) };
}

globalThis.onnxq = {
  version: ort.env.versions.web,

  async load({ name, threads }) {
    ort.env.wasm.numThreads = threads;
    ort.env.logLevel = "fatal";
    const model = new Uint8Array(await (await fetch(`/models/${name}`)).arrayBuffer());
    const options = { executionProviders: ["wasm"], graphOptimizationLevel: "all" };
    sessions.set(name, await ort.InferenceSession.create(model, options));
  },

  async run({ name, feeds, outputs }) {
    const found = await sessions.get(name).run(tensors(feeds), outputs);
    return Object.fromEntries(Object.entries(found).map(([key, value]) => [key, plain(value)]));
  },

  async release(name) {
    await sessions.get(name)?.release();
    sessions.delete(name);
  },

  // As onnxq.runtime.timing does it: rounds in which each model has a slot, beginning with another
  // one each time. Gives seconds per inference, [rounds][models], and the inferences of a slot.
  async time({ names, feeds, warmup, longestWarmup, slot, rounds, fewest, seconds }) {
    const jobs = names.map((name, at) => [sessions.get(name), tensors(feeds[at])]);
    const repeats = [];
    for (const [session, fed] of jobs) {
      let shortest = Infinity;
      const end = performance.now() + longestWarmup * 1e3;
      for (let count = 0; count < warmup && (!count || performance.now() <= end); count++) {
        const start = performance.now();
        await session.run(fed);
        shortest = Math.min(shortest, (performance.now() - start) / 1e3);
      }
      repeats.push(Math.max(1, Math.ceil(slot / Math.max(shortest, 1e-6))));
    }
    const times = [];
    const end = performance.now() + seconds * 1e3;
    while (times.length < fewest || (rounds === null && performance.now() < end)) {
      const row = new Array(jobs.length);
      for (let position = 0; position < jobs.length; position++) {
        const at = (position + times.length) % jobs.length;
        const [session, fed] = jobs[at];
        const start = performance.now();
        for (let count = 0; count < repeats[at]; count++) await session.run(fed);
        row[at] = (performance.now() - start) / 1e3 / repeats[at];
      }
      times.push(row);
    }
    return { times, repeats };
  },
};
