"""Which images a run of `adapterkit predict` segments, and what it leaves out."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from adapterkit.data.files.images import sort_out, stem
from adapterkit.data.files.series import find_series
from adapterkit.inference.prompt_files import ImagePrompts


@dataclass(frozen=True)
class Task:
    """An image to segment.

    Attributes:
        image: the file.
        name: of the image within what was given.
        masks: the file to write.
        prompts: of its structures; None: those that the adapter knows by name, or else a grid of
            points finds what there is.
        slices: the files of a DICOM series, which `image` then is the folder or the first of.
        frame: of a sequence, the one that the prompts are in, from 0; None: they are in each.
    """

    image: Path
    name: str
    masks: Path
    prompts: ImagePrompts | None
    slices: tuple[Path, ...] = ()
    frame: int | None = None

    @property
    def done(self) -> bool:
        """The masks are there, and no older than the image."""
        try:
            newest = max(file.stat().st_mtime for file in self.slices or (self.image,))
            return self.masks.stat().st_mtime >= newest
        except (FileNotFoundError, NotADirectoryError):
            return False


@dataclass(frozen=True)
class Found:
    """What is to be done, and what is not.

    Attributes:
        tasks: one for each image.
        notes: what is left out, and which masks are named otherwise than by the image's stem.
    """

    tasks: list[Task]
    notes: list[str]


def find_tasks(
    paths: Sequence[Path],
    out: Path,
    ending: str,
    prompts: Callable[[str], ImagePrompts | None],
    frame: int | None = None,
) -> Found:
    """A task for each file, and for each image in each folder and its subfolders.

    The slices of a DICOM series, as `find_series` finds them in a folder, are one image: it is
    named after the folder if nothing else is in it, and else after the first of its files. Masks of
    images that share a stem are named after the images' whole names.

    Args:
        paths: files and folders.
        out: the folder of the masks, which has the subfolders that the images are in.
        ending: of the masks' names, `.nii.gz` say.
        prompts: gives those of an image by its name: a file's own, within a folder with the
            subfolders.
        frame: that these are in, as in `Task`.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder holds no image, or masks would be among the images or in the place of
            one.
    """
    images: list[tuple[Path, PurePath, tuple[Path, ...]]] = []
    others: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"there is no file or folder at {path}")
        if not path.is_dir():
            images.append((path, PurePath(path.name), ()))
            continue
        if out.resolve().is_relative_to(path.resolve()):
            raise ValueError(
                f"--out {out} lies within {path}, where its masks would be taken for images; name "
                "a folder elsewhere"
            )
        files, left_out = sort_out(path)
        images += _in_folder(path, files)
        others += left_out
    notes = _named(others, "no image")
    tasks: dict[Path, Task] = {}
    twice = []
    stems = Counter(name.with_name(stem(name.name)) for name in {each for _, each, _ in images})
    for image, name, slices in images:
        own = name.with_name(stem(name.name))
        masks = out / (own.with_name(own.name + ending) if stems[own] == 1 else f"{name}{ending}")
        if masks in tasks:
            twice.append(image)
            continue
        of_image = prompts(name.as_posix())
        tasks[masks] = Task(image, name.as_posix(), masks, of_image, slices, frame)
        if masks.name != own.name + ending:
            notes.append(f"the masks of {image} are named {masks.name}, as others share its stem")
    notes += _named(twice, "named as an image of another folder is; give it its own --out")
    originals = {image.resolve() for image, _, _ in images}
    for masks in tasks:
        if masks.resolve() in originals:
            raise ValueError(f"{masks} is an image, and would be overwritten; name another --out")
    return Found(list(tasks.values()), notes)


def _in_folder(
    root: Path, files: Sequence[Path]
) -> Iterator[tuple[Path, PurePath, tuple[Path, ...]]]:
    """Images of a folder, with their names and, of a series, its slices."""
    series = find_series(files)
    slices = {file: tuple(each) for each in series for file in each}
    there = Counter(file.parent for file in files)
    for file in files:
        if file not in slices:
            yield file, file.relative_to(root), ()
        elif file == slices[file][0]:
            folder = file.parent
            alone = there[folder] == len(slices[file])
            image = folder if alone else file
            name = image.relative_to(root)
            yield image, name if name.name else PurePath(folder.resolve().name), slices[file]


def _named(files: Sequence[Path], why: str) -> list[str]:
    """One line that counts and names files, the first of many."""
    if not files:
        return []
    names = ", ".join(map(str, files[:10])) + (f" and {len(files) - 10} more" * (len(files) > 10))
    return [f"left out {len(files)} file{'s' * (len(files) > 1)}, {why}: {names}"]
