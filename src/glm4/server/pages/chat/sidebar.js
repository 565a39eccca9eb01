export function setupSidebar() {}
