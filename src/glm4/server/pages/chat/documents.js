// The side panel with a document, at the cited page.

export function setupDocuments() {}
