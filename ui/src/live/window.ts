/** The rows of a list that are drawn. */
export interface Window {
  first: number;
  /** The row after the last one. */
  end: number;
}

/** Which rows of equal height are seen, and a few around them. */
export function windowOf(scrolled: number, height: number, rowHeight: number, count: number, around: number): Window {
  const most = Math.max(0, count * rowHeight - height);
  // Browsers scroll past both ends, and a list may have become shorter.
  const top = Math.min(Math.max(0, scrolled), most);
  const first = Math.max(0, Math.floor(top / rowHeight) - around);
  const end = Math.min(count, Math.ceil((top + height) / rowHeight) + around);
  return { first, end };
}

/** Where to scroll so that a row is seen: as little as possible. */
export function scrolledTo(row: number, scrolled: number, height: number, rowHeight: number): number {
  const top = row * rowHeight;
  if (top < scrolled) return top;
  if (top + rowHeight > scrolled + height) return top + rowHeight - height;
  return scrolled;
}
