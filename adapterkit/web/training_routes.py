"""The page's requests about training."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from adapterkit.training.choices import AugmentationName
from adapterkit.web.routes import state_of
from adapterkit.web.training_job import TrainingJob
from adapterkit.web.training_record import TrainingWish

router = APIRouter(prefix="/api/training", include_in_schema=False)


class Wish(BaseModel):
    model_config = ConfigDict(extra="forbid")
    method: str | None = Field(default=None, pattern=r"^\w+$")
    epochs: int | None = Field(default=None, ge=1, le=1000)
    batch_size: int | None = Field(default=None, ge=1, le=256)
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    image_size: int | None = Field(default=None, ge=32, le=4096)
    augment: AugmentationName = "medical"
    resume: bool = False


def training_of(request: Request) -> TrainingJob:
    """The folder's."""
    found = state_of(request).training
    if found is None:
        raise ValueError("there is nothing to train on: open a folder, adapterkit serve FOLDER")
    return found


Its = Annotated[TrainingJob, Depends(training_of)]


@router.get("")
def told(request: Request) -> dict[str, Any] | None:
    training = state_of(request).training
    return None if training is None else training.told()


@router.post("")
def start(it: Its, wish: Wish | None = None) -> dict[str, Any] | None:
    wish = wish or Wish()
    if wish.resume:
        it.resume()
    else:
        it.start(TrainingWish(**wish.model_dump(exclude={"resume"})))
    return it.told()


@router.delete("")
def stop(it: Its) -> dict[str, Any] | None:
    it.stop()
    return it.told()


@router.post("/use")
def use(it: Its) -> dict[str, Any] | None:
    it.use()
    return it.told()


@router.post("/dismiss")
def dismiss(it: Its) -> dict[str, Any] | None:
    it.dismiss()
    return it.told()
