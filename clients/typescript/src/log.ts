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
  /** What somebody has to see to. */
  error?(message: string, fields: LogFields): void;
}

/** @internal Warnings and errors go to the console. */
export const CONSOLE: Logger = {
  warn: (message, fields) => console.warn(`election agent: ${message}`, fields),
  error: (message, fields) => console.error(`election agent: ${message}`, fields),
};
