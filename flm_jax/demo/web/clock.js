/* From the network's time tau to the time t of x = (1 - t) * noise + t * text (flow/clock.py). */

export class Clock {
  /** `tables` are those of the spline, or null for t = tau. */
  constructor(tables) { this.tables = tables; }

  toT(tau) {
    if (!this.tables) return tau;
    const { knots, low, scale, coefficients } = this.tables, count = knots.length;
    const x = Math.fround(tau);
    let begin = 0, end = count;  // the first knot above x
    while (begin < end) {
      const middle = (begin + end) >> 1;
      if (knots[middle] > x) end = middle; else begin = middle + 1;
    }
    const i = Math.min(Math.max(begin - 1, 0), count - 2);
    const u = Math.min(1, Math.max(0, (x - knots[i] - low[i]) * scale[i]));
    const c = (power) => coefficients[power * count + i];
    const value = ((c(0) * u + c(1)) * u + c(2)) * u + c(3);
    const kept = Math.min(Math.max(value, c(3)), coefficients[3 * count + i + 1]);
    return Math.min(1, Math.max(0, kept));
  }
}

/** tau_0 = 0 ... tau_steps = 1; above power 1 steps are shorter towards the end. */
export function grid(steps, power) {
  const rounded = 2 ** -24;  // no step begins at 1
  return Array.from({ length: steps + 1 }, (_, i) => {
    if (power === 1) return i / steps;
    return Math.min(1 - (1 - i / steps) ** power, 1 - (steps - i) * rounded);
  });
}
