// pg-boss with batches, several fetchers and LISTEN/NOTIFY (docs: workers, "batchSize",
// "localConcurrency", "burstWhenBatchFull"; queues, "notify").

import { load, main } from "./protocol.mjs";

const { PgBoss } = await load("pg-boss");
const QUEUE = "noop";
let boss;

async function start(dsn, options) {
  const found = new PgBoss({ connectionString: dsn, schedule: false, ...options });
  found.on("error", (error) => process.stderr.write(`${error.stack}\n`));
  await found.start();
  return found;
}

await main({
  setup: async (dsn, waking) => {
    const found = await start(dsn, {});
    await found.createQueue(QUEUE, { notify: waking });
    await found.stop({ graceful: false });
  },

  open: async (dsn) => {
    boss = await start(dsn, { supervise: false });
  },
  close: () => boss.stop({ graceful: false }),
  many: (payloads) => boss.insert(QUEUE, payloads.map((data) => ({ data }))),
  one: (payload) => boss.send(QUEUE, payload),

  work: async (dsn, seen, ready, stop) => {
    const found = await start(dsn, { useListenNotify: true });
    const options = {
      batchSize: 1000,
      localConcurrency: 2,
      burstWhenBatchFull: true,
      pollingIntervalSeconds: 0.5,
    };
    await found.work(QUEUE, options, async (jobs) => {
      for (const job of jobs) seen(job.data.n);
    });
    ready();
    await stop;
    await found.stop({ graceful: false });
  },
});
