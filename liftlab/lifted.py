"""What a lift leaves: a document in an adapter, put on a base model for asking, kept as a PEFT adapter directory."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import peft
import pydantic
from safetensors.torch import save_file

from liftlab import adapter_files, adapters, records
from liftlab.documents import Document, shown
from liftlab.models import BaseModel
from liftlab.recipes import Recipe

ADAPTER, FULL, FACTS, TEXT = "adapter_model.safetensors", "model.safetensors", "lift.json", "document.txt"


@dataclass(frozen=True)
class Step:
    """One optimizer step: `loss` in nats a scored token, `seconds` since training began, `tokens` read so far."""

    step: int
    epoch: int
    loss: float
    seconds: float
    tokens: int


@dataclass(frozen=True)
class Lifted:
    """A document in an adapter: its weights, how it was trained, and the training history.

    `adapter` is None after full fine-tuning; `state` then holds every weight. `base` is the base model's provenance.
    `origin` is the folder that it was read from: what comes from one must fit the base model before anything is loaded.
    """

    document: Document
    recipe: Recipe
    adapter: peft.PeftConfig | None
    state: adapters.State
    history: tuple[Step, ...]
    base: dict
    origin: Path | None = field(default=None, compare=False)

    @contextmanager
    def on(self, base: BaseModel):
        """The base model with this adapter on, for asking; the base model is itself again afterwards.

        Its window is what a cartridge leaves of it to a prompt with its answer.
        Raises ValueError where `base` is not the model that the document was lifted on, or the weights do not fit it.
        """
        self.check_base(base)
        left = adapters.beside_prefix(base, self.recipe)
        if self.origin is not None:
            self._check_fits(base)
        with adapters.attached(base.model, self.adapter, self.state) as model:
            model.eval()
            yield replace(left, model=model)

    def check_base(self, base: BaseModel) -> None:
        for key in ("weights_sha256", "revision", "name"):  # the first fact that both sides know decides
            mine, theirs = self.base.get(key), base.provenance.get(key)
            if mine and theirs:
                if mine != theirs:
                    raise ValueError(
                        f"this adapter was lifted on {self.base['name']} ({key} {mine}), not on {base.name} "
                        f"({theirs}): ask it on the model it was lifted on"
                    )
                return

    def _check_fits(self, base: BaseModel) -> None:
        try:
            adapter_files.check_fits(base.model, self.adapter, self.state)
        except ValueError as error:
            raise ValueError(
                f"the adapter in {shown(self.origin)} does not fit {base.name} ({error}): lift the document again"
            ) from error

    def save(self, folder: str | Path) -> Path:
        """Write a PEFT adapter directory (after full fine-tuning: all weights) with lift.json and the document.

        All or nothing: the directory appears complete or not at all. Raises FileExistsError where one stands already.
        """
        folder = Path(folder)
        check_free(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            self._write(unfinished)
            unfinished.chmod(0o755)
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished)
            raise
        return folder

    def _write(self, folder: Path) -> None:
        if self.adapter is not None:
            self.adapter.save_pretrained(folder)
        save_file(self.state, folder / (ADAPTER if self.adapter else FULL), metadata={"format": "pt"})
        facts = {
            "title": self.document.title,
            "document": self.document.name,
            "recipe": self.recipe.as_dict(),
            "history": [asdict(step) for step in self.history],
            "provenance": records.provenance(base_model=self.base),
        }
        (folder / FACTS).write_text(json.dumps(facts, indent=2, ensure_ascii=False), encoding="utf-8")
        (folder / TEXT).write_text(self.document.text, encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Lifted:
        """Read what `save` wrote, or a stranger did: nothing there is run, fetched or followed out of the folder.

        Raises FileNotFoundError, or ValueError naming the damaged file and what is wrong with it.
        """
        folder = Path(folder)
        if not (folder / FACTS).is_file():
            raise FileNotFoundError(
                f"{shown(folder)} is no lifted document ({FACTS} is missing): give a folder that lift wrote"
            )
        try:
            facts = adapter_files.parsed(_Facts, adapter_files.object_in(folder, FACTS), FACTS)
            recipe = Recipe(**facts.recipe)
            adapter = adapter_files.config(folder, recipe)
            document = Document(facts.document, adapter_files.text_in(folder, TEXT), facts.title)
            state = adapter_files.weights(folder, ADAPTER if adapter else FULL)
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(
                f"the lifted document in {shown(folder)} is damaged ({error}): lift the document again"
            ) from error
        base = facts.provenance.base_model.model_dump(exclude_unset=True)
        return cls(document, recipe, adapter, state, tuple(facts.history), base, origin=folder)


class _Facts(pydantic.BaseModel):
    """lift.json, every field of it."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    title: str
    document: str
    recipe: dict[str, Any]
    history: list[Step]
    provenance: adapter_files.Made


def check_free(folder: Path) -> None:
    """FileExistsError where something stands at `folder`, a link to nothing too; ValueError where it cannot be made."""
    if os.path.lexists(folder):
        raise FileExistsError(f"{shown(folder)} exists already: choose another --out, or remove it first")
    nearest = next(parent for parent in folder.absolute().parents if os.path.lexists(parent))
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise ValueError(f"{shown(folder)} cannot be made in {shown(nearest)}: choose an --out in a folder to write to")
