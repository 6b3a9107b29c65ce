// Browsers give pages that are opened from a folder no workers. There a hidden frame does the search's work.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.inside = frame.contentWindow
      const here = new URL(url, location)
      const load = (source) =>
        new Promise((done, failed) => {
          const script = this.inside.document.createElement("script")
          Object.assign(script, { src: new URL(source, here), onload: done, onerror: failed })
          this.inside.document.body.append(script)
        })
      this.inside.importScripts = (...sources) =>
        sources.reduce((before, source) => before.then(() => load(source)), Promise.resolve())
      this.inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      this.ready = load(here)
    }

    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })))
    }
  }
}
