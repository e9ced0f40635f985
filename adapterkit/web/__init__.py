"""The web page of `adapterkit serve`: one's own images, clicked on in a browser.

`session` is what a user does, without a browser; `drawing` turns it into SVG and HTML; `events` is
what the page's events do, and `page` the page itself.
"""

from adapterkit.system.extras import require

require("web", "contourpy", "gradio")
