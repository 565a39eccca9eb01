export function setupSettings() {}
