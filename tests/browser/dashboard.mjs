// Scenes in a browser, in order: each is what somebody does, and what he must see then.
//
//   node dashboard.mjs [SCENE…]     in the network of the bench BATON_BENCH
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const { BATON_PACKAGES: packages, BATON_BENCH: bench, BATON_VECU: vecuProgram, BATON_SCREENSHOTS: pictures } = process.env;
const require = createRequire(packages + '/package.json');
const { chromium } = require('playwright-core');
const axeSource = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');

const run = (program, ...args) => execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], timeout: 60_000 });
const baton = (...args) => JSON.parse(run(`${bench}/bin/baton`, ...args, '-o', 'json'));
const as = (who, ...args) => JSON.parse(execFileSync(`${bench}/bin/baton`, [...args, '-o', 'json'], { encoding: 'utf8', env: { ...process.env, BATON_TLS_DIR: `${bench}/pki/${who}` }, timeout: 60_000 }));
const vecu = (verb, ...args) => run(vecuProgram, verb, '--dir', bench, ...args);
const signalCoordinator = (signal) => vecu('exec', 'coordinator', '--', 'sh', '-c', `for p in /proc/[0-9]*; do case $(tr '\\0' ' ' <$p/cmdline) in *[b]in/baton-coordinator*) kill -${signal} \${p#/proc/};; esac; done 2>/dev/null; true`);

const SLOW = 20_000;    // a busy machine; what is waited for comes at once otherwise
const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu'] });

async function visit(who, options = {}) {
  const context = await browser.newContext({ ignoreHTTPSErrors: true, viewport: { width: 1360, height: 900 }, timezoneId: 'Europe/Berlin', ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(SLOW);
  const problems = [];
  page.on('pageerror', (error) => problems.push(String(error)));
  page.on('console', (message) => { if (message.type() === 'error' && !/net::ERR|Failed to load resource/.test(message.text())) problems.push(message.text()); });
  await page.goto(as(who, 'dashboard').url);
  await page.waitForSelector('[data-connection="live"]');
  return { context, page, problems, end: async () => { await context.close(); assert.deepEqual(problems, [], 'errors in the page'); } };
}
const base = () => new URL(as('operator', 'dashboard').url).origin;

async function until(what, condition, timeoutMs = SLOW) {
  const end = Date.now() + timeoutMs;
  for (;;) {
    const answer = await condition();
    if (answer) return answer;
    if (Date.now() > end) throw new Error(`still not: ${what}`);
    await new Promise((resolve) => { setTimeout(resolve, 50); });
  }
}

async function assertAccessible(page, where) {
  await page.evaluate(axeSource);
  const violations = await page.evaluate(async () => (await globalThis.axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice'] })).violations
    .map((v) => `${v.id}: ${v.help}: ${v.nodes.map((n) => `${n.target.join(' ')}: ${n.failureSummary}`).slice(0, 3).join(' | ')}`));
  assert.deepEqual(violations, [], `axe-core on ${where}`);
}

const scenes = {
  async 'the first view is small and quick'() {
    const { page, end } = await visit('viewer');
    let best = Infinity;
    let bytes = 0;
    for (let i = 0; i < 5; i += 1) {
      bytes = 0;
      const client = await page.context().newCDPSession(page);
      await client.send('Network.enable');
      await client.send('Network.setCacheDisabled', { cacheDisabled: true });
      client.on('Network.loadingFinished', (event) => { bytes += event.encodedDataLength; });
      const began = Date.now();
      await page.goto(`${base()}/`);
      await page.waitForSelector('tr[data-workload="counter"]');
      best = Math.min(best, Date.now() - began);
      await client.detach();
      if (best <= 1_000) break;
    }
    console.log(`  first view: ${bytes} bytes, ${best} ms`);
    assert.ok(bytes > 10_000 && bytes <= 150_000, `${bytes} bytes`);
    assert.ok(best <= 1_000, `${best} ms`);
    await end();
  },

  async 'the figures are those of the command line'() {
    const { page, end } = await visit('viewer');
    for (const name of ['counter', 'writer']) {
      await page.goto(`${base()}/workloads/${name}`);
      await page.waitForSelector('[data-field="committed"]');
      const before = baton('show', name);
      const seen = await until('a figure newer than the command line\'s', async () => {
        const shown = await page.evaluate(() => {
          const value = (field) => Number(document.querySelector(`[data-field="${field}"]`)?.getAttribute('data-value'));
          return { committed: value('committed'), pid: value('pid'), incarnation: value('incarnation'), lag: Number(document.querySelector('[data-field="lag"] [data-us]')?.getAttribute('data-us')), text: document.body.innerText };
        });
        return shown.committed >= before.last_committed && shown;
      });
      const after = baton('show', name);
      assert.equal(seen.pid, before.pid);
      assert.equal(seen.incarnation, before.incarnation);
      assert.ok(seen.committed <= after.last_committed, `${seen.committed} was never committed (${after.last_committed})`);
      assert.ok(seen.text.includes(before.node) && before.standbys.every((standby) => seen.text.includes(standby)));
      // The page's own snapshot against the API's, field by field, at one moment.
      const both = await page.evaluate(async (one) => {
        const overview = await (await fetch('/api/v1/overview')).json();
        return overview.workloads.find((row) => row.name === one);
      }, name);
      for (const field of ['state', 'node', 'pid', 'mode', 'incarnation', 'interval_us']) assert.deepEqual(both[field], after[field], field);
      assert.deepEqual(both.standbys, after.standbys);
    }
    await page.goto(`${base()}/`);
    await page.waitForSelector('tr[data-workload]');
    assert.deepEqual((await page.$$eval('tr[data-workload]', (rows) => rows.map((row) => row.dataset.workload))).sort(), baton('ls').map((one) => one.name).sort());
    assert.deepEqual((await page.$$eval('[data-node]', (nodes) => nodes.map((node) => node.dataset.node))).sort(), baton('node', 'ls').map((one) => one.name).sort());
    await end();
  },

  async 'a viewer sees no buttons and is refused'() {
    const viewer = await visit('viewer');
    const operator = await visit('operator');
    for (const { page } of [viewer, operator]) { await page.goto(`${base()}/workloads/counter`); await page.waitForSelector('[data-field="lag"]'); }
    assert.equal(await viewer.page.locator('.actions button').count(), 0);
    assert.equal(await viewer.page.getByRole('link', { name: 'Audit' }).count(), 0);
    assert.ok(await operator.page.locator('.actions button').count() >= 3);
    const refused = await viewer.page.evaluate(async () => {
      const { csrf } = await (await fetch('/api/v1/session')).json();
      const answer = await fetch('/api/v1/workloads/counter/migrate', { method: 'POST', headers: { 'Content-Type': 'application/json', 'X-Baton-CSRF': csrf }, body: '{"to":"ecu2"}' });
      return answer.status;
    });
    assert.equal(refused, 403);
    assert.ok(as('operator', 'audit').some((entry) => entry.who === 'viewer viewer' && entry.action === 'Migrate' && entry.outcome === 'refused' && entry.target === 'counter'));
    const link = as('viewer', 'dashboard').url;
    await viewer.page.goto('about:blank');
    await viewer.page.goto(link);
    await viewer.page.waitForSelector('[data-connection="live"]');
    const stranger = await (await browser.newContext({ ignoreHTTPSErrors: true })).newPage();
    await stranger.goto(link);
    await stranger.getByRole('alert').waitFor({ timeout: SLOW });
    assert.match(await stranger.locator('main').innerText(), /used/);
    await stranger.context().close();
    await viewer.end();
    await operator.end();
  },

  async 'a migration from the click to the report'() {
    const { page, end } = await visit('operator');
    const before = baton('show', 'counter');
    await page.goto(`${base()}/workloads/counter`);
    await page.getByRole('button', { name: 'Migrate…' }).click();
    const dialog = page.getByRole('dialog');
    assert.match(await dialog.innerText(), /baton migrate counter --to ecu2/);
    await page.screenshot({ path: `${pictures}/migrate-dialog.png` });
    await dialog.getByRole('button', { name: 'Migrate counter to ecu2' }).click();
    await page.waitForURL('**/movements/*');
    await page.waitForSelector('[data-outcome="done"]', { timeout: 60_000 });
    const after = baton('show', 'counter');
    assert.equal(before.node, 'ecu1');
    assert.equal(after.node, 'ecu2');
    assert.equal(after.incarnation, before.incarnation + 1);
    await page.waitForSelector('[data-report]');
    const id = Number(new URL(page.url()).pathname.split('/').pop());
    const { report, phases } = await page.evaluate(async (one) => (await fetch(`/api/v1/movements/${one}`)).json(), id);
    assert.equal(Number(await page.locator('[data-field="pause_us"] [data-us]').getAttribute('data-us')), report.pause_us);
    assert.equal(Number(await page.locator('[data-field="seq"]').getAttribute('data-value')), report.seq);
    assert.equal(report.pid, after.pid);
    assert.ok(phases.length >= 2 && phases.at(-1).name === 'done', JSON.stringify(phases));
    assert.ok(as('operator', 'audit', '--on', 'counter').some((entry) => entry.action === 'Migrate' && entry.outcome === 'done' && entry.via === 'http' && entry.who === 'operator operator'));
    await page.screenshot({ path: `${pictures}/migration.png`, fullPage: true });
    await assertAccessible(page, 'a migration');
    // One begun on the command line is seen as well.
    baton('migrate', 'counter', '--to', 'ecu1');
    await page.goto(`${base()}/movements`);
    await until('the migration of the command line', async () => (await page.locator('tbody tr').count()) >= 2);
    await end();
  },

  async 'a checkpoint by keyboard alone'() {
    const { page, end } = await visit('operator');
    await page.goto(`${base()}/workloads/writer`);
    const button = page.getByRole('button', { name: 'Checkpoint…' });
    await button.focus();
    await page.keyboard.press('Enter');
    await page.getByRole('dialog').waitFor();
    await page.keyboard.press('Escape');
    await until('the dialog closes', async () => (await page.getByRole('dialog').count()) === 0);
    await button.focus();
    await page.keyboard.press('Enter');
    await page.getByRole('dialog').getByRole('button', { name: 'Checkpoint writer' }).focus();
    await page.keyboard.press('Enter');
    await page.getByText(/@\d+ is committed/).waitFor();
    await end();
  },

  async 'a silent coordinator, and its return'() {
    const { page, end } = await visit('viewer');
    await page.waitForSelector('tr[data-workload]');
    signalCoordinator('STOP');
    try {
      await page.waitForSelector('[data-connection="stale"], [data-connection="lost"]');
      assert.match(await page.locator('.banner').innerText(), /old/);
      assert.ok(await page.locator('tr[data-workload="counter"]').isVisible(), 'the last figures stay');
      await page.screenshot({ path: `${pictures}/stale.png` });
    } finally {
      signalCoordinator('CONT');
    }
    await page.waitForSelector('[data-connection="live"]');
    assert.equal(await page.locator('.banner').count(), 0);
    await end();
  },

  async 'what would hurt stands out'() {
    const { page, end } = await visit('viewer');
    await page.waitForSelector('[data-verdict="safe"]');
    vecu('cut', 'ecu1', 'ecu3');   // a standby that is gone altogether is replaced within seconds
    try {
      const row = page.locator('tr[data-workload="writer"]');
      await until('the risk is shown', async () => /at risk/.test(await row.innerText()));
      assert.match(await row.innerText(), /standby/);
      assert.match(await page.locator('[data-verdict="risk"]').innerText(), /writer/);
      assert.equal(await page.$eval('tr[data-workload]', (first) => first.dataset.workload), 'writer', 'the greatest risk comes first');
      await page.screenshot({ path: `${pictures}/at-risk.png`, fullPage: true });
      await assertAccessible(page, 'an overview with a risk');
    } finally {
      vecu('heal');
    }
    vecu('kill', 'ecu3');
    try {
      await page.waitForSelector('[data-node="ecu3"] .state.lost', { timeout: 30_000 });
    } finally {
      vecu('start', 'ecu3');
    }
    await page.waitForSelector('[data-verdict="safe"]', { timeout: 60_000 });
    await end();
  },

  async 'every page, light, dark and narrow, without violations'() {
    const paths = { overview: '/', workload: '/workloads/counter', movements: '/movements', events: '/events', audit: '/audit', nothing: '/nowhere' };
    for (const [name, options] of Object.entries({ light: { colorScheme: 'light' }, dark: { colorScheme: 'dark' }, narrow: { colorScheme: 'light', viewport: { width: 390, height: 844 }, hasTouch: true } })) {
      const { page, end } = await visit('operator', options);
      for (const [where, path] of Object.entries(paths)) {
        await page.goto(`${base()}${path}`);
        await page.waitForSelector('h1');
        if (where === 'workload') await page.waitForSelector('.chart canvas');
        if (where === 'overview') await page.waitForSelector('.spark polyline');
        await assertAccessible(page, `${where}, ${name}`);
        const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
        assert.ok(wide <= 0, `${where}, ${name}: ${wide} px too wide`);
        if (where === 'overview' || where === 'workload') await page.screenshot({ path: `${pictures}/${where}-${name}.png`, fullPage: where === 'workload' });
      }
      await end();
    }
    const page = await (await browser.newContext({ ignoreHTTPSErrors: true })).newPage();
    await page.goto(base());
    await page.waitForSelector('h1');
    await assertAccessible(page, 'the page without a login');
    await page.context().close();
  },

  async 'a coordinator that is killed, and one that comes back'() {
    const { page, end } = await visit('viewer');
    await page.waitForSelector('tr[data-workload]');
    vecu('kill-agent', 'coordinator');
    await page.waitForSelector('[data-connection="lost"]');
    assert.ok(await page.locator('tr[data-workload="counter"]').isVisible(), 'the last figures stay');
    vecu('start', 'coordinator');
    // Sessions do not outlive it: the page says what to do, and a new link goes on.
    await page.getByText('The session has ended').waitFor();
    await page.goto(as('viewer', 'dashboard').url);
    await page.waitForSelector('[data-connection="live"]');
    await until('the workloads are known again', async () => /running/.test(await page.locator('tr[data-workload="counter"]').innerText()));
    await end();
  },
};

let failed = 0;
const wanted = process.argv.slice(2);
for (const [name, scene] of Object.entries(scenes)) {
  if (wanted.length > 0 && !wanted.some((part) => name.includes(part))) continue;
  const began = Date.now();
  try {
    await scene();
    console.log(`ok      ${name} (${((Date.now() - began) / 1000).toFixed(1)} s)`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name} (${((Date.now() - began) / 1000).toFixed(1)} s)\n${error.stack ?? error}\n${error.stderr ?? ''}`);
    for (const context of browser.contexts()) {
      for (const page of context.pages()) await page.screenshot({ path: `${pictures}/failed-${failed}.png` }).catch(() => undefined);
      await context.close().catch(() => undefined);
    }
  }
}
await browser.close();
process.exit(failed === 0 ? 0 : 1);
