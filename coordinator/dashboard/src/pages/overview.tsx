// Overview: could any program be lost right now? Then a row per workload, and the nodes.
import type { JSX } from 'preact';
import { useState } from 'preact/hooks';
import type { Node, Row } from '../api';
import { bytes, duration, percent, rate } from '../format';
import { useLive } from '../live';
import { Card, Risk, Spark, State, Time, Us, Where } from '../parts/bits';

function Verdict({ rows, oldNs }: { rows: Row[]; oldNs: number | null }): JSX.Element {
  const lost = rows.filter((row) => row.risk.level === 'lost');
  const high = rows.filter((row) => row.risk.level === 'high');
  const first = lost[0] ?? high[0];
  if (oldNs !== null) {
    const then = lost.length + high.length === 0 ? 'nothing would have been lost' : `${lost.length + high.length} of ${rows.length} workloads were at risk or lost`;
    return <p class="verdict watch" data-verdict="unknown" role="status"><span class="sign" aria-hidden="true">?</span> Not known now. At <Time ns={oldNs} date={false} /> {then}.</p>;
  }
  if (rows.length === 0) return <p class="verdict none">No workloads yet. <code>baton run NAME -- CMD</code> starts one, <code>baton protect NAME --node N --pid PID</code> takes up a running one.</p>;
  if (!first) {
    return <p class="verdict none" data-verdict="safe"><span class="sign" aria-hidden="true">✓</span> No program would be lost now: {rows.length === 1 ? 'the workload has' : `all ${rows.length} workloads have`} a standby in sync, within the lag target.</p>;
  }
  const parts = [];
  const of = (list: Row[]): string => (rows.length === 1 ? 'The workload' : `${list.length} of ${rows.length} workloads`);
  if (lost.length > 0) parts.push(`${of(lost)} ${lost.length === 1 || rows.length === 1 ? 'does' : 'do'} not run`);
  if (high.length > 0) parts.push(`${of(high)} would lose more than the target if ${high.length === 1 ? 'its node' : 'their nodes'} failed now`);
  return (
    <p class={`verdict ${lost.length > 0 ? 'lost' : 'high'}`} data-verdict="risk" role="status">
      <span class="sign" aria-hidden="true">{lost.length > 0 ? '✕' : '▲'}</span> {parts.join('; ')}: <a href={`/workloads/${first.name}`}>{first.name}</a>, {first.risk.reasons[0]?.text}{lost.length + high.length > 1 ? ', and others' : ''}.
    </p>
  );
}

function WorkloadRow({ row, spark }: { row: Row; spark: number[] }): JSX.Element {
  const over = row.lag_us > row.lag_target_us;
  const reason = row.risk.reasons[0];
  return (
    <tr class={`${row.risk.level}${row.stale ? ' stale' : ''}`} data-workload={row.name}>
      <td data-label="Risk"><Risk level={row.risk.level} /></td>
      <th scope="row"><a href={`/workloads/${row.name}`}>{row.name}</a>
        {reason && <div class="reason" title={reason.remedy}>{reason.text}</div>}</th>
      <td data-label="State"><State row={row} /></td>
      <td data-label="Primary → standbys"><Where row={row} /></td>
      <td data-label="Lag / target" class="lag">
        <Spark points={spark} target={row.lag_target_us} label={`lag of ${row.name}, last ${spark.length} reports`} />
        <span class={over ? 'bad' : ''}><span data-field="lag">{row.last_committed === 0 ? '–' : <Us value={row.lag_us} />}</span>{over && <span> over</span>}</span>
        <span class="note"> / {duration(row.lag_target_us)}</span>
      </td>
      <td data-label="Pause p99" class="right" data-field="pause"><Us value={row.pause_us.p99} none={row.pause_us.p99 === 0} /></td>
      <td data-label="Checkpoints" class="right" data-field="rate">{rate(row.rates.checkpoints_per_s)}</td>
      <td data-label="Pages known" class="right">{row.known_share === null ? '–' : percent(row.known_share)}</td>
      <td data-label="Last move">{row.last_handover ? <span title={row.last_handover.text}>{row.last_handover.kind} <Time ns={row.last_handover.wall_ns} relative /></span> : '–'}</td>
    </tr>
  );
}

export function Meter({ used, total, label }: { used: number; total: number; label: string }): JSX.Element {
  const share = total > 0 ? used / total : 0;
  return (
    <svg class={`meter${share > 0.9 ? ' bad' : ''}`} viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-label={label}>
      <rect class="rail" width="100" height="8" rx="2" /><rect class="part" width={Math.min(100, share * 100)} height="8" rx="2" />
    </svg>
  );
}

export function NodeCard({ node, children }: { node: Node; children?: JSX.Element | null }): JSX.Element {
  const used = node.memory_bytes - node.memory_free_bytes;
  const bad = node.state === 'unreachable';
  return (
    <li class={`node ${node.state}`} data-node={node.name}>
      <h3>{node.name} <span class={`state ${bad ? 'lost' : node.state}`}>{bad && <span aria-hidden="true">✕ </span>}{node.state}</span></h3>
      <Meter used={used} total={node.memory_bytes} label={`memory: ${bytes(used)} of ${bytes(node.memory_bytes)} used`} />
      <dl>
        <div><dt>Memory</dt><dd>{bytes(node.memory_free_bytes)} free of {bytes(node.memory_bytes)}</dd></div>
        <div><dt>Processor</dt><dd>{node.cpus} × {node.arch || 'unknown'}</dd></div>
        <div><dt>Store</dt><dd>{bytes(node.store_bytes)}, {bytes(node.disk_free_bytes)} of disk free</dd></div>
        <div><dt>Runs</dt><dd>{node.workloads.length ? node.workloads.map((name, i) => <span key={name}>{i > 0 && ', '}<a href={`/workloads/${name}`}>{name}</a></span>) : 'nothing'}</dd></div>
        <div><dt>Standby for</dt><dd>{node.standby_for.length ? node.standby_for.join(', ') : 'nothing'}</dd></div>
        <div><dt>Last seen</dt><dd>{duration(node.last_seen_us_ago)} ago, at {node.address}</dd></div>
      </dl>
      {children}
    </li>
  );
}

export function OverviewPage({ actions }: { actions: (node: Node) => JSX.Element | null }): JSX.Element {
  const { overview, sparks, connection } = useLive();
  const [filter, setFilter] = useState(new URL(location.href).searchParams.get('filter') ?? '');
  if (!overview) return <p class="waiting">Waiting for the first figures…</p>;
  const rows = overview.workloads.filter((row) => !filter || row.name.includes(filter) || row.node === filter);
  return (
    <>
      <h1 class="sr">Overview</h1>
      <Verdict rows={overview.workloads} oldNs={connection === 'live' || connection === 'connecting' ? null : overview.wall_ns} />
      <Card title="Workloads" note={`${overview.workloads.length}, the greatest risk first`}>
        {overview.workloads.length > 8 && <label class="filter">Filter <input type="search" value={filter} placeholder="name or node"
          onInput={(event) => {
            const value = event.currentTarget.value;
            setFilter(value);
            history.replaceState(null, '', value ? `/?filter=${encodeURIComponent(value)}` : '/');
          }} /></label>}
        <div class="scroll" tabIndex={0} role="region" aria-label="Table of workloads">
          <table class="workloads">
            <thead><tr><th scope="col">Risk</th><th scope="col">Workload</th><th scope="col">State</th><th scope="col">Primary → standbys</th>
              <th scope="col">Lag / target</th><th scope="col" class="right">Pause p99</th><th scope="col" class="right">Checkpoints</th>
              <th scope="col" class="right">Pages known</th><th scope="col">Last move</th></tr></thead>
            <tbody>{rows.map((row) => <WorkloadRow key={row.name} row={row} spark={sparks.get(row.name) ?? []} />)}</tbody>
          </table>
          {rows.length === 0 && <p class="note">None{filter ? ` that match “${filter}”` : ''}.</p>}
        </div>
      </Card>
      <Card title="Nodes" note={overview.nodes.length}>
        <ul class="nodes">{overview.nodes.map((node) => <NodeCard key={node.name} node={node}>{actions(node)}</NodeCard>)}</ul>
      </Card>
    </>
  );
}
