// CLOCK_BOOTTIME in ns, which Node.js cannot read. /proc/uptime tells it, cut to 10 ms: each look at it, and at the
// monotonic clock before and after, says between what the difference of the two clocks is. A few looks around a change
// of what is told find it to a tenth of a millisecond. Where the clocks part, which a suspension does, it is found
// anew.
import { openSync, readSync } from "node:fs";

const RESOLUTION = 10_000_000n;
const EXACT = 100_000n;
const file = openSync("/proc/uptime", "r");
const buffer = Buffer.alloc(64);

function uptime() {
  const text = buffer.toString("latin1", 0, readSync(file, buffer, 0, buffer.length, 0));
  const [, seconds, hundredths] = /^(\d+)\.(\d\d)/.exec(text);
  return BigInt(seconds) * 1_000_000_000n + BigInt(hundredths) * RESOLUTION;
}

function bounds() {
  const before = process.hrtime.bigint();
  const read = uptime();
  const after = process.hrtime.bigint();
  return { least: read - after, most: read + RESOLUTION - before };
}

function find() {
  let { least, most } = bounds();
  while (most - least > EXACT) {
    const found = bounds();
    if (found.least > least) least = found.least;
    if (found.most < most) most = found.most;
  }
  return (least + most) / 2n;
}

let offset = find();

/** The present instant. */
export function now() {
  const { least, most } = bounds();
  if (offset < least - EXACT || offset > most + EXACT) offset = find();
  return process.hrtime.bigint() + offset;
}
