/*
 * Lets the search work where the site is opened from the file system. Browsers start
 * no worker from a file:// address, so the worker's script runs in a hidden frame.
 */
(() => {
  if (location.protocol !== "file:") return

  const load = (scope, url) =>
    new Promise((resolve, reject) => {
      const script = scope.document.createElement("script")
      script.src = url
      script.onload = resolve
      script.onerror = () => reject(new Error(`Not loaded: ${url}`))
      scope.document.documentElement.append(script)
    })

  class IFrameWorker extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const scope = this.frame.contentWindow
      // Firefox would replace a document that was not opened and closed.
      scope.document.open()
      scope.document.close()
      scope.postMessage = data =>
        this.dispatchEvent(new MessageEvent("message", { data }))
      scope.importScripts = async (...urls) => {
        for (const each of urls) await load(scope, each)
      }
      this.ready = load(scope, new URL(url, location.href).href)
    }

    postMessage(data) {
      this.ready.then(() =>
        this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }))
      )
    }

    terminate() {
      this.frame.remove()
    }
  }

  // The search asks by this name whether it runs in a frame.
  window.IFrameWorker = IFrameWorker
  window.Worker = IFrameWorker
})()
