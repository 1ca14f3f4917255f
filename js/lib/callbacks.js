// Listening to what nodes and their fields do, beside whoever listens already.

/**
 * Calls `after` whenever an object's method was called, with the same `this` and arguments. For
 * methods that ComfyUI gives out to be set, such as a field's `callback`.
 */
export function after(object, method, after) {
  const before = object[method];
  object[method] = function (...args) {
    const result = before?.apply(this, args);
    after.apply(this, args);
    return result;
  };
}

/** Calls `run` once, `wait` milliseconds after the last call. */
export function debounced(run, wait) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(run, wait);
  };
}
