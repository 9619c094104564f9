// Migrations, failovers and restores: those under way live, those that ended with their report.
import type { JSX } from 'preact';
import { post, may, workloadPath, type LogEvent, type Movement } from '../api';
import { bytes, count, duration } from '../format';
import { useLive } from '../live';
import { Card, Fact, Problem, Time, Us } from '../parts/bits';
import { useLoaded } from '../parts/load';
import { LogList } from './log';

export const outcome = (one: Movement): 'under way' | 'done' | 'failed' => (one.ended_wall_ns === 0 ? 'under way' : one.problem ? 'failed' : 'done');
const SIGN = { 'under way': '…', done: '✓', failed: '✕' } as const;

export function MovementTable({ list }: { list: Movement[] }): JSX.Element {
  if (list.length === 0) return <p class="note">None since the coordinator started.</p>;
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Table of migrations and failovers">
      <table><thead><tr><th scope="col">What</th><th scope="col">From → to</th><th scope="col">Began</th><th scope="col">By</th><th scope="col">Outcome</th><th scope="col" class="right">Pause</th><th scope="col" class="right">Total</th></tr></thead>
        <tbody>{list.map((one) => (
          <tr key={one.id} class={outcome(one).replace(' ', '-')}><th scope="row"><a href={`/movements/${one.id}`}>{one.kind} {one.workload}</a></th><td>{one.from || '–'} → {one.to || 'a standby'}</td>
            <td><Time ns={one.started_wall_ns} /></td><td>{one.who}</td><td><span aria-hidden="true">{SIGN[outcome(one)]} </span>{outcome(one)}{one.ended_wall_ns === 0 && one.phase ? ` (${one.phase})` : ''}</td>
            <td class="right">{one.report ? <Us value={one.report.pause_us} /> : '–'}</td><td class="right">{one.report ? `${one.report.total_ms.toFixed(0)} ms` : '–'}</td></tr>))}</tbody></table>
    </div>
  );
}

// When each phase began, on one axis.
function Axis({ one }: { one: Movement }): JSX.Element | null {
  const last = Math.max(...one.phases.map((phase) => phase.after_us), 1);
  const finished = one.phases.some((phase) => phase.name === 'done');
  const total = finished || !one.ended_wall_ns ? last : Math.max(last, (one.ended_wall_ns - one.started_wall_ns) / 1000);
  if (one.phases.length === 0) return null;
  return (
    <ol class="axis" aria-label="Phases and when each began">
      {one.phases.map((phase, i) => {
        const until = one.phases[i + 1]?.after_us ?? total;
        const left = (phase.after_us / total) * 100;
        const width = Math.max(0.6, ((until - phase.after_us) / total) * 100);
        return (
          <li key={phase.name}>
            <span class="name">{phase.name}</span>
            <svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><rect class="rail" width="100" height="10" /><rect class="part" x={Math.min(left, 99.4)} width={Math.min(width, 100 - Math.min(left, 99.4))} height="10" /></svg>
            <span class="number">+{duration(phase.after_us)}</span><span class="number note">{until > phase.after_us ? duration(until - phase.after_us) : ''}</span>
          </li>);
      })}
    </ol>
  );
}

export function MovementsPage(): JSX.Element {
  const { movements } = useLive();
  return <><h1>Migrations and failovers</h1><Card title="Since the coordinator started" note={movements.length}><MovementTable list={movements} /></Card></>;
}

export function MovementPage({ id }: { id: number }): JSX.Element {
  const { movements } = useLive();
  const loaded = useLoaded<Movement>(`/api/v1/movements/${id}`, 3_000);
  const one = movements.find((item) => item.id === id) ?? loaded.data;
  const log = useLoaded<LogEvent[]>(`/api/v1/log?newest=40&workload=${encodeURIComponent(one?.workload ?? '-')}`, 2_000);
  if (!one) return loaded.error ? <Problem error={loaded.error} /> : <p class="waiting">Loading…</p>;
  const state = outcome(one);
  const total = one.bytes_done + one.bytes_left;
  const report = one.report;
  const since = log.data?.filter((event) => event.wall_ns >= one.started_wall_ns - 1e9 && (one.ended_wall_ns === 0 || event.wall_ns <= one.ended_wall_ns + 5e9)) ?? [];
  return (
    <>
      <div class="title"><h1>{one.kind} <a href={`/workloads/${one.workload}`}>{one.workload}</a></h1>
        <span class={`outcome ${state.replace(' ', '-')}`} data-outcome={state}><span aria-hidden="true">{SIGN[state]} </span>{state}</span>
        {state === 'under way' && one.kind === 'migrate' && may('POST /api/v1/workloads/{name}/abort') &&
          <button type="button" onClick={() => void post(`${workloadPath(one.workload)}/abort`).catch((error: Error) => alert(error.message))}>Abort</button>}</div>
      <p>{one.from || 'nowhere'} → <strong>{one.to || 'a standby'}</strong>, begun <Time ns={one.started_wall_ns} /> by {one.who}</p>
      {one.problem && <Problem error={{ message: one.problem }} />}
      <div aria-live="polite" class={state === 'under way' ? 'progress' : 'sr'}>
        {state === 'under way' ? <>
          <progress max={Math.max(total, 1)} value={total ? one.bytes_done : undefined} aria-label="progress" />
          <p>{one.phase || 'beginning'}{one.round ? `, round ${one.round}` : ''}: {bytes(one.bytes_done)} done, {bytes(one.bytes_left)} left{one.rate_bytes_per_s ? `, ${bytes(one.rate_bytes_per_s)}/s` : ''}{one.eta_us ? `, about ${duration(one.eta_us)} to go` : ''}</p></> : <p>{one.kind} {state}</p>}
      </div>
      {report && <Card title="Report"><dl class="facts" data-report>
        <Fact name="Pause"><span data-field="pause_us"><Us value={report.pause_us} /></span></Fact>
        <Fact name="Total"><span data-field="total_ms" data-value={report.total_ms}>{report.total_ms.toFixed(1)} ms</span></Fact>
        <Fact name="Sent">{bytes(report.bytes_sent)} in {report.rounds} {report.rounds === 1 ? 'round' : 'rounds'}</Fact>
        <Fact name="Pages">{count(report.pages_sent)} sent, {count(report.pages_known)} known already</Fact>
        <Fact name="Strategy">{report.strategy}{!report.converged && one.kind === 'migrate' ? ', did not converge' : ''}</Fact>
        <Fact name="Continues from"><span data-field="seq" data-value={report.seq}>@{report.seq}</span></Fact>
        <Fact name="PID">{report.pid}</Fact><Fact name="Incarnation">{report.incarnation}</Fact>
        {one.restore && one.kind !== 'migrate' && <Fact name="Lost">{one.restore.lost_us ? duration(one.restore.lost_us) : 'nothing'}</Fact>}
      </dl></Card>}
      <Card title="Time axis" note={one.ended_wall_ns ? `${duration((one.ended_wall_ns - one.started_wall_ns) / 1000)} in all` : 'so far'}><Axis one={one} /></Card>
      <Card title="What the nodes said meanwhile"><LogList list={[...since].reverse()} /></Card>
    </>
  );
}
