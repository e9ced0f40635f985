from adapterkit.system.extras import require

require("train", "accelerate", "matplotlib", "monai", "pandas")
