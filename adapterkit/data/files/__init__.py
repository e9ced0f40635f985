from adapterkit.system.extras import require

require("files", "PIL", "nibabel")
