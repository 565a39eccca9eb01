// Rendered blocks of one part: each is a `div.block`, replaced by its number only, never the whole.

import { dressBlock } from "./artifact.js";
import { block, el } from "./dom.js";

const LONG = 40; // blocks; from then on the browser skips the layout of those out of sight

/** Draws the blocks of a part into `root`. */
export class Blocks {
  constructor(app, root) {
    this.app = app;
    this.root = root;
    this.drawn = [];
    this.dressed = 0; // so many from the beginning
  }

  /** Draw what differs from `blocks`; the last one may still change, unless `final`. */
  show(blocks, final) {
    let same = 0;
    while (same < blocks.length && same < this.drawn.length && this.drawn[same] === blocks[same]) same += 1;
    const { root } = this;
    while (root.children.length > same) root.lastElementChild.remove();
    const added = blocks.slice(same).map((safe) => el("div", { class: "block" }, block(safe)));
    root.append(...added);
    this.drawn = blocks.slice();
    this.dressed = Math.min(this.dressed, same);
    this.dress(final ? blocks.length : blocks.length - 1);
    root.classList.toggle("long", blocks.length > LONG);
  }

  /** Append plain text to the code of a block; `now` is the block that results. */
  append(number, add, now) {
    const code = this.root.children[number]?.querySelector("code");
    if (!code || this.drawn[number] === undefined) return;
    if (code.lastChild?.nodeType === Node.TEXT_NODE) code.lastChild.appendData(add);
    else code.append(add);
    this.drawn[number] = now;
  }

  dress(until) {
    for (; this.dressed < until; this.dressed += 1) {
      dressBlock(this.app, this.root.children[this.dressed]);
    }
  }
}
