// Names for what ipywidgets leaves without: the handle of a slider takes none from the label beside it.

/** Name the handles of all sliders in a widget, now and when more of them come; returns a function that ends it.
 * @param {HTMLElement} root */
export function nameHandles(root) {
  const name = () => {
    for (const handle of root.querySelectorAll(".noUi-handle:not([aria-label])")) {
      const label = handle.closest(".widget-inline-hbox")?.querySelector(".widget-label")?.textContent;
      if (label) handle.setAttribute("aria-label", label);
    }
  };
  const seen = new MutationObserver(name);
  seen.observe(root, { childList: true, subtree: true });
  name();
  return () => seen.disconnect();
}
