// Small parts that several pages use.
import type { ComponentChildren, JSX } from 'preact';
import { useEffect, useState } from 'preact/hooks';
import type { RiskLevel, Row } from '../api';
import { ago, clock, duration } from '../format';

export const RISK: Record<RiskLevel, { sign: string; word: string }> = {
  none: { sign: '✓', word: 'safe' },
  watch: { sign: '!', word: 'watch' },
  high: { sign: '▲', word: 'at risk' },
  lost: { sign: '✕', word: 'lost' },
};

export function Risk({ level }: { level: RiskLevel }): JSX.Element {
  return <span class={`risk ${level}`}><span class="sign" aria-hidden="true">{RISK[level].sign}</span>{RISK[level].word}</span>;
}

export function State({ row }: { row: { state: string; stale: boolean } }): JSX.Element {
  return <span class={`state ${row.state}`}>{row.state}{row.stale && <span class="note"> (last known)</span>}</span>;
}

// The times of all pages: UTC or this browser's zone, remembered.
let utc = localStorage.getItem('baton-utc') === '1';
const zoneListeners = new Set<() => void>();
export function useUtc(): [boolean, () => void] {
  const [, redraw] = useState(0);
  useEffect(() => {
    const listener = (): void => redraw((n) => n + 1);
    zoneListeners.add(listener);
    return () => { zoneListeners.delete(listener); };
  }, []);
  return [utc, () => {
    utc = !utc;
    localStorage.setItem('baton-utc', utc ? '1' : '0');
    for (const listener of zoneListeners) listener();
  }];
}

export function Time({ ns, date = true, relative = false }: { ns: number; date?: boolean; relative?: boolean }): JSX.Element {
  const [inUtc] = useUtc();
  const ms = ns / 1e6;
  const both = `${clock(ms, true, true)} · ${clock(ms, false, true)} local`;
  return <time dateTime={new Date(ms).toISOString()} title={both}>{relative ? ago(Date.now() - ms) : clock(ms, inUtc, date)}</time>;
}

export function Us({ value, none = false }: { value: number; none?: boolean }): JSX.Element {
  return <span class="number" data-us={value}>{none ? '–' : duration(value)}</span>;
}

// The lag of the last half minute, as a line; the dashed one is the target.
export function Spark({ points, target, label }: { points: number[]; target: number; label: string }): JSX.Element {
  const width = 120, height = 26;
  const top = Math.max(target * 1.25, ...points, 1);
  const y = (value: number): number => height - 1 - (value / top) * (height - 2);
  const step = width / 59;
  const line = points.map((value, i) => `${(width - (points.length - 1 - i) * step).toFixed(1)},${y(value).toFixed(1)}`).join(' ');
  return (
    <svg class="spark" viewBox={`0 0 ${width} ${height}`} width={width} height={height} role="img" aria-label={label}>
      <line class="target" x1="0" x2={width} y1={y(target)} y2={y(target)} />
      <polyline points={line} />
    </svg>
  );
}

export function Where({ row }: { row: Row }): JSX.Element {
  const copy = (name: string) => row.standby_copies.find((one) => one.node === name);
  return (
    <span class="where">
      <strong>{row.node || 'nowhere'}</strong>
      <span aria-hidden="true"> → </span><span class="sr">, standbys: </span>
      {row.standbys.length === 0 ? <span class="bad">none</span> : row.standbys.map((name, i) => {
        const found = copy(name);
        const good = found?.connected && !found.problem;
        return <span key={name}>{i > 0 && ', '}<span class={good ? 'good' : 'bad'}
          title={found?.problem || (found?.connected ? `holds @${found.last_committed}` : 'not connected')}>{name} <span aria-hidden="true">{good ? '✓' : '✕'}</span>
          <span class="sr">{good ? 'in sync' : 'not in sync'}</span></span></span>;
      })}
    </span>
  );
}

export function Card({ title, children, note, id }: { title: string; children: ComponentChildren; note?: ComponentChildren; id?: string }): JSX.Element {
  return <section class="card" aria-label={title} id={id}><h2>{title}{note && <span class="note"> {note}</span>}</h2>{children}</section>;
}

export function Fact({ name, children }: { name: string; children: ComponentChildren }): JSX.Element {
  return <div class="fact"><dt>{name}</dt><dd>{children}</dd></div>;
}

export function Problem({ error }: { error: { message: string; hint?: string } }): JSX.Element {
  return <p class="problem" role="alert"><strong>{error.message}</strong>{error.hint ? <span> {error.hint}</span> : null}</p>;
}
