/** What is logged beside the text. */
export type LogFields = Record<string, unknown>;

/** Takes the log of the client. What is missing is not logged. */
export interface Logger {
  debug?(message: string, fields: LogFields): void;
  info?(message: string, fields: LogFields): void;
  warn?(message: string, fields: LogFields): void;
  error?(message: string, fields: LogFields): void;
}

/** @internal Warnings and errors go to the console. */
export const CONSOLE: Logger = {
  warn: (message, fields) => console.warn(`election agent: ${message}`, fields),
  error: (message, fields) => console.error(`election agent: ${message}`, fields),
};
