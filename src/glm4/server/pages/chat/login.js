export function setupLogin() {}
