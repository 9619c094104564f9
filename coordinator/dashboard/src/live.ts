// What the coordinator tells by itself: one event stream, shared by all pages. When it falls
// silent the last figures stay, and say how old they are.
import { useEffect, useState } from 'preact/hooks';
import { get, type LogEvent, type Movement, type Overview } from './api';

export type Connection = 'connecting' | 'live' | 'stale' | 'lost';
export interface Live {
  overview: Overview | null;
  receivedMs: number;            // by this browser's clock
  connection: Connection;
  movements: Movement[];
  log: LogEvent[];               // newest first, since the page was opened
  sparks: Map<string, number[]>;
}

const STALE_AFTER_MS = 3_000;
const RECONNECT_AFTER_MS = 12_000;   // silence: the server pings every 10 s
const RETRY_MS = [500, 1_000, 2_000, 5_000];
const SPARK_POINTS = 60;
const LOG_ENTRIES = 200;

export const live: Live = {
  overview: null, receivedMs: 0, connection: 'connecting', movements: [], log: [], sparks: new Map(),
};
const listeners = new Set<() => void>();
const changed = (): void => { for (const listener of listeners) listener(); };

export function useLive(): Live {
  const [, redraw] = useState(0);
  useEffect(() => {
    const listener = (): void => redraw((n) => n + 1);
    listeners.add(listener);
    return () => { listeners.delete(listener); };
  }, []);
  return live;
}

let source: EventSource | null = null;
let heardMs = 0;
let tries = 0;
let refused: () => void = () => undefined;

function take(overview: Overview): void {
  for (const row of overview.workloads) {
    const spark = row.spark ?? [...(live.sparks.get(row.name) ?? []), row.lag_us];
    live.sparks.set(row.name, spark.slice(-SPARK_POINTS));
  }
  const names = new Set(overview.workloads.map((row) => row.name));
  for (const name of live.sparks.keys()) if (!names.has(name)) live.sparks.delete(name);
  live.overview = overview;
  live.receivedMs = Date.now();
  live.connection = 'live';
  changed();
}

async function refresh(): Promise<void> {
  take(await get<Overview>('/api/v1/overview'));
  live.movements = await get<Movement[]>('/api/v1/movements');
  changed();
}

function open(): void {
  source?.close();
  const own = new EventSource('/api/v1/events');
  source = own;
  heardMs = Date.now();
  const on = <T>(kind: string, handle: (data: T) => void): void => {
    own.addEventListener(kind, (event) => {
      heardMs = Date.now();
      tries = 0;
      handle(JSON.parse((event as MessageEvent<string>).data) as T);
    });
  };
  on<Overview>('overview', take);
  on<Movement[]>('movements', (list) => {
    const newest = new Map(list.map((one) => [one.id, one]));
    const known = new Set(live.movements.map((one) => one.id));
    live.movements = [...list.filter((one) => !known.has(one.id)), ...live.movements.map((one) => newest.get(one.id) ?? one)];
    changed();
  });
  on<LogEvent>('log', (event) => { live.log = [event, ...live.log].slice(0, LOG_ENTRIES); changed(); });
  on<object>('gap', () => { void refresh().catch(() => undefined); });
  own.onerror = () => {
    own.close();
    if (source !== own) return;
    live.connection = 'lost';
    changed();
    const pause = RETRY_MS[Math.min(tries, RETRY_MS.length - 1)] ?? 5_000;
    tries += 1;
    setTimeout(() => {
      if (source !== own) return;
      // An ended session answers 401, which an EventSource does not tell.
      get('/api/v1/session').then(open, (error: { status?: number }) => {
        if (error.status === 401) refused(); else if (source === own) own.onerror?.(new Event('error'));
      });
    }, pause);
  };
}

export function startLive(onRefused: () => void): void {
  refused = onRefused;
  void refresh().catch(() => undefined);
  open();
  setInterval(() => {
    const silentMs = Date.now() - live.receivedMs;
    if (live.connection === 'live' && silentMs > STALE_AFTER_MS) live.connection = 'stale';
    if (Date.now() - heardMs > RECONNECT_AFTER_MS && live.connection === 'stale') open();
    if (live.connection !== 'live') changed();   // the age that is shown grows
  }, 1_000);
}
