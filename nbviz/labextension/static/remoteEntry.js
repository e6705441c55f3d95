// An extension of JupyterLab and Notebook 7: where a saved output is a widget that no kernel knows any more, its picture
// is shown. By themselves they prefer the widget to the picture, and then say "Error displaying widget: model not found".
// Written as the bundle that they load, by hand, since it needs nothing that a bundler would bring.

(() => {
  const VIEW = "application/vnd.jupyter.widget-view+json";

  /** The picture in the place of the widget. @param {HTMLElement} node @param {any} data the output's, by MIME type */
  function show(node, data) {
    const image = document.createElement("img");
    image.src = `data:image/png;base64,${[data["image/png"]].flat().join("")}`;
    image.alt = [data["text/plain"] ?? ""].flat().join("");
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
   * @param {any} renderer of the ipywidgets extension */
  function mend(renderer) {
    const render = renderer.renderModel.bind(renderer);
    renderer.renderModel = async (/** @type {any} */ model) => {
      const id = model.data[VIEW]?.model_id;
      const manager = model.data["image/png"] && (await renderer._manager?.promise);
      if (!manager?.has_model || (id && manager.has_model(id))) return render(model);
      show(renderer.node, model.data);
      if (!id || manager.restoredStatus) return;
      const again = () => {
        // The kernel has said what it knows.
        manager.restored.disconnect(again);
        if (manager.has_model(id) && !renderer.isDisposed) renderer.renderModel(model);
      };
      manager.restored.connect(again);
    };
  }

  const plugin = {
    id: "nbviz:pictures",
    description: "Shows the saved picture of a widget whose kernel is gone.",
    autoStart: true,
    activate: (/** @type {any} */ app) => {
      app.docRegistry.addWidgetExtension("Notebook", {
        createNew: (/** @type {any} */ panel) => {
          const { rendermime } = panel.content;
          const create = rendermime.createRenderer.bind(rendermime);
          rendermime.createRenderer = (/** @type {string} */ type) => {
            const renderer = create(type);
            if (type === VIEW) mend(renderer);
            return renderer;
          };
        },
      });
    },
  };

  const container = { init: () => {}, get: async () => () => ({ __esModule: true, default: plugin }) };
  /** @type {any} */ (globalThis)._JUPYTERLAB = Object.assign(/** @type {any} */ (globalThis)._JUPYTERLAB ?? {}, { nbviz: container });
})();
