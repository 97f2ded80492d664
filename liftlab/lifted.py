"""What a lift leaves: a document in an adapter, put on a base model for asking, kept as a PEFT adapter directory."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import peft
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from liftlab import adapters, records
from liftlab.documents import Document
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
    """

    document: Document
    recipe: Recipe
    adapter: peft.PeftConfig | None
    state: adapters.State
    history: tuple[Step, ...]
    base: dict

    @contextmanager
    def on(self, base: BaseModel):
        """The base model with this adapter on, for asking; the base model is itself again afterwards.

        Raises ValueError where `base` is not the model that the document was lifted on.
        """
        self.check_base(base)
        with adapters.attached(base.model, self.adapter, self.state) as model:
            model.eval()
            yield replace(base, model=model)

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

    def save(self, folder: str | Path) -> Path:
        """Write a PEFT adapter directory (after full fine-tuning: all weights) with lift.json and the document.

        All or nothing: the directory appears complete or not at all. Raises FileExistsError where one stands already.
        """
        folder = Path(folder)
        if folder.exists():
            raise FileExistsError(f"{folder} exists already: choose another --out, or remove it first")
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
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError naming the damaged file."""
        folder = Path(folder)
        if not (folder / FACTS).is_file():
            raise FileNotFoundError(
                f"{folder} is no lifted document ({FACTS} is missing): give a folder that lift wrote"
            )
        try:
            facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
            text = (folder / TEXT).read_text(encoding="utf-8")
            full = (folder / FULL).is_file()
            adapter = None if full else peft.PeftConfig.from_pretrained(str(folder))
            state = load_file(folder / (FULL if full else ADAPTER))
            document = Document(facts["document"], text, facts["title"])
            steps = tuple(Step(**step) for step in facts["history"])
            return cls(document, Recipe(**facts["recipe"]), adapter, state, steps, facts["provenance"]["base_model"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the lifted document in {folder} is damaged ({error}): lift it again") from error
