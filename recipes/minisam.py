"""Pretrain a small Segment Anything model from nothing, for tests and demonstrations.

    torchrun --nproc-per-node 2 -m recipes.minisam         one process for each of 2 CPU cores
    accelerate launch -m recipes.minisam                   on several GPUs or machines
    python -m recipes.minisam                              one process
    python -m recipes.minisam --resume                     goes on where it was interrupted

The procedure is SAM's in small. Procedural scenes stand in for SA-1B, as photographs and as
instruments record them; the first prompt of a mask is a point or a box, and the next ones are
clicks where the mask is wrong, with the mask itself; the loss is 20 focal + Dice, of an ambiguous
point's three masks only the lowest, and the squared error of the predicted IoU. The image embedding
also tells, through a linear map that is dropped in the end, where one thing borders on another: at
first, masks alone teach the encoder little.

Training goes through stages, each with a learning rate that rises and falls to zero, so that any
may be the last; each leaves its weights, `after_stage_N.safetensors`. It begins on images of
128x128 pixels, which cost a fraction of the last ones' 512x512. Between two sizes the positions are
stretched, not continued: a box over half of the image stays one over half of the image, and large
things, which small images cut, are known before they are seen. The last stage leaves
`mini_sam.safetensors`, in half precision as all; `python -m benchmarks.promptability` measures it.

Source: Kirillov et al. 2023, Segment Anything, arXiv 2304.02643, section 3 and appendix A.
"""

from adapterkit.system.command_line import run
from recipes.minisam_options import Config


def main(config: Config) -> None:
    from recipes.minisam_training import pretrain

    pretrain(config)


if __name__ == "__main__":
    run(main, Config)
