// One workload: how it is, how it was, its checkpoints, and what an operator may do with it.
import type { JSX } from 'preact';
import { useState } from 'preact/hooks';
import { workloadPath, type Checkpoint, type LogEvent, type Samples, type Workload } from '../api';
import { bytes, count, duration, percent, rate } from '../format';
import { useLive } from '../live';
import { Card, Fact, Problem, Risk, State, Time, Us, Where } from '../parts/bits';
import { Chart } from '../parts/chart';
import { useLoaded } from '../parts/load';
import { navigate } from '../router';
import { WorkloadActions } from '../actions';
import { LogList } from './log';
import { MovementTable } from './movements';

const WINDOWS: [number, string][] = [[300, '5 min'], [3600, '1 h'], [21600, '6 h'], [86400, '24 h']];
const perSecond = (values: (number | null)[], spans: number[]): (number | null)[] =>
  values.map((value, i) => (value === null ? null : (value * 1000) / (spans[i] || 1000)));

// While the coordinator was away nothing is known: a sample that covers far more than the others
// is preceded by an empty one, so that no line is drawn across.
type Gapped = Record<Exclude<keyof Samples, 'wall_ms' | 'span_ms'>, (number | null)[]> & { wall_ms: number[]; span_ms: number[] };
function withGaps(samples: Samples): Gapped {
  const usual = [...samples.span_ms].sort((a, b) => a - b)[Math.floor(samples.span_ms.length / 2)] ?? 0;
  const out = Object.fromEntries(Object.keys(samples).map((key) => [key, [] as (number | null)[]])) as unknown as Gapped;
  samples.wall_ms.forEach((wall, i) => {
    const span = samples.span_ms[i] ?? 0;
    const gap = span > 4 * usual && i > 0;
    for (const key of Object.keys(samples) as (keyof Samples)[]) {
      const column = out[key] as (number | null)[];
      if (gap) column.push(key === 'wall_ms' ? wall - span / 2 : key === 'span_ms' ? span : null);
      column.push(samples[key][i] ?? 0);
    }
  });
  return out;
}

function Distribution({ samples, target }: { samples: Gapped; target: number }): JSX.Element {
  const values = samples.lag_max_us.filter((value): value is number => value !== null);
  const top = Math.max(target * 1.5, ...values, 1);
  const bins = new Array<number>(24).fill(0);
  for (const value of values) { const i = Math.min(bins.length - 1, Math.floor((value / top) * bins.length)); bins[i] = (bins[i] ?? 0) + 1; }
  const most = Math.max(1, ...bins);
  const sorted = [...values].sort((a, b) => a - b);
  const at = (q: number): number => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? 0;
  const over = values.filter((value) => value > target).length;
  return (
    <>
      <svg class="histogram" viewBox="0 0 240 80" preserveAspectRatio="none" role="img" aria-label={`distribution of the lag: median ${duration(at(0.5))}, 99th percentile ${duration(at(0.99))}`}>
        {bins.map((n, i) => <rect key={i} class={(i + 1) * (top / bins.length) > target ? 'over' : ''} x={i * 10 + 1} width="8" y={80 - (n / most) * 76} height={(n / most) * 76} />)}
        <line class="target" x1={(target / top) * 240} x2={(target / top) * 240} y1="0" y2="80" />
      </svg>
      <p class="note">0 to {duration(top)}. Median {duration(at(0.5))}, p99 {duration(at(0.99))}, worst {duration(at(1))}; {over === 0 ? 'never' : `${over} of ${values.length} reports`} over the target of {duration(target)}.</p>
    </>
  );
}

function Timeline({ list }: { list: Checkpoint[] }): JSX.Element {
  const times = list.map((one) => one.wall_ns / 1e9);
  return <Chart label="kept checkpoints: pause of each" times={times} format={duration} height={150}
    lines={[{ label: 'pause', values: list.map((one) => one.pause_us), colour: 'accent', points: true }]} />;
}

function Checkpoints({ list }: { list: Checkpoint[] }): JSX.Element {
  const [all, setAll] = useState(false);
  const newest = [...list].sort((a, b) => b.seq - a.seq);
  const shown = all ? newest : newest.slice(0, 12);
  return (
    <>
      <div class="scroll" tabIndex={0} role="region" aria-label="Table of kept checkpoints">
        <table><thead><tr><th scope="col">Seq</th><th scope="col">Taken</th><th scope="col" class="right">Pause</th><th scope="col" class="right">Pages changed</th><th scope="col" class="right">Stored</th><th scope="col">Held by</th></tr></thead>
          <tbody>{shown.map((one) => <tr key={one.seq}><th scope="row">@{one.seq}</th><td><Time ns={one.wall_ns} /></td><td class="right"><Us value={one.pause_us} /></td>
            <td class="right">{count(one.pages_changed)} of {count(one.pages_total)}</td><td class="right">{bytes(one.bytes_stored)}</td><td>{one.nodes.join(', ')}</td></tr>)}</tbody></table>
      </div>
      {newest.length > 12 && <button type="button" class="plain" onClick={() => setAll(!all)}>{all ? 'Show the newest 12' : `Show all ${newest.length}`}</button>}
    </>
  );
}

// What its node reports besides: fields that this page does not know show here by their names.
const SHOWN = new Set(['name', 'state', 'node', 'pid', 'incarnation', 'last_captured', 'last_committed', 'lag_us', 'pause', 'pages_written', 'pages_known',
  'pages_zero', 'pages_sent', 'bytes_sent', 'tracker', 'problem', 'standbys', 'memory_bytes', 'interval_us', 'exit_status', 'phases']);
function Others({ status }: { status: Record<string, unknown> }): JSX.Element | null {
  const others = Object.entries(status).filter(([key]) => !SHOWN.has(key));
  if (others.length === 0) return null;
  return <>{others.map(([key, value]) => <Fact key={key} name={key.replaceAll('_', ' ')}>{typeof value === 'object' ? <code>{JSON.stringify(value)}</code> : String(value)}</Fact>)}</>;
}

// Where the pause goes. 64-bit numbers come as text (protobuf's JSON mapping).
const PHASES = ['stop', 'scan', 'copy', 'state', 'resume'] as const;
type Figures = { p50_us?: string; p99_us?: string; max_us?: string };
function Phases({ status }: { status: Record<string, unknown> }): JSX.Element | null {
  const phases = status['phases'] as (Partial<Record<(typeof PHASES)[number], Figures>> & { pages_frozen?: string; pages_concurrent?: string }) | undefined;
  if (!phases) return null;
  const top = Math.max(1, ...PHASES.map((name) => Number(phases[name]?.p99_us ?? 0)));
  return (
    <Card title="Pause by phase" note="last 1,000 checkpoints">
      <div class="scroll" tabIndex={0} role="region" aria-label="Table of the pause by phase">
        <table><thead><tr><th scope="col">Phase</th><th scope="col">p99</th><th scope="col" class="right">p50</th><th scope="col" class="right">p99</th><th scope="col" class="right">max</th></tr></thead>
          <tbody>{PHASES.map((name) => {
            const at = (key: keyof Figures): number => Number(phases[name]?.[key] ?? 0);
            return <tr key={name}><th scope="row">{name}</th><td class="bar"><svg class="meter" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true"><rect class="rail" width="100" height="8" /><rect class="part" width={(at('p99_us') / top) * 100} height="8" /></svg></td>
              <td class="right"><Us value={at('p50_us')} /></td><td class="right"><Us value={at('p99_us')} /></td><td class="right"><Us value={at('max_us')} /></td></tr>;
          })}</tbody></table>
      </div>
      <p class="note">{count(Number(phases.pages_concurrent ?? 0))} pages were copied while the program ran, {count(Number(phases.pages_frozen ?? 0))} while it was stopped.</p>
    </Card>
  );
}

export function WorkloadPage({ name, query }: { name: string; query: URLSearchParams }): JSX.Element {
  const { overview, movements } = useLive();
  const seconds = WINDOWS.find(([s]) => String(s) === query.get('seconds'))?.[0] ?? 300;
  const path = workloadPath(name);
  const { data, error } = useLoaded<Workload>(path, 2000);
  const history = useLoaded<Samples>(`${path}/history?seconds=${seconds}`, seconds > 300 ? 10_000 : 1_000);
  const checkpoints = useLoaded<Checkpoint[]>(`${path}/checkpoints`, 5_000);
  const log = useLoaded<LogEvent[]>(`/api/v1/log?newest=25&workload=${encodeURIComponent(name)}`, 2_000);
  const row = overview?.workloads.find((one) => one.name === name) ?? data;
  if (!row || !data) return error ? <Problem error={error} /> : <p class="waiting">Loading {name}…</p>;
  const samples = history.data && withGaps(history.data);
  const times = samples?.wall_ms.map((ms) => ms / 1000) ?? [];
  const own = movements.filter((one) => one.workload === name);
  const written = data.pages_written || 1;
  return (
    <>
      <div class="title"><h1>{name}</h1><Risk level={row.risk.level} /><WorkloadActions row={row} nodes={overview?.nodes ?? []} /></div>
      {error && <Problem error={error} />}
      {row.risk.reasons.length > 0 && <ul class="reasons" aria-label="Why it is at risk">{row.risk.reasons.map((reason) =>
        <li key={reason.code}><strong>{reason.text}</strong> <span class="note">({reason.code})</span> — <span class="remedy">{reason.remedy}</span></li>)}</ul>}
      <Card title="Now">
        <dl class="facts">
          <Fact name="State"><State row={row} /></Fact>
          <Fact name="Place"><Where row={row} /></Fact>
          <Fact name="Lag"><span data-field="lag"><Us value={row.lag_us} none={row.last_committed === 0} /></span> <span class="note">target {duration(row.lag_target_us)}</span></Fact>
          <Fact name="Committed"><span data-field="committed" data-value={row.last_committed}>@{row.last_committed}</span></Fact>
          <Fact name="Pause">p50 <Us value={row.pause_us.p50} />, p99 <Us value={row.pause_us.p99} />, max <Us value={row.pause_us.max} /></Fact>
          <Fact name="Mode">{row.mode}, every {duration(row.interval_us)} <span class="note">({rate(row.rates.checkpoints_per_s)} committed)</span></Fact>
          <Fact name="PID"><span data-field="pid" data-value={row.pid}>{row.pid || '–'}</span> <span class="note">on {row.node}</span></Fact>
          <Fact name="Incarnation"><span data-field="incarnation" data-value={row.incarnation}>{row.incarnation}</span></Fact>
          <Fact name="Memory">{bytes(row.memory_bytes)}</Fact>
          <Fact name="Tracker">{data.tracker || '–'}</Fact>
          <Fact name="Pages">{count(data.pages_written)} written: {percent(data.pages_known / written)} known, {percent(data.pages_zero / written)} zero, {count(data.pages_sent)} sent ({bytes(data.bytes_sent)})</Fact>
          <Fact name="Command"><code>{data.command.join(' ') || '–'}</code></Fact>
          {data.addresses.length > 0 && <Fact name="Addresses">{data.addresses.join(', ')}</Fact>}
          <Others status={data.status ?? {}} />
        </dl>
        {data.why.length > 0 && <details><summary>Why these nodes</summary><ul class="why">{data.why.map((text) => <li key={text}>{text}</li>)}</ul></details>}
      </Card>
      <div class="windows" role="group" aria-label="Time window">{WINDOWS.map(([s, label]) =>
        <button type="button" key={s} aria-pressed={s === seconds} onClick={() => navigate(`/workloads/${name}${s === 300 ? '' : `?seconds=${s}`}`, true)}>{label}</button>)}</div>
      {history.error && <Problem error={history.error} />}
      {samples && times.length > 1 ? (
        <div class="grid">
          <Card title="Lag"><Chart label={`lag of ${name} over time`} times={times} format={duration} lines={[
            { label: 'lag, worst', values: samples.lag_max_us, colour: 'accent', fill: true },
            { label: 'target', values: times.map(() => row.lag_target_us), colour: 'bad', dash: [5, 4] }]} /></Card>
          <Card title="Pause"><Chart label={`pause of ${name} over time`} times={times} format={duration} lines={[
            { label: 'p50', values: samples.pause_p50_us, colour: 'good' }, { label: 'p99', values: samples.pause_p99_us, colour: 'accent' },
            { label: 'max', values: samples.pause_max_us, colour: 'warn', dash: [2, 3] }]} /></Card>
          <Card title="Pages per second"><Chart label={`pages of ${name} per second`} times={times} format={(value) => count(Math.round(value))} lines={[
            { label: 'written', values: perSecond(samples.pages_written, samples.span_ms), colour: 'muted' }, { label: 'sent', values: perSecond(samples.pages_sent, samples.span_ms), colour: 'accent', fill: true },
            { label: 'known', values: perSecond(samples.pages_known, samples.span_ms), colour: 'good' }, { label: 'zero', values: perSecond(samples.pages_zero, samples.span_ms), colour: 'warn', dash: [2, 3] }]} /></Card>
          <Card title="Lag distribution"><Distribution samples={samples} target={row.lag_target_us} /></Card>
        </div>) : <p class="note">The charts begin with the next reports.</p>}
      <Phases status={data.status ?? {}} />
      <Card title="Kept checkpoints" note={checkpoints.data?.length}>
        {checkpoints.error && <Problem error={checkpoints.error} />}
        {checkpoints.data && checkpoints.data.length > 0 ? <><Timeline list={[...checkpoints.data].sort((a, b) => a.wall_ns - b.wall_ns)} /><Checkpoints list={checkpoints.data} /></> : <p class="note">None yet.</p>}
      </Card>
      {own.length > 0 && <Card title="Migrations and failovers"><MovementTable list={own} /></Card>}
      <Card title="What happened"><LogList list={[...(log.data ?? [])].reverse()} /></Card>
    </>
  );
}
