from adapterkit.system.extras import require

require("train", "accelerate", "monai")
