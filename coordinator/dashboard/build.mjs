// Bundles the dashboard and writes it out as C++.
//
//   node build.mjs WORK OUT.cc     WORK: the folder with node_modules
//
// One script and one style sheet, named by their content, and the page that names them. The
// output depends on the sources and the packages of the lock file alone.
import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';

const here = dirname(fileURLToPath(import.meta.url));
const [work, out] = process.argv.slice(2);
const esbuild = createRequire(join(work, 'package.json'))('esbuild');

const result = esbuild.buildSync({
  absWorkingDir: here,
  entryPoints: { app: join(here, 'src/main.tsx') },
  bundle: true,
  minify: true,
  format: 'esm',
  target: ['es2020'],
  jsx: 'automatic',
  jsxImportSource: 'preact',
  nodePaths: [join(work, 'node_modules')],
  legalComments: 'none',
  outdir: '/out',
  write: false,
  logLevel: 'warning',
});

const hash = (bytes) => createHash('sha256').update(bytes).digest('hex').slice(0, 16);
const types = { js: 'text/javascript; charset=utf-8', css: 'text/css; charset=utf-8', svg: 'image/svg+xml', html: 'text/html; charset=utf-8' };
const assets = [];
const add = (name, extension, bytes, path) => {
  const id = hash(bytes);
  const asset = { path: path ?? `/assets/${name}-${id}.${extension}`, type: types[extension], etag: `"${id}"`, plain: bytes, forever: path === undefined };
  assets.push(asset);
  return asset.path;
};

const named = {};
for (const file of result.outputFiles) {
  const extension = file.path.split('.').pop();
  named[extension] = add('app', extension, Buffer.from(file.contents));
}
named.svg = add('icon', 'svg', readFileSync(join(here, 'src/icon.svg')));
const page = readFileSync(join(here, 'src/index.html'), 'utf8')
  .replace('{{script}}', named.js).replace('{{style}}', named.css).replace('{{icon}}', named.svg);
if (page.includes('{{')) throw new Error('index.html names something that was not built');
add('', 'html', Buffer.from(page), '/');

// One string literal: compilers read it far faster than a list of numbers. Octal escapes of
// three digits end by themselves, and "??" would begin a trigraph.
const escape = (byte) => (byte >= 32 && byte < 127 && byte !== 34 && byte !== 92 && byte !== 63 ? String.fromCharCode(byte) : `\\${byte.toString(8).padStart(3, '0')}`);
const array = (name, bytes) => {
  const lines = [];
  for (let i = 0; i < bytes.length; i += 4096) lines.push(`"${[...bytes.subarray(i, i + 4096)].map(escape).join('')}"`);
  return `const char ${name}[] =\n${lines.join('\n') || '""'};\n`;
};
let text = '// Made by coordinator/dashboard/build.mjs. Not to be edited.\n' +
  '#include "coordinator/http/assets.h"\n\nnamespace baton::coordinator::http {\nnamespace {\n\n';
assets.forEach((asset, i) => {
  asset.gzip = gzipSync(asset.plain, { level: 9 });
  text += array(`plain${i}`, asset.plain) + array(`gzip${i}`, asset.gzip);
});
text += '\nstd::string_view view(const char* bytes, std::size_t size) {\n  return {bytes, size - 1};  // without the NUL\n}\n\n' +
  'const Asset kAssets[] = {\n' + assets.map((a, i) =>
    `    {"${a.path}", "${a.type}", ${JSON.stringify(a.etag)}, view(gzip${i}, sizeof gzip${i}), view(plain${i}, sizeof plain${i}), ${a.forever}},\n`).join('') +
  '};\n\n}  // namespace\n\nconst Asset* find_asset(std::string_view path) {\n  for (const Asset& asset : kAssets) {\n    if (asset.path == path) return &asset;\n  }\n  return nullptr;\n}\n\n' +
  'bool has_dashboard() { return true; }\n\n}  // namespace baton::coordinator::http\n';
writeFileSync(out, text);
const sent = assets.reduce((sum, asset) => sum + asset.gzip.length, 0);
console.log(`dashboard: ${assets.length} files, ${sent} bytes as sent`);
if (sent > 150_000) throw new Error('the first view is over 150 kB');
