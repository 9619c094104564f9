// Loads a path, and again every `everyMs`; keeps the last answer while it loads or fails.
import { useEffect, useState } from 'preact/hooks';
import { ApiError, get } from '../api';

export interface Loaded<T> { data: T | null; error: ApiError | null }

export function useLoaded<T>(path: string, everyMs = 0): Loaded<T> {
  const [state, setState] = useState<Loaded<T> & { path: string }>({ data: null, error: null, path });
  useEffect(() => {
    let current = true;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const load = async (): Promise<void> => {
      try {
        const data = await get<T>(path);
        if (current) setState({ data, error: null, path });
      } catch (error) {
        if (current) setState((old) => ({ data: old.path === path ? old.data : null, error: error as ApiError, path }));
      }
      if (current && everyMs > 0) timer = setTimeout(() => void load(), everyMs);
    };
    void load();
    return () => { current = false; clearTimeout(timer); };
  }, [path, everyMs]);
  return state.path === path ? state : { data: null, error: null };
}
