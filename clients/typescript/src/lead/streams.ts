import type { Told } from "./hooks.js";
import type { Settings } from "./settings.js";
import { type Joined, LeadStream, type Listener } from "./stream.js";
import type { Shared } from "./term.js";
import type { Timer } from "./timer.js";
import { Alive, type Leads } from "./unary.js";

/** How many elections a stream takes. */
const ELECTIONS = 1_000;
/** For how long no stream is requested again from an agent that offers none, in ms. */
const NOT_OFFERED = 60_000;

/** @internal All streams of an agent: one for up to 1000 elections of a candidate with the same term. */
export class Streams {
  private streams: LeadStream[] = [];
  private notOfferedAt = -Infinity;

  constructor(
    private readonly leads: Leads,
    private readonly deaths: Timer,
    private readonly wanted: boolean,
  ) {}

  /** Whether the agents offer streams, as far as is known, and the caller wants them. */
  areOffered(): boolean {
    return this.wanted && performance.now() - this.notOfferedAt > NOT_OFFERED;
  }

  /** Joins an election by a stream that there is, or by a new one. */
  join(settings: Settings, told: Told, listener: Listener, term: Shared | undefined): Joined {
    const { alive } = told.hooks;
    this.streams = this.streams.filter(({ over }) => !over);
    // The application gates the pings: of its own elections only.
    const fitting =
      alive === undefined
        ? this.streams.find(
            ({ candidate, term: of, size }) => candidate === settings.candidate && of === settings.term && size < ELECTIONS,
          )
        : undefined;
    const stream = fitting ?? this.begin(settings, new Alive(alive), alive === undefined);
    return stream.add(settings, told, listener, term);
  }

  private begin({ candidate, term }: Settings, alive: Alive, shared: boolean): LeadStream {
    const notOffered = () => {
      this.notOfferedAt = performance.now();
    };
    const stream = new LeadStream(this.leads, this.deaths, candidate, term, alive, notOffered);
    if (shared) this.streams.push(stream);
    return stream;
  }
}
