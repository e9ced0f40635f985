"""The page of `adapterkit serve`, and the interface for other programs on the same server.

`workspace` is what annotators do to a `worklist`, without a browser; `model` answers them and
`training_job` trains on what they accept. `routes` are the page's requests, `interface` those of
other programs, and `server` puts them behind what `guards` refuses. The page is in `static`.
"""

from adapterkit.system.extras import require

require("web", "fastapi", "python_multipart", "uvicorn")
