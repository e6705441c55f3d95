// An extension of JupyterLab and Notebook 7: where a saved output is a widget that no kernel knows any more, its
// picture is shown. By themselves they prefer the widget to the picture, and then say "Error displaying widget: model
// not found".
// Written as the bundle that they load, by hand, since it needs nothing that a bundler would bring.

/** What is used of JupyterLab and its ipywidgets extension.
 * @typedef {{connect(slot: () => void): void, disconnect(slot: () => void): void}} Signal
 * @typedef {Record<string, unknown>} Data an output's, by MIME type
 * @typedef {{data: Data}} Output
 * @typedef {{has_model?: (id: string) => boolean, restoredStatus: boolean, restored: Signal}} Manager
 * @typedef {{node: HTMLElement, isDisposed: boolean, renderModel(output: Output): Promise<void>,
 *   _manager?: {promise: Promise<Manager>}}} Renderer
 * @typedef {{createRenderer(type: string): Renderer}} Rendermime
 * @typedef {{createNew(panel: {content: {rendermime: Rendermime}}): void}} WidgetExtension
 * @typedef {{docRegistry: {addWidgetExtension(kind: string, extension: WidgetExtension): void}}} App */

(() => {
  const VIEW = "application/vnd.jupyter.widget-view+json";

  /** Text of an output, which may come in lines. @param {unknown} lines */
  const joined = (lines) => [lines ?? ""].flat().join("");

  /** The picture in the place of the widget. @param {HTMLElement} node @param {Data} data */
  function show(node, data) {
    const image = document.createElement("img");
    image.src = `data:image/png;base64,${joined(data["image/png"])}`;
    image.alt = joined(data["text/plain"]);
    image.style.cssText = "display: block; max-width: 100%";
    const caption = document.createElement("figcaption");
    caption.textContent = "Saved picture: run the cell for the live view";
    caption.style.cssText = "color: var(--jp-ui-font-color2); font-size: var(--jp-ui-font-size1); padding: 2px 0";
    const figure = document.createElement("figure");
    figure.style.margin = "0";
    figure.append(image, caption);
    node.replaceChildren(figure);
  }

  /** Have a renderer of widgets show the picture where it would say that there is no model.
   * @param {Renderer} renderer of the ipywidgets extension */
  function mend(renderer) {
    const render = renderer.renderModel.bind(renderer);
    renderer.renderModel = async (model) => {
      const view = /** @type {{model_id?: string} | undefined} */ (model.data[VIEW]);
      const id = view?.model_id;
      const manager = model.data["image/png"] ? await renderer._manager?.promise : undefined;
      if (!manager?.has_model || (id && manager.has_model(id))) return render(model);
      show(renderer.node, model.data);
      if (!id || manager.restoredStatus) return;
      const again = () => {
        // The kernel has said what it knows.
        manager.restored.disconnect(again);
        if (manager.has_model?.(id) && !renderer.isDisposed) renderer.renderModel(model);
      };
      manager.restored.connect(again);
    };
  }

  const plugin = {
    id: "nbviz:pictures",
    description: "Shows the saved picture of a widget whose kernel is gone.",
    autoStart: true,
    activate: (/** @type {App} */ app) => {
      app.docRegistry.addWidgetExtension("Notebook", {
        createNew: ({ content: { rendermime } }) => {
          const create = rendermime.createRenderer.bind(rendermime);
          rendermime.createRenderer = (type) => {
            const renderer = create(type);
            if (type === VIEW) mend(renderer);
            return renderer;
          };
        },
      });
    },
  };

  const container = { init: () => {}, get: async () => () => ({ __esModule: true, default: plugin }) };
  const host = /** @type {typeof globalThis & {_JUPYTERLAB?: Record<string, typeof container>}} */ (globalThis);
  host._JUPYTERLAB = Object.assign(host._JUPYTERLAB ?? {}, { nbviz: container });
})();
