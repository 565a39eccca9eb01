// Conversations by day: pinned ones, today, yesterday, the last seven days, older ones.

const DAY = 24 * 60 * 60 * 1000;

/** The groups that have a conversation, in order.
 * @param {{pinned: boolean, updated: number}[]} conversations - in the server's order; seconds since the epoch
 * @param {Date} now
 * @returns {{key: string, conversations: object[]}[]}
 */
export function byDay(conversations, now = new Date()) {
  const midnight = new Date(now.getFullYear(), now.getMonth(), now.getDate()).getTime();
  const groups = new Map(["pinned", "today", "yesterday", "week", "older"].map((key) => [key, []]));
  for (const one of conversations) groups.get(groupOf(one, midnight)).push(one);
  return [...groups].filter(([, found]) => found.length).map(([key, found]) => ({ key, conversations: found }));
}

function groupOf(conversation, midnight) {
  const changed = conversation.updated * 1000;
  if (conversation.pinned) return "pinned";
  if (changed >= midnight) return "today";
  // Half a day off is still the day before: clocks change twice a year.
  if (changed >= startOf(midnight, 1)) return "yesterday";
  return changed >= startOf(midnight, 7) ? "week" : "older";
}

function startOf(midnight, days) {
  const noon = new Date(midnight - days * DAY + DAY / 2);
  return new Date(noon.getFullYear(), noon.getMonth(), noon.getDate()).getTime();
}
