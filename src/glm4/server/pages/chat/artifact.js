// Bars on code blocks, tables and formulas; documents that run in a frame of their own.

export function setupArtifacts() {}

/** Called once for each block that will not change any more: `element` is the `div.block` around the rendered HTML. */
export function dressBlock(app, element) {
  element.classList.add("dressed");
}
