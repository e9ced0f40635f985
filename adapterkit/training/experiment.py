"""What an experiment is: a subject, a collection, how it is trained and how it is measured."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from adapterkit.data.collections.collection import Collection
from adapterkit.data.dataset import CACHE, Augmentation, SegmentationDataset
from adapterkit.data.splits import Split
from adapterkit.evaluation.evaluation import Evaluation
from adapterkit.promptable.protocol import Promptable
from adapterkit.promptable.strategies import PROMPTS_IN_WORDS, PromptStrategy
from adapterkit.training.settings import Settings
from adapterkit.training.state import Epoch
from adapterkit.training.subjects import Subject


@dataclass(frozen=True)
class Experiment:
    """What is trained on what, and how it is measured.

    Attributes:
        subject: what is trained; where there is nothing to train, it is measured alone.
        collection: the data.
        data: what they are called in tables.
        split: of the collection's groups.
        settings: of the training.
        image_size: side of the images that the model is given, in pixels.
        augmentation: of the training images.
        workers: processes that read training images; see `DataLoader`.
        cache: bytes for the decoded images of each part of the split.
        prompts: with which the test images are segmented; the first is the table's main one.
        zero_shot: whether the base as it comes is measured too, at its own input size.
        others: what others come to on the same test images, by name, to stand in the same tables.
    """

    subject: Subject
    collection: Collection
    data: str
    split: Split
    settings: Settings
    image_size: int
    augmentation: Augmentation | None = None
    workers: int = 0
    cache: int = CACHE
    prompts: tuple[PromptStrategy, ...] = ("1",)
    zero_shot: bool = False
    others: Mapping[str, Evaluation] = field(default_factory=dict)

    @property
    def groups_are(self) -> str:
        """What the collection's groups are called in tables."""
        return "patients" if self.collection.is_grouped else "groups"

    def title_with(self, prompts: PromptStrategy) -> str:
        """The subject's title, with what it was prompted by where that was not one thing alone."""
        asked = f", {PROMPTS_IN_WORDS[prompts]}" if len(self.prompts) > 1 else ""
        return self.subject.title + asked

    def dataset(self, part: str, image_size: int | None = None) -> SegmentationDataset:
        """The images for "train", "validation" or "test"."""
        return SegmentationDataset(
            self.collection.of_groups(getattr(self.split, part)),
            image_size or self.image_size,
            self.augmentation if part == "train" else None,
            self.settings.seed,
            self.cache,
        )

    def with_groups(self, evaluation: Evaluation) -> Evaluation:
        """With the attribute "group" of each image, where images share groups and no other
        attribute tells them, so that results are summed up over groups too."""
        collection = self.collection
        pairs = zip(collection.records, collection.groups, strict=True)
        group_of = {record.name: group for record, group in pairs}
        groups = [group_of[name] for name in evaluation.names]
        known = evaluation.attributes
        told = [[each[key] for each in known] for key in known[0]]
        if not collection.is_grouped or groups in told:
            return evaluation
        pairs = zip(known, groups, strict=True)
        return replace(evaluation, attributes=[{**each, "group": group} for each, group in pairs])

    def save(self, model: Promptable, path: Path, epoch: Epoch) -> None:
        """Write what was trained as an epoch left it."""
        notes = {
            "data": self.data,
            "base": self.subject.base,
            "seed": self.settings.seed,
            **asdict(epoch),
        }
        self.subject.save(model, path, list(self.collection.structures.values()), notes)
