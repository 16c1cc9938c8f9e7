import { ftruncateSync, openSync, writeSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { UptimeClock, clockOfSystem, systemClock } from "../src/clock-node.js";
import { ComparedClock, isAhead, moment } from "../src/clock.js";
import { Told } from "../src/lead/hooks.js";
import { Shared } from "../src/lead/term.js";
import { Timer } from "../src/lead/timer.js";
import { directory } from "./support.js";

let now = 0;
let wall = 0;

beforeEach(() => {
  now = 5_000;
  wall = 1_700_000_000_000;
  vi.spyOn(performance, "now").mockImplementation(() => now);
  vi.spyOn(Date, "now").mockImplementation(() => wall);
});
afterEach(() => {
  vi.restoreAllMocks();
});

/** A clock with an uptime that the test says. */
function uptimeClock(boot = 1_000_000) {
  const file = openSync(join(directory(), "uptime"), "w+");
  let slept = 0;
  const write = (text: string) => {
    ftruncateSync(file);
    writeSync(file, text, 0);
  };
  const tell = () => write(`${(Math.floor((now + boot + slept) / 10) / 100).toFixed(2)} 123456.78\n`);
  tell();
  const clock = new UptimeClock(file);
  return {
    clock,
    write,
    pass(ms: number, asleep = 0) {
      now += ms;
      slept += asleep;
      tell();
    },
  };
}

describe("Linux's clock", () => {
  test("counts suspension, and steps of the wall clock do not matter", () => {
    const { clock, pass } = uptimeClock();
    const since = moment(clock);
    for (let turn = 0; turn < 50; turn += 1) {
      pass(7);
      expect(clock.now()).toBe(now);
    }
    wall += 3_600_000;
    expect(clock.hasJumped(since)).toBe(false);
    pass(100, 4_000);
    const counted = clock.now() - since.at;
    expect(counted).toBeGreaterThanOrEqual(4_450);
    expect(counted).toBeLessThanOrEqual(4_470);
    expect(clock.asleep()).toBeCloseTo(clock.now() - now);
    expect(clock.isWhole()).toBe(true);
    const before = clock.now();
    pass(1_000);
    expect(clock.now() - before).toBe(1_000);
  });

  test("counts several suspensions, and short ones once they add up", () => {
    const { clock, pass } = uptimeClock();
    const since = clock.now();
    pass(10, 1_000);
    clock.now();
    pass(10, 2_000);
    expect(clock.now() - since).toBeGreaterThanOrEqual(3_020);
    let slept = 0;
    for (let turn = 0; turn < 20; turn += 1) {
      pass(10, 5);
      slept += 5;
      expect(clock.now() - since).toBeGreaterThanOrEqual(3_020 + (turn + 1) * 10 + slept - 20);
    }
    expect(clock.now() - since).toBeLessThanOrEqual(3_220 + 100 + 60);
  });

  test("never goes back", () => {
    const { clock, pass } = uptimeClock();
    let last = clock.now();
    for (let turn = 0; turn < 200; turn += 1) {
      pass(turn % 13, turn % 17 === 0 ? 30 : 0);
      expect(clock.now()).toBeGreaterThanOrEqual(last);
      last = clock.now();
    }
  });

  test.each(["", "garbage", "12", "12.3"])("compares clocks where the uptime is %j", (text) => {
    const { clock, write } = uptimeClock();
    const since = moment(clock);
    write(text);
    now += 1_000;
    wall += 1_000;
    expect(clock.now()).toBe(now);
    expect(clock.isWhole()).toBe(false);
    expect(clock.hasJumped(since)).toBe(false);
    wall += 100;
    expect(clock.hasJumped(since)).toBe(true);
  });

  test("compares clocks where the uptime stands still", () => {
    const { clock } = uptimeClock();
    const since = moment(clock);
    now += 1_000;
    wall += 6_000;
    clock.now();
    expect(clock.isWhole()).toBe(false);
    expect(clock.hasJumped(since)).toBe(true);
  });

  test("is compared with another where there is no uptime", () => {
    expect(clockOfSystem(join(directory(), "none"))).toBeInstanceOf(ComparedClock);
    // It keeps a file open.
    expect(systemClock()).toBe(systemClock());
  });
});

test("the wall clock may be ahead by 1 % and 50 ms", () => {
  expect(isAhead(1_000, 1_060)).toBe(false);
  expect(isAhead(1_000, 1_061)).toBe(true);
  expect(isAhead(1_000, -3_600_000)).toBe(false);
});

test.each(["compared", "uptime"])("a term ends by the clock (%s), whatever timers do", (kind) => {
  const uptime = uptimeClock();
  const clock = kind === "compared" ? new ComparedClock() : uptime.clock;
  const lost: string[] = [];
  const told = new Told({ onLost: (why) => lost.push(why) }, {});
  const who = { kind: "k", election: "e", candidate: "c" };
  const term = new Shared(who, 7, clock.now() + 3_000, moment(clock), 300, clock, told, {}, new Timer(clock));
  expect(term.look()).toBeUndefined();
  uptime.pass(2_699);
  wall += 2_699;
  expect(term.look()).toBeUndefined();
  term.extend(clock.now() + 3_000, moment(clock));
  if (kind === "compared") {
    // Suspended for a second: the monotonic clock has not counted it.
    wall += 1_000;
    expect(term.look()).toBe("ClockJumped");
  } else {
    uptime.pass(0, 2_000);
    expect(term.look()).toBeUndefined();
    uptime.pass(0, 700);
    expect(term.look()).toBe("TermOver");
  }
  // It stays lost.
  term.extend(clock.now() + 60_000, moment(clock));
  expect(term.look()).toBeDefined();
  expect(term.abort.signal.aborted).toBe(true);
});
