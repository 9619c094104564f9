// The dashboard: login, the frame around the pages, and which page an address shows.
import { render, type JSX } from 'preact';
import { useEffect, useState } from 'preact/hooks';
import { ApiError, get, may, post, setSession, type Session } from './api';
import { NodeActions } from './actions';
import { ago } from './format';
import { startLive, useLive } from './live';
import { AuditPage, LogPage } from './pages/log';
import { MovementPage, MovementsPage } from './pages/movements';
import { OverviewPage } from './pages/overview';
import { WorkloadPage } from './pages/workload';
import { useUtc } from './parts/bits';
import { followLinks, usePath } from './router';
import './style.css';

function ConnectionNote(): JSX.Element {
  const { connection, receivedMs } = useLive();
  const age = receivedMs ? `figures from ${ago(Date.now() - receivedMs)}` : 'no figures yet';
  const text = { connecting: 'connecting', live: 'live', stale: `stale: ${age}`, lost: `connection lost: ${age}; trying again` }[connection];
  return <span class={`connection ${connection}`} role="status" data-connection={connection}><span class="sign" aria-hidden="true">{{ connecting: '…', live: '●', stale: '▲', lost: '✕' }[connection]}</span> {text}</span>;
}

function Page(): JSX.Element {
  const url = usePath();
  const parts = url.pathname.split('/').filter(Boolean).map(decodeURIComponent);
  const [where, name] = parts;
  useEffect(() => { document.title = `${name ?? where ?? 'Overview'} · Baton`; }, [where, name]);
  if (!where) return <OverviewPage actions={(node) => <NodeActions node={node} />} />;
  if (where === 'workloads' && name) return <WorkloadPage key={name} name={name} query={url.searchParams} />;
  if (where === 'movements') return name ? <MovementPage key={name} id={Number(name)} /> : <MovementsPage />;
  if (where === 'events') return <LogPage />;
  if (where === 'audit' && may('GET /api/v1/audit')) return <AuditPage />;
  return <><h1>Nothing here</h1><p>No page has the address <code>{url.pathname}</code>. <a href="/">Overview</a></p></>;
}

function Link({ to, children }: { to: string; children: string }): JSX.Element {
  const { pathname } = usePath();
  const here = to === '/' ? pathname === '/' || pathname.startsWith('/workloads') : pathname.startsWith(to);
  return <a href={to} aria-current={here ? 'page' : undefined}>{children}</a>;
}

function Frame({ session }: { session: Session }): JSX.Element {
  const { connection } = useLive();
  const [utc, switchZone] = useUtc();
  const leave = (): void => { void post('/api/v1/logout').finally(() => location.assign('/')); };
  return (
    <div class={`frame ${connection}`}>
      <a class="skip" href="#main">Skip to the content</a>
      <header>
        <span class="brand">Baton <span class="note">{session.cluster}</span></span>
        <nav aria-label="Pages"><Link to="/">Overview</Link><Link to="/movements">Moves</Link><Link to="/events">Events</Link>{may('GET /api/v1/audit') && <Link to="/audit">Audit</Link>}</nav>
        <ConnectionNote />
        <span class="who"><button type="button" class="plain" onClick={switchZone} aria-label={`Times in ${utc ? 'UTC' : 'local time'}: switch`}>{utc ? 'UTC' : 'local time'}</button>
          <span title={session.by_certificate ? 'by client certificate' : 'by one-time link'}>{session.who}</span>
          {!session.by_certificate && <button type="button" class="plain" onClick={leave}>Log out</button>}</span>
      </header>
      {(connection === 'stale' || connection === 'lost') && <p class="banner" role="alert">These figures are old: the coordinator has not been heard of. The workloads run on without it.</p>}
      <main id="main" tabIndex={-1}><Page /></main>
      <footer class="note">baton-coordinator {session.version}</footer>
    </div>
  );
}

function Closed({ problem }: { problem: string }): JSX.Element {
  return (
    <main class="closed"><h1>Baton</h1>{problem && <p class="problem" role="alert">{problem}</p>}
      <p>Nobody is logged in. On a machine with the command line:</p><p><code>baton dashboard</code></p>
      <p class="note">It prints a link that works once, within a minute, with your own role. A client certificate in the browser does too.</p></main>
  );
}

function App(): JSX.Element {
  const [session, take] = useState<Session | null>(null);
  const [problem, setProblem] = useState<string | null>(null);
  useEffect(() => {
    const refused = (): void => { setSession(null); take(null); setProblem('The session has ended.'); };
    const begin = async (): Promise<void> => {
      const token = location.hash.match(/^#login=([\w-]+)$/)?.[1];
      if (token) {
        history.replaceState(null, '', location.pathname + location.search);   // out of the history
        await post('/api/v1/login', { token });
      }
      const found = await get<Session>('/api/v1/session');
      setSession(found);
      take(found);
      startLive(refused);
    };
    const attempt = (): void => {
      begin().catch((error: ApiError) => setProblem(error.status === 401 && !location.hash && error.message.includes('nobody') ? '' : `${error.message}. ${error.hint}`));
    };
    // A new link that is opened in a page that stands here already only changes what is behind the #.
    const again = (): void => { if (location.hash.startsWith('#login=')) location.reload(); };
    addEventListener('hashchange', again);
    attempt();
    return () => removeEventListener('hashchange', again);
  }, []);
  if (session) return <Frame session={session} />;
  return problem === null ? <p class="waiting">Loading…</p> : <Closed problem={problem} />;
}

followLinks();
const place = document.getElementById('app');
if (place) { place.textContent = ''; render(<App />, place); }
