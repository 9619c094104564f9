// A time chart by uPlot: one canvas, redrawn with its data, its size and the colour scheme.
import type { JSX } from 'preact';
import { useEffect, useRef } from 'preact/hooks';
import uPlot from 'uplot';
import 'uplot/dist/uPlot.min.css';
import { clock } from '../format';
import { useUtc } from './bits';

export interface Line { label: string; values: (number | null)[]; colour: string; dash?: number[]; points?: boolean; fill?: boolean }

const colour = (name: string): string => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

export function Chart({ times, lines, format, label, height = 170 }: {
  times: number[]; lines: Line[]; format: (value: number) => string; label: string; height?: number;
}): JSX.Element {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const [utc] = useUtc();
  const shape = lines.map((line) => line.label + line.colour).join('|') + String(utc);
  const data = [times, ...lines.map((line) => line.values)] as uPlot.AlignedData;
  useEffect(() => {
    const element = place.current;
    if (!element) return undefined;
    const make = (): void => {
      plot.current?.destroy();
      const axis = { stroke: colour('muted'), grid: { stroke: colour('line'), width: 1 }, ticks: { stroke: colour('line'), width: 1 }, font: '12px system-ui' };
      plot.current = new uPlot({
        width: element.clientWidth, height,
        cursor: { y: false }, legend: { live: true },
        series: [{ label: 'time', value: (_: uPlot, s: number | null) => (s == null ? '–' : clock(s * 1e3, utc, true)) }, ...lines.map((line) => ({
          label: line.label, stroke: colour(line.colour), width: 1.5, ...(line.dash ? { dash: line.dash } : {}),
          ...(line.fill ? { fill: `${colour(line.colour)}33` } : {}),
          points: { show: line.points ?? false, size: 4 }, ...(line.points ? { paths: () => null } : {}),
          value: (_: uPlot, value: number | null) => (value == null ? '–' : format(value)),
        }))],
        axes: [{ ...axis, space: 90, values: (_: uPlot, ticks: number[]) => ticks.map((s) => clock(s * 1e3, utc).replace(' UTC', '')) }, { ...axis, size: 72, values: (_: uPlot, ticks: number[]) => ticks.map(format) }],
        scales: { y: { range: (_: uPlot, __: number, max: number) => [0, max > 0 ? max * 1.08 : 1] } },
      }, data, element);
    };
    make();
    const resized = new ResizeObserver(() => plot.current?.setSize({ width: element.clientWidth, height }));
    resized.observe(element);
    const scheme = matchMedia('(prefers-color-scheme: dark)');
    scheme.addEventListener('change', make);
    return () => { resized.disconnect(); scheme.removeEventListener('change', make); plot.current?.destroy(); plot.current = null; };
  }, [shape, height]);
  useEffect(() => { plot.current?.setData(data); });
  return <div class="chart" role="group" aria-label={label} ref={place} />;
}
