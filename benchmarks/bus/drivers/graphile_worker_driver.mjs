// graphile-worker at the settings of its own performance page: localQueue 500, batched completion,
// 24 concurrent jobs (https://worker.graphile.org/docs/performance).

import { load, main } from "./protocol.mjs";

const { Logger, makeWorkerUtils, run, runMigrations } = await load("graphile-worker");
const TASK = "noop";
const logger = new Logger(() => () => {});
let utils;

const preset = (dsn) => ({
  worker: {
    connectionString: dsn,
    concurrentJobs: 24,
    maxPoolSize: 25,
    localQueue: { size: 500 },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
    logger,
  },
});

await main({
  setup: (dsn) => runMigrations({ preset: preset(dsn) }),

  open: async (dsn) => {
    utils = await makeWorkerUtils({ preset: preset(dsn) });
  },
  close: () => utils.release(),
  many: (payloads) => utils.addJobs(payloads.map((payload) => ({ identifier: TASK, payload }))),
  one: (payload) => utils.addJob(TASK, payload),

  work: async (dsn, seen, ready, stop) => {
    const handle = async (payload) => seen(payload.n);
    const runner = await run({ preset: preset(dsn), taskList: { [TASK]: handle }, noHandleSignals: true });
    ready();
    await stop;
    await runner.stop();
  },
});
