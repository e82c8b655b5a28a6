// protocol.py in JavaScript: the same verbs, the same load, the same clock (CLOCK_MONOTONIC in ns).
// A peer is {setup, open, close, many, one, work}; see there.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

export const now = () => Number(process.hrtime.bigint());
export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const say = (message) => process.stdout.write(JSON.stringify(message) + "\n");

/** A package of the peer's own folder: imports look beside the importing file, which is not there. */
export const load = async (name) => {
  const require = createRequire(`${process.env.PEER_HOME}/package.json`);
  return import(pathToFileURL(require.resolve(name)).href);
};

/** Notes the start of every handler: called with the job's number as a handler's first act. */
class Seen {
  constructor(total) {
    this.starts = [];
    this.note = (number) => {
      this.starts.push([number, now()]);
      if (this.starts.length === total) say({ event: "all" });
    };
  }
}

const range = (count, first = 0) => Array.from({ length: count }, (_, n) => ({ n: first + n }));

async function enqueue(peer, { count, batch }) {
  const batches = [];
  for (let n = 0; n < count; n += batch) batches.push(range(Math.min(batch, count - n), n));
  const started = now();
  for (const payloads of batches) await peer.many(payloads);
  say({ event: "end", started, ended: now() });
}

async function single(peer, { count, in_flight }) {
  let next = 0;
  const caller = async () => {
    while (next < count) await peer.one({ n: next++ });
  };
  const started = now();
  await Promise.all(Array.from({ length: in_flight }, caller));
  say({ event: "end", started, ended: now() });
}

async function pace(peer, { count, min_ms, max_ms }) {
  const sent = [];
  for (let n = 0; n < count; n++) {
    await sleep(min_ms + Math.random() * (max_ms - min_ms));
    const called = now();
    await peer.one({ n });
    sent.push([n, called, now()]);
  }
  say({ event: "end", sent });
}

async function work(peer, dsn, options) {
  const seen = new Seen(options.total);
  const stop = new Promise((resolve) => process.stdin.on("end", resolve).on("error", resolve).resume());
  await peer.work(dsn, seen.note, () => say({ event: "ready" }), stop);
  say({ event: "end", starts: seen.starts });
}

const verbs = { enqueue, single, pace };

export async function main(peer) {
  const [verb, dsn, text] = process.argv.slice(2);
  const options = JSON.parse(text);
  if (verb === "setup") {
    await peer.setup(dsn, options.waking);
    say({ event: "end" });
  } else if (verb === "work") {
    await work(peer, dsn, options);
  } else {
    await peer.open(dsn);
    await verbs[verb](peer, options);
    await peer.close();
  }
  process.stdout.write("", () => process.exit(0)); // what a peer left open must not keep the process
}
