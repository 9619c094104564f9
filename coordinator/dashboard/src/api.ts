// The coordinator's API (docs/api.md): types, and requests that carry the CSRF token.

export interface Reason { code: string; text: string; remedy: string }
export type RiskLevel = 'none' | 'watch' | 'high' | 'lost';
export interface Copy { node: string; connected: boolean; last_committed: number; problem: string }
export interface Handover { kind: string; wall_ns: number; text: string }
export interface Row {
  name: string; state: string; node: string; pid: number; standbys: string[]; mode: string;
  incarnation: number; last_captured: number; last_committed: number; lag_us: number;
  interval_us: number; pause_us: { p50: number; p99: number; max: number }; problem: string;
  stale: boolean; memory_bytes: number; standby_copies: Copy[]; lag_target_us: number;
  rates: { checkpoints_per_s: number; pages_written_per_s: number; bytes_sent_per_s: number };
  known_share: number | null; risk: { level: RiskLevel; reasons: Reason[] };
  last_handover: Handover | null; spark?: number[];
}
export interface Node {
  name: string; state: string; address: string; arch: string; kernel: string; cpus: number;
  memory_bytes: number; memory_free_bytes: number; disk_free_bytes: number; store_bytes: number;
  last_seen_us_ago: number; workloads: string[]; standby_for: string[]; version: string;
}
export interface Overview { number: number; wall_ns: number; workloads: Row[]; nodes: Node[] }
export interface Workload extends Row {
  origin: string; command: string[]; tracker: string; addresses: string[]; why: string[];
  pages_written: number; pages_known: number; pages_zero: number; pages_sent: number;
  bytes_sent: number; exit_status: number; status: Record<string, unknown>;
}
export interface Checkpoint {
  workload: string; seq: number; incarnation: number; wall_ns: number; pause_us: number;
  pages_changed: number; pages_total: number; bytes_stored: number; nodes: string[];
}
export interface Samples {
  wall_ms: number[]; span_ms: number[]; lag_us: number[]; lag_max_us: number[];
  pause_p50_us: number[]; pause_p99_us: number[]; pause_max_us: number[]; committed: number[];
  pages_written: number[]; pages_known: number[]; pages_zero: number[]; pages_sent: number[];
  bytes_sent: number[];
}
export interface Report {
  pause_us: number; total_ms: number; bytes_sent: number; pages_sent: number; pages_known: number;
  rounds: number; strategy: string; from: string; to: string; seq: number; incarnation: number;
  pid: number; converged: boolean;
}
export interface Movement {
  id: number; workload: string; kind: string; from: string; to: string; who: string;
  started_wall_ns: number; ended_wall_ns: number; phase: string; round: number;
  bytes_done: number; bytes_left: number; rate_bytes_per_s: number; eta_us: number;
  phases: { name: string; after_us: number }[]; problem: string; report: Report | null;
  restore?: { pid: number; total_ms: number; seq: number; pages: number; lost_us: number };
}
export interface LogEvent {
  id: number; wall_ns: number; kind: string; workload: string; node: string; text: string; who: string;
}
export interface AuditEntry {
  id: number; wall_ns: number; who: string; from: string; via: string; action: string;
  target: string; detail: string; outcome: string; problem: string; begun_id: number;
}
export interface Session {
  who: string; role: string; name: string; by_certificate: boolean; csrf: string; may: string[];
  cluster: string; version: string;
}

export class ApiError extends Error {
  constructor(readonly status: number, message: string, readonly hint: string) { super(message); }
}

let session: Session | null = null;
export const setSession = (value: Session | null): void => { session = value; };
export const may = (http: string): boolean => session?.may.includes(http) ?? false;

async function request<T>(method: string, path: string, body?: unknown): Promise<T> {
  const headers: Record<string, string> = { Accept: 'application/json' };
  if (method === 'POST') {
    headers['Content-Type'] = 'application/json';
    if (session) headers['X-Baton-CSRF'] = session.csrf;
  }
  let response: Response;
  try {
    response = await fetch(path, { method, headers, body: method === 'POST' ? JSON.stringify(body ?? {}) : undefined });
  } catch {
    throw new ApiError(0, 'the coordinator does not answer', 'Check that it runs and can be reached.');
  }
  const text = await response.text();
  let json: unknown = null;
  try { json = JSON.parse(text); } catch { /* not JSON: an error of something in between */ }
  if (!response.ok) {
    const error = (json as { error?: { message?: string; hint?: string } } | null)?.error;
    throw new ApiError(response.status, error?.message ?? `the answer was ${response.status}`, error?.hint ?? '');
  }
  return json as T;
}
export const get = <T>(path: string): Promise<T> => request<T>('GET', path);
export const post = <T>(path: string, body?: unknown): Promise<T> => request<T>('POST', path, body);
export const workloadPath = (name: string): string => `/api/v1/workloads/${encodeURIComponent(name)}`;
