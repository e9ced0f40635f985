from adapterkit.system.extras import require

require("train", "nibabel", "scipy")
