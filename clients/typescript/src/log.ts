import { object, optionalFunction } from "./check.js";

/** What is logged beside the text. */
export type LogFields = Record<string, unknown>;

/** Takes the log of the client. What is missing is not logged. */
export interface Logger {
  /** What developers of the client want to know. */
  debug?(message: string, fields: LogFields): void;
  /** A leadership that is won or given up. */
  info?(message: string, fields: LogFields): void;
  /** A leadership that is lost or in jeopardy, and what has to be tried again. */
  warn?(message: string, fields: LogFields): void;
  /** A problem that an operator has to solve. */
  error?(message: string, fields: LogFields): void;
}

/** Warnings and errors go to the console. */
const CONSOLE: Logger = {
  warn: (message, fields) => console.warn(`election agent: ${message}`, fields),
  error: (message, fields) => console.error(`election agent: ${message}`, fields),
};

const LEVELS = ["debug", "info", "warn", "error"] as const;

/**
 * A log that never fails: a log that cannot be written loses no leadership, and hides no loss.
 *
 * @throws ConfigError: a level is no function
 * @internal
 */
export function loggerOf(given: Logger | undefined): Logger {
  const log = given === undefined ? CONSOLE : object(given, "the log");
  for (const level of LEVELS) optionalFunction(log[level], `the log's "${level}"`);
  let told = false;
  const failed = (error: unknown) => {
    if (!told) console.error("election agent: the log has failed", error);
    told = true;
  };
  const put = (level: (typeof LEVELS)[number]) => (message: string, fields: LogFields) => {
    try {
      const result: unknown = log[level]?.(message, fields);
      if (result instanceof Promise) result.catch(failed);
    } catch (error) {
      failed(error);
    }
  };
  return { debug: put("debug"), info: put("info"), warn: put("warn"), error: put("error") };
}
