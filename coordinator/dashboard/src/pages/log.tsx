// What happened, and who did what.
import type { JSX } from 'preact';
import type { AuditEntry, LogEvent } from '../api';
import { useLive } from '../live';
import { Card, Problem, Time } from '../parts/bits';
import { useLoaded } from '../parts/load';

export function LogList({ list }: { list: LogEvent[] }): JSX.Element {
  if (list.length === 0) return <p class="note">Nothing.</p>;
  return (
    <ol class="log" tabIndex={0} aria-label="Events, newest first">{list.map((event) => (
      <li key={event.id}><Time ns={event.wall_ns} /> <span class="kind">{event.kind}</span> {event.workload && <a href={`/workloads/${event.workload}`}>{event.workload}</a>} <span>{event.text}</span>
        {event.who && event.who !== 'coordinator' && event.who !== event.node ? <span class="note"> {event.who}</span> : event.node ? <span class="note"> {event.node}</span> : null}</li>))}</ol>
  );
}

export function LogPage(): JSX.Element {
  const live = useLive();
  const { data, error } = useLoaded<LogEvent[]>('/api/v1/log?newest=300');
  const known = new Set(live.log.map((event) => event.id));
  const list = [...live.log, ...[...(data ?? [])].reverse().filter((event) => !known.has(event.id))];
  return <><h1>Events</h1>{error && <Problem error={error} />}<Card title="Newest first" note={list.length}><LogList list={list} /></Card></>;
}

export function AuditPage(): JSX.Element {
  const { data, error } = useLoaded<AuditEntry[]>('/api/v1/audit?newest=300', 5_000);
  return (
    <><h1>Audit</h1>{error && <Problem error={error} />}
      <Card title="Who did what, newest first">
        <div class="scroll" tabIndex={0} role="region" aria-label="Table of audit entries">
          <table class="audit"><thead><tr><th scope="col">Entry</th><th scope="col">Time</th><th scope="col">Who</th><th scope="col">From</th><th scope="col">Action</th><th scope="col">On</th><th scope="col">Outcome</th></tr></thead>
            <tbody>{[...(data ?? [])].reverse().map((entry) => (
              <tr key={entry.id} class={entry.outcome}><th scope="row">{entry.id}</th><td><Time ns={entry.wall_ns} /></td><td>{entry.who}</td><td>{entry.from} <span class="note">{entry.via}</span></td>
                <td>{entry.action} <span class="note">{entry.detail}</span></td><td>{entry.target || '–'}</td><td>{entry.outcome}{entry.begun_id ? <span class="note"> of {entry.begun_id}</span> : null}{entry.problem && <div class="reason">{entry.problem}</div>}</td></tr>))}</tbody></table>
        </div>
      </Card></>
  );
}
