"""The Lightning data module of a corpus in any layout."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from ret_lightning.data.bad_rows import OnBadRow
from ret_lightning.data.epoch_position import Position
from ret_lightning.data.images.sources import ImageReader
from ret_lightning.data.instructions import Instructions
from ret_lightning.data.layouts.base import Layout
from ret_lightning.data.layouts.subset_names import SubsetNames
from ret_lightning.data.loaders import make_evaluation_loaders, make_row_loader
from ret_lightning.data.required_files import Needed, check_required_files
from ret_lightning.data.rows import ExtraColumns
from ret_lightning.data.sampling.batch_samplers import distribute_batches
from ret_lightning.data.sampling.holdout import Holdout, HoldoutLimits
from ret_lightning.data.sampling.training_set import Reading, TrainingChoice, TrainingSet
from ret_lightning.data.subset_loading import choose_subsets, load_holdout_subset, load_subset, sample_pool
from ret_lightning.data.torch_datasets import Collator, EvaluationRows, TrainingRows
from ret_lightning.data.types import SIDES, EvaluationSubset, Source, Split, warn_unreachable
from ret_lightning.data.validation_plan import Validation, ValidationPlan, check_validation, plan_validation
from ret_lightning.errors import ConfigError
from ret_lightning.inputs import Augmentation, ImageTransform, Tokenizer
from ret_lightning.inputs.decoding import MAX_PIXELS

log = logging.getLogger(__name__)


class RetrievalDataModule(LightningDataModule):
    """A Lightning data module: training pairs, and queries and candidate pools of the evaluation subsets.

    The loaders distribute the rows over the ranks themselves (each training row once per epoch, each evaluation row on one
    rank), so the Trainer needs `use_distributed_sampler=False`. All configs of the group `trainer` set it.

    A subclass that fixes the layout takes these arguments as `**options`; they appear in its signature.

    Args:
        layout: layout of the corpus.
        tokenizer: tokenizer of the backbone; None if no loader is created.
        image_transform: image transform of the backbone; None if no loader is created.
        subsets: names of the subsets to train and evaluate on; None: all subsets with a test file, and all training rows.
        repeat: how often each training row is sampled per epoch, by subset; default 1. 0: never; 0.5: a new random half of
            the rows per epoch.
        weights: share of the epoch of each subset, in any unit, instead of `repeat`; other subsets are left out.
        limit: maximum number of training rows, and of queries per subset, the first ones; for quick tests. None: all.
        one_subset_batches: whether all rows of a global batch belong to one subset.
        instructions: templates that replace the instructions of the rows, a list for all subsets or a list per subset.
            Training samples one of them per row; evaluation uses the first. None: the instructions of the rows.
        reading: `indexed`: copy the training rows to Arrow once, and shuffle them uniformly. `streaming`: read the files
            during training, which starts immediately, shuffles with a buffer (see `RowStream`), and has no epoch length.
        shuffle_buffer: number of rows in the shuffle buffer when streaming.
        batch_size: training pairs per batch and rank.
        eval_batch_size: rows per batch when encoding for evaluation.
        num_workers: loader processes per rank; 0: load in the main process.
        augmentation: augmentation of training images; None: none.
        negatives: maximum number of `negative_passages` per training row; None: all.
        columns: fields of training rows, each a number or a list of numbers, that the loss receives in `EncodedBatch.extra`.
        passage_columns: fields of training rows with one number per passage, as in `rows.ExtraColumns`, for the loss.
        shared_passage_ids: True: equal ids of two subsets are the same passage, which is a positive of each query of the batch
            that has this id. False: they are different passages, each a negative of the other's query.
        validation: source of the validation queries. `val`: `<subset>_val.jsonl`; `holdout`: training rows selected by their
            passage ids and removed from training; `test`: the test queries. `auto`: `val` for subsets with such a file and
            `holdout` for the others, or `test`, with a warning, if neither is possible. `val_or_test`: `val` for subsets with
            such a file, else `test`. ReT-M2KR has no validation files.
        validation_pool: number of passages per subset that validation searches: all positives, and a random sample of the
            others. None: the whole candidate pool, or with a holdout the positives and 1,000 others. Recall in a smaller
            pool is higher.
        holdout_rows: maximum number of training rows per subset that a holdout removes from training.
        holdout_fraction: maximum share of a subset's training rows that a holdout removes; the smaller limit applies.
        max_image_pixels: maximum number of pixels of an image; larger images are an error and are not decoded.
        seed: seed of the row order, the fractional parts of the mixture, the instructions and the augmentation.
        on_bad_row: `raise` an error for a bad row, or `skip` it. Skipped training rows and lines of evaluation files are
            left out and counted by kind; queries and passages whose image cannot be read are encoded without it.
        max_bad_fraction: maximum share of skipped rows, in [0, 1], among the training rows read so far and in each
            evaluation file; above it, the run stops with an error.

    Raises:
        ConfigError: if an argument is out of range, or arguments are contradictory.
    """

    def __init__(
        self,
        layout: Layout,
        tokenizer: Tokenizer | None,
        image_transform: ImageTransform | None,
        subsets: Sequence[str] | None = None,
        repeat: Mapping[str, float] | None = None,
        weights: Mapping[str, float] | None = None,
        limit: int | None = None,
        one_subset_batches: bool = False,
        instructions: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        reading: Reading = "indexed",
        shuffle_buffer: int = 10_000,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        augmentation: Augmentation | None = None,
        negatives: int | None = None,
        shared_passage_ids: bool = False,
        validation: Validation = "auto",
        validation_pool: int | None = None,
        holdout_rows: int = 1_000,
        holdout_fraction: float = 0.02,
        max_image_pixels: int = MAX_PIXELS,
        seed: int = 0,
        on_bad_row: OnBadRow = "raise",
        max_bad_fraction: float = 0.01,
        columns: Sequence[str] = (),
        passage_columns: Sequence[str] = (),
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ConfigError(
                    f"data.{name}={value}: expected at least 1", code="batch-size-out-of-range", key=name, found=value
                )
        if negatives is not None and negatives < 0:
            raise ConfigError(
                f"data.negatives={negatives}: expected at least 0, or null for all negatives of a row",
                code="negatives-out-of-range",
                found=negatives,
            )
        if on_bad_row not in (allowed := ("raise", "skip")):
            message = f"data.on_bad_row={on_bad_row}: expected raise or skip"
            raise ConfigError(message, code="unknown-on-bad-row", found=on_bad_row, allowed=allowed)
        if not 0 <= max_bad_fraction <= 1:
            raise ConfigError(
                f"data.max_bad_fraction={max_bad_fraction}: expected a number from 0 to 1",
                code="bad-fraction-out-of-range",
                found=max_bad_fraction,
            )
        check_validation(validation)
        self.layout = layout
        if repeated := sorted({*columns} & {*passage_columns}):
            raise ConfigError(
                f"data.columns and data.passage_columns both list {', '.join(repeated)}; list each field in one of them",
                code="column-named-twice",
                found=tuple(repeated),
            )
        self.extra_columns = ExtraColumns(tuple(columns), tuple(passage_columns))
        self.tokenizer = tokenizer
        self.image_transform = image_transform
        self.subset_names = None if subsets is None else list(subsets)
        self.choice = TrainingChoice(
            reading, shuffle_buffer, self.subset_names, repeat, weights, limit, one_subset_batches
        )
        self.instructions = Instructions(instructions)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.augmentation = augmentation
        self.negatives = negatives
        self.shared_passage_ids = shared_passage_ids
        self.max_image_pixels = max_image_pixels
        self.validation = validation
        self.validation_pool = validation_pool
        self.holdout_limits = HoldoutLimits(holdout_rows, holdout_fraction, validation_pool)
        self.seed = seed
        self.on_bad_row = on_bad_row
        self.max_bad_fraction = max_bad_fraction
        self._train: TrainingSet | None = None
        self.position = Position()  # position of the checkpoint that training resumes from
        self._evaluation: dict[Split, list[EvaluationSubset]] = {}
        self._plan: ValidationPlan | None = None
        self.allow_zero_length_dataloader_with_multiple_devices = True  # small files have no batch for some ranks

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cast(Any, cls).__signature__ = _signature_with_options(cls)

    @property
    def collate(self) -> Collator:
        """The function that collates rows into batches."""
        transform = cast(ImageTransform, self.image_transform)
        return Collator(cast(Tokenizer, self.tokenizer), transform.size, self.extra_columns)

    def check_files(self, needed: Collection[Needed]) -> list[str] | None:
        """Check that the files and folders of the corpus exist before they are read or copied, and index image archives.

        Args:
            needed: `train` for the training files, `val` and `test` for the evaluation files of these splits.

        Returns:
            The names of the subsets with evaluation files; None if `Layout.prepare` has yet to create the files.

        Raises:
            DataError: if a file or folder is missing or cannot be read; the message contains its path.
        """
        if self.layout.is_generated:
            return None
        # With another `validation`, the training files determine what is validated on.
        of_validation: dict[str, list[Needed]] = {"val": ["val"], "test": ["test"], "val_or_test": ["test"]}
        validated = of_validation.get(self.validation, [])
        names = self._names()
        check_required_files(self.layout, names, {*needed} - {"val"} | {*(validated if "val" in needed else [])})
        return names

    def prepare_data(self) -> None:
        """Fill the caches for training (Arrow copy, row scan, archive index); Lightning calls it once per machine."""
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return  # an evaluation does not need training files
        self.layout.prepare()
        self.check_files(["train"])
        self._training_set().batches(self.batch_size)

    def setup(self, stage: str | None = None) -> None:
        """Open the files; evaluation files are parsed and checked now, training rows when they are read.

        Args:
            stage: `fit`, `validate` or `test`; None: all.

        Raises:
            DataError: if a file is missing, or a row is bad; the message contains the path, and the line and field of the row.
        """
        self.layout.prepare()
        if stage in (None, "fit") and self._train is None:
            self._train = self._training_set()
            log.info("training: %s", self._train)
        if stage in (None, "fit", "validate"):
            self._load("val")
        if stage in (None, "test"):
            self._load("test")

    def training_batches(self, world_size: int) -> int | None:
        """Return the number of batches per epoch and rank; None if rows are streamed.

        Args:
            world_size: number of ranks.
        """
        batches = (self._train or self._training_set()).batches(self.batch_size, 0, world_size)
        return batches.batches_per_epoch(*batches.size)

    def evaluation_subsets(self, split: Split) -> list[EvaluationSubset]:
        """Return the subsets of a split, in the order of its loaders (see `val_dataloader`)."""
        return self._evaluation[split]

    @property
    def validated_on(self) -> dict[str, Source]:
        """The source of the validation queries of each subset, by name; empty before `setup`."""
        return {subset.name: subset.source for subset in self._evaluation.get("val", ())}

    def validation_plan(self) -> ValidationPlan:
        """Return the sources of the validation queries and the held-out rows; the first call may scan the training rows.

        Raises:
            ConfigError: if `validation` is `holdout` and no row can be held out.
            DataError: if a file is missing or cannot be read.
        """
        if self._plan is None:
            self._plan = plan_validation(
                self.layout, self._names(), self.subset_names or (), self.validation, self.holdout_limits
            )
            self._plan.log()
        return self._plan

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of this rank's batches of training pairs."""
        assert self._train is not None  # Lightning has called `setup`
        rows = TrainingRows(
            self._train.rows, self._read_image(), self._train.names, self.augmentation, self.instructions, self.negatives,
            self.seed, self.on_bad_row, self.shared_passage_ids, self.extra_columns, self.layout.parser,
        )  # fmt: skip
        batches = self._train.batches(self.batch_size, *self._rank_and_world())
        # Lightning has not restored `current_epoch` at the time of the first call.
        batches.set_epoch(max(self.position.epoch, self.trainer.current_epoch if self.trainer else 0))
        batches.resume(self.position)
        return make_row_loader(rows, batches, self.collate.training, persistent_workers=True, **self._loading())

    def state_dict(self) -> dict[str, Any]:
        """Return the state of `Position`: the epoch, and the batches that it served."""
        assert self.trainer is not None  # the trainer saves it
        epochs, batches = self.trainer.fit_loop.epoch_progress.current, self.trainer.fit_loop.epoch_loop.batch_progress
        epoch, served = (epochs.ready, 0) if batches.is_last_batch else (epochs.ready - 1, batches.current.ready)
        return self.position.advance(epoch, served, self._rank_and_world()[1], self.batch_size).state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position from which training resumes; Lightning calls it before it creates the loaders."""
        self.position = Position.from_state(state_dict, self._rank_and_world()[1], self.batch_size)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Return the validation loaders: of each subset, one of the candidate pool and one of the queries."""
        return self.evaluation_loaders("val")

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Return the test loaders: of each subset, one of the candidate pool and one of the queries."""
        return self.evaluation_loaders("test")

    def evaluation_loaders(self, split: Split) -> list[DataLoader[Any]]:
        """Return the loaders of a split, with the batches that `choose_batches` returns for this rank.

        Args:
            split: `val` or `test`, which must be set up.
        """
        files = self.evaluation_rows(split)
        return make_evaluation_loaders(files, self.choose_batches(files), self.collate, **self._loading())

    def choose_batches(self, files: Sequence[EvaluationRows]) -> list[list[list[int]]]:
        """Return this rank's batches of each file, each batch a list of row numbers.

        An evaluation run replaces this method with `StoredSink.begin`, so that a resumed one skips the rows that are already
        encoded.

        Args:
            files: rows of each side of each subset, as from `evaluation_rows`.
        """
        return distribute_batches([len(rows) for rows in files], self.eval_batch_size, *self._rank_and_world())

    def evaluation_rows(self, split: Split) -> list[EvaluationRows]:
        """Return the datasets of a split: of each subset, the candidate pool and then the queries.

        Args:
            split: `val` or `test`, which must be set up.
        """
        read_image = self._read_image()
        return [
            EvaluationRows(subset.rows(side), read_image, subset.name, side, self.on_bad_row)
            for subset in self._evaluation[split]
            for side in SIDES
        ]

    def _read_image(self) -> ImageReader:
        return ImageReader(
            self.layout.image_source(), cast(ImageTransform, self.image_transform), self.max_image_pixels
        )

    def _loading(self) -> dict[str, Any]:
        """Return the options that all loaders share."""
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {"num_workers": self.num_workers, "pin_memory": on_gpu, "seed": self.seed}

    def training_names(self, evaluated: Sequence[str]) -> SubsetNames:
        """Return the map from the fields of a training row to its subset.

        Args:
            evaluated: names of the subsets that have evaluation files.

        Raises:
            ConfigError: if a setting contains an unknown subset.
            DataError: if the training files cannot be read, or a subset with a weight has no rows.
        """
        return self._training_set(evaluated).names

    def _training_set(self, evaluated: Sequence[str] | None = None) -> TrainingSet:
        named = dict.fromkeys(self.instructions.subsets, "data.instructions")
        files = self.layout.training_files()
        holdout = None if evaluated is not None else self.validation_plan().holdout
        return TrainingSet(
            files, self.choice, self._names() if evaluated is None else evaluated, named, self.seed, holdout,
            self.layout.known_subsets(), self.layout.parser,
        )  # fmt: skip

    def _load(self, split: Split) -> None:
        if split in self._evaluation:
            return
        plan = self.validation_plan() if split == "val" else ValidationPlan(dict.fromkeys(self._names(), "test"))
        self._evaluation[split] = [self._subset(split, name, plan) for name in plan.sources]

    def _subset(self, split: Split, name: str, plan: ValidationPlan) -> EvaluationSubset:
        source, instruction, limit = plan.sources[name], self.instructions.first(name), self.choice.limit
        note = {"val": "", "holdout": " (held-out training rows)", "test": " (test queries)"}[source]
        if source == "holdout":
            is_indexed = self.choice.reading == "indexed"
            subset = load_holdout_subset(cast(Holdout, plan.holdout), name, instruction, limit, is_indexed)
        else:
            subset = load_subset(
                self.layout, name, split, source, instruction, limit, self.on_bad_row, self.max_bad_fraction
            )
            if split == "val" and self.validation_pool is not None and len(subset.pool) > self.validation_pool:
                note += f"; pool sampled from {len(subset.pool)} passages (data.validation_pool)"
                subset = sample_pool(subset, self.validation_pool, self.seed)
        sizes, note = (len(subset.queries), len(subset.pool)), note if split == "val" else ""
        log.info("%s/%s: %d queries, %d passages%s", split, name, *sizes, note)
        warn_unreachable(subset)
        return subset

    def _names(self) -> list[str]:
        return choose_subsets(self.layout, self.subset_names)

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def _signature_with_options(cls: type[RetrievalDataModule]) -> inspect.Signature:
    """Return the signature of a subclass, with `**options` replaced by the arguments of `RetrievalDataModule`."""
    own = inspect.signature(cls.__init__, eval_str=True)
    parameters = [p for name, p in own.parameters.items() if name != "self"]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        return own.replace(parameters=parameters)
    explicit = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    names = {"self", "layout", *(p.name for p in explicit)}
    base = inspect.signature(RetrievalDataModule.__init__, eval_str=True).parameters
    options = [p.replace(kind=p.KEYWORD_ONLY) for name, p in base.items() if name not in names]
    return own.replace(parameters=explicit + options)
