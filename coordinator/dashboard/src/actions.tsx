// What an operator may do. Each action shows its command line and asks for a confirmation that
// names the workload; who may not, sees no button.
import type { ComponentChildren, JSX } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { ApiError, may, post, workloadPath, type Node, type Row } from './api';
import { navigate } from './router';
import { Problem } from './parts/bits';

function Dialog({ title, cli, confirm, danger = false, run, close, children }: {
  title: string; cli: string; confirm: string; danger?: boolean;
  run: () => Promise<void>; close: () => void; children?: ComponentChildren;
}): JSX.Element {
  const place = useRef<HTMLDialogElement>(null);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<ApiError | null>(null);
  useEffect(() => { place.current?.showModal(); }, []);
  const submit = (event: Event): void => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    run().then(close, (failed: ApiError) => { setError(failed); setBusy(false); });
  };
  return (
    <dialog ref={place} onClose={close} aria-labelledby="dialog-title">
      <form method="dialog" onSubmit={submit}>
        <h2 id="dialog-title">{title}</h2>
        {children}
        <p class="cli"><span class="note">The same on the command line:</span><code>{cli}</code></p>
        {error && <Problem error={error} />}
        <div class="buttons"><button type="button" onClick={close}>Cancel</button>
          <button type="submit" class={danger ? 'danger' : 'primary'} disabled={busy}>{busy ? 'Asking…' : confirm}</button></div>
      </form>
    </dialog>
  );
}

function Target({ row, nodes, to, choose, none }: { row: Row; nodes: Node[]; to: string; choose: (to: string) => void; none?: string }): JSX.Element {
  const fit = nodes.filter((node) => node.name !== row.node);
  return (
    <label class="field">To
      <select value={to} onChange={(event) => choose(event.currentTarget.value)} required={!none}>
        {none ? <option value="">{none}</option> : null}
        {fit.map((node) => <option key={node.name} value={node.name} disabled={node.state !== 'ready'}>
          {node.name}{node.state !== 'ready' ? ` (${node.state})` : row.standbys.includes(node.name) ? ' (standby)' : ''}</option>)}
      </select></label>
  );
}

type Kind = 'migrate' | 'failover' | 'checkpoint' | 'abort';

export function WorkloadActions({ row, nodes }: { row: Row; nodes: Node[] }): JSX.Element | null {
  const [open, setOpen] = useState<Kind | null>(null);
  const [to, setTo] = useState('');
  const [loss, setLoss] = useState(false);
  const [said, setSaid] = useState('');
  const can = (kind: Kind): boolean => may(`POST /api/v1/workloads/{name}/${kind}`);
  if (!can('migrate') && !can('failover') && !can('checkpoint')) return null;
  const start = (kind: Kind): void => {
    const ready = nodes.filter((node) => node.name !== row.node && node.state === 'ready');
    const best = ready.find((node) => row.standbys.includes(node.name)) ?? ready[0];
    setTo(kind === 'migrate' ? best?.name ?? '' : '');
    setLoss(false);
    setSaid('');
    setOpen(kind);
  };
  const close = (): void => setOpen(null);
  const path = workloadPath(row.name);
  const move = async (kind: Kind, body: object): Promise<void> => {
    const answer = await post<{ movement: number }>(`${path}/${kind}`, body);
    navigate(`/movements/${answer.movement}`);
  };
  const moving = row.state === 'migrating';
  return (
    <div class="actions" role="group" aria-label={`Actions on ${row.name}`}>
      {can('migrate') && !moving && <button type="button" onClick={() => start('migrate')}>Migrate…</button>}
      {can('abort') && moving && <button type="button" onClick={() => start('abort')}>Abort migration…</button>}
      {can('failover') && <button type="button" onClick={() => start('failover')}>Fail over…</button>}
      {can('checkpoint') && <button type="button" onClick={() => start('checkpoint')}>Checkpoint…</button>}
      <span role="status" class="note">{said}</span>
      {open === 'migrate' && <Dialog title={`Migrate ${row.name}`} confirm={`Migrate ${row.name}${to ? ` to ${to}` : ''}`} close={close}
        cli={`baton migrate ${row.name} --to ${to || 'NODE'}`} run={() => move('migrate', { to })}>
        <p>{row.name} runs on {row.node}. It is copied while it runs, stops for a moment and continues on the other node.</p>
        <Target row={row} nodes={nodes} to={to} choose={setTo} /></Dialog>}
      {open === 'failover' && <Dialog title={`Fail over ${row.name}`} confirm={`Fail over ${row.name}`} danger close={close}
        cli={`baton failover ${row.name}${to ? ` --to ${to}` : ''}${loss ? ' --allow-loss' : ''}`} run={() => move('failover', { ...(to ? { to } : {}), allow_loss: loss })}>
        <p>A standby takes over: by migration while {row.node || 'its node'} lives, else from the newest checkpoint that a reachable standby holds.</p>
        <Target row={row} nodes={nodes} to={to} choose={setTo} none="the best standby" />
        <label class="check"><input type="checkbox" checked={loss} onChange={(event) => setLoss(event.currentTarget.checked)} /> Go on even if a newer checkpoint than the standby's was committed</label></Dialog>}
      {open === 'checkpoint' && <Dialog title={`Checkpoint ${row.name}`} confirm={`Checkpoint ${row.name}`} close={close} cli={`baton checkpoint ${row.name}`}
        run={async () => { const taken = await post<{ seq: number }>(`${path}/checkpoint`); setSaid(`@${taken.seq} is committed`); }}>
        <p>Takes a checkpoint of {row.name} now and waits for its commit.</p></Dialog>}
      {open === 'abort' && <Dialog title={`Abort the migration of ${row.name}`} confirm={`Abort the migration of ${row.name}`} danger close={close} cli={`baton migrate ${row.name} --abort`}
        run={async () => { await post(`${path}/abort`); setSaid('aborted'); }}><p>{row.name} goes on where it is, unless the handover has happened already.</p></Dialog>}
    </div>
  );
}

export function NodeActions({ node }: { node: Node }): JSX.Element | null {
  const [open, setOpen] = useState(false);
  const kind = node.state === 'drained' ? 'resume' : 'drain';
  if (!may(`POST /api/v1/nodes/{name}/${kind}`) || node.state === 'unreachable') return null;
  const text = kind === 'drain' ? `Drain ${node.name}` : `Resume ${node.name}`;
  return (
    <div class="actions"><button type="button" onClick={() => setOpen(true)}>{kind === 'drain' ? 'Drain…' : 'Resume…'}<span class="sr"> {node.name}</span></button>
      {open && <Dialog title={text} confirm={text} danger={kind === 'drain'} close={() => setOpen(false)} cli={`baton node ${kind} ${node.name}`}
        run={async () => { await post(`/api/v1/nodes/${encodeURIComponent(node.name)}/${kind}`); }}>
        <p>{kind === 'drain' ? `Everything on ${node.name} (${node.workloads.join(', ') || 'nothing now'}) moves to other nodes, and it takes no more.` : `${node.name} may take workloads again.`}</p></Dialog>}
    </div>
  );
}
