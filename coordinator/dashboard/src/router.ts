// Paths as state: every view has an address that can be shared.
import { useEffect, useState } from 'preact/hooks';

const listeners = new Set<() => void>();

export function navigate(to: string, replace = false): void {
  if (replace) history.replaceState(null, '', to); else history.pushState(null, '', to);
  for (const listener of listeners) listener();
}

export function usePath(): URL {
  const [, redraw] = useState(0);
  useEffect(() => {
    const listener = (): void => redraw((n) => n + 1);
    listeners.add(listener);
    addEventListener('popstate', listener);
    return () => { listeners.delete(listener); removeEventListener('popstate', listener); };
  }, []);
  return new URL(location.href);
}

// Links within the dashboard change the page without loading it anew.
export function followLinks(): void {
  document.addEventListener('click', (event) => {
    const link = (event.target as Element | null)?.closest('a');
    if (!link || event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey) return;
    if (link.origin !== location.origin || link.target || link.pathname.startsWith('/api/') || link.hash) return;
    event.preventDefault();
    navigate(link.pathname + link.search);
    document.getElementById('main')?.focus();
    scrollTo(0, 0);
  });
}
