export function setupOperator() {}
