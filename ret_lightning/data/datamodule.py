"""The Lightning data module of any corpus: training pairs, and queries and candidate pools of the evaluation subsets."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from ret_lightning.data.bad_rows import OnBadRow
from ret_lightning.data.epoch_position import Position
from ret_lightning.data.images.sources import ImageReader
from ret_lightning.data.instructions import Instructions
from ret_lightning.data.layouts.base import Layout
from ret_lightning.data.layouts.subset_names import SubsetNames
from ret_lightning.data.loaders import make_evaluation_loader, make_row_loader
from ret_lightning.data.required_files import Needed, check_required_files
from ret_lightning.data.rows import ExtraColumns
from ret_lightning.data.sampling.batch_samplers import distribute_batches, fill_idle_rank
from ret_lightning.data.sampling.holdout import HoldoutLimits
from ret_lightning.data.sampling.training_set import Reading, TrainingChoice, TrainingSet
from ret_lightning.data.subset_loading import load_subset, sample_pool
from ret_lightning.data.torch_datasets import Collator, EvaluationRows, TrainingRows
from ret_lightning.data.types import SIDES, EvaluationSubset, Source, Split, warn_unreachable
from ret_lightning.data.validation_plan import (
    Validation,
    ValidationPlan,
    check_validation,
    load_holdout_subset,
    plan_validation,
)
from ret_lightning.errors import ConfigError, DataError
from ret_lightning.inputs import Augmentation, ImageTransform, Tokenizer
from ret_lightning.inputs.decoding import MAX_PIXELS

log = logging.getLogger(__name__)


class RetrievalDataModule(LightningDataModule):
    """Training pairs, and queries and pools of the evaluation subsets, of a corpus in any layout.

    Its loaders shard themselves over the ranks (each training row once an epoch, each evaluation row on one rank), so the
    Trainer wants `use_distributed_sampler=False`, as every config of the group `trainer` has it.

    A subclass that fixes the layout takes these arguments as `**options`, and shows them in its signature.

    Args:
        layout: where the corpus is stored, and how its rows are read.
        tokenizer: the backbone's; None, as `image_transform`, where rows are read and no loader is made.
        image_transform: the backbone's.
        subsets: names of the subsets to train and evaluate on; None: all that have a test file, and every training row.
        repeat: how often a training row comes in an epoch, by subset: 0 leaves a subset out, 0.5 takes another random half
            each epoch; 1 where a subset is not named.
        weights: shares of the epoch by subset, in any unit, instead of `repeat`; subsets that are not named are left out.
        limit: only the first so many training rows and queries a subset, for trying things out; None: all.
        one_subset_batches: whether each global batch is of rows of one subset only.
        instructions: templates that take the place of the rows' instructions, a list for all or a list by subset: in
            training any of them, in evaluation the first. None: as the rows have them.
        reading: `indexed`: copied once to Arrow and shuffled perfectly; `streaming`: from the files themselves, which starts
            at once on any size, shuffles nearly as well (see `RowStream`), and does not know the length of an epoch.
        shuffle_buffer: rows in memory that streaming shuffles.
        batch_size: training pairs a batch and rank.
        eval_batch_size: rows a batch when encoding for evaluation.
        num_workers: loader processes a rank; 0: load in the main process.
        augmentation: of training images; None: none.
        negatives: most that are taken of the `negative_passages` of a training row; None: all.
        columns: fields of training rows, each a number or a list of numbers, that the loss receives: `EncodedBatch.extra`.
        passage_columns: fields of training rows with a number per passage, received by the loss too; see `rows.ExtraColumns`.
        shared_passage_ids: whether the subsets take their passages from one corpus, where an id names the same passage in all
            of them: it is then a positive of every query of a batch that names it. Otherwise equal ids of two subsets are two
            passages, each a negative of the other's query.
        validation: where the validation queries come from. `val`: `<subset>_val.jsonl`; `holdout`: training rows that are
            chosen by their passage ids and not trained on; `test`: the test queries. `auto`: `val` for subsets with such a
            file and `holdout` for the others, or `test`, with a warning, where neither is possible. `val_or_test`: what
            `auto` meant before there was a holdout. ReT-M2KR has no validation files.
        validation_pool: passages per subset that validation searches: all positives, and others by chance; None: the whole
            pool, or with a holdout the positives and 1,000 others. Recall in a smaller pool is higher.
        holdout_rows: training rows per subset that a holdout takes out of training at most.
        holdout_fraction: the same as a share of the subset's rows; the smaller of the two limits holds.
        max_image_pixels: images that have more are refused before they are decoded.
        seed: of the order of the rows, of fractions of the mixture, of instructions and of the augmentation.
        on_bad_row: what to do with a row that cannot be used: `raise` an error, or `skip` it: training rows, and lines of
            evaluation files, are left out and counted by kind; queries and passages whose image cannot be read go without it.
        max_bad_fraction: a run stops when more than this share of the training rows that it saw, or of the rows of an
            evaluation file, was skipped.
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
                    f"data.{name}={value} must be at least 1", code="batch-size-out-of-range", key=name, found=value
                )
        if negatives is not None and negatives < 0:
            raise ConfigError(
                f"data.negatives={negatives} must be 0 or more, or null for all that rows name",
                code="negatives-out-of-range",
                found=negatives,
            )
        if subsets is not None and len(set(subsets)) < len(subsets):
            raise ConfigError(
                f"data.subsets={list(subsets)} names a subset twice; name each once",
                code="subset-named-twice",
                found=list(subsets),
            )
        if on_bad_row not in (allowed := ("raise", "skip")):
            message = f"data.on_bad_row={on_bad_row} must be raise or skip"
            raise ConfigError(message, code="unknown-on-bad-row", found=on_bad_row, allowed=allowed)
        if not 0 <= max_bad_fraction <= 1:
            raise ConfigError(
                f"data.max_bad_fraction={max_bad_fraction} must be from 0 to 1",
                code="bad-fraction-out-of-range",
                found=max_bad_fraction,
            )
        check_validation(validation)
        self.layout = layout
        if twice := {*columns} & {*passage_columns}:
            raise ConfigError(
                f"data.columns and data.passage_columns both name {', '.join(sorted(twice))}; name a field in one of them",
                code="column-named-twice",
                found=tuple(sorted(twice)),
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
        self.position = Position()  # where the checkpoint that training resumes from was written
        self._evaluation: dict[Split, list[EvaluationSubset]] = {}
        self._plan: ValidationPlan | None = None
        self.allow_zero_length_dataloader_with_multiple_devices = True  # of small files not every rank has a share

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = _with_passed_on_options(cls)

    @property
    def collate(self) -> Collator:
        """Makes batches of rows."""
        return Collator(self.tokenizer, self.image_transform.size, self.extra_columns)

    def check_files(self, needed: Collection[Needed]) -> list[str] | None:
        """Find the files and folders of the corpus before they are read, scanned or copied; index image archives.

        Args:
            needed: `train`, and of `val` and `test` those that are evaluated.

        Returns:
            The subsets with evaluation files; None if they are not known yet, as `Layout.prepare` makes them.

        Raises:
            DataError: naming the first that is missing or cannot be read.
        """
        if self.layout.is_generated:
            return None
        # What the other settings validate on follows from the training files.
        validated = {"val": ["val"], "test": ["test"], "val_or_test": ["test"]}.get(self.validation, [])
        names = self._names()
        check_required_files(self.layout, names, {*needed} - {"val"} | {*(validated if "val" in needed else [])})
        return names

    def prepare_data(self) -> None:
        """On one process per machine: fill the caches that training reads (Arrow copy, scan of the rows, image archives)."""
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return  # an evaluation leaves training rows alone, be they there or not
        self.layout.prepare()
        self.check_files(("train",))
        self._training_set().batches(self.batch_size)

    def setup(self, stage: str | None = None) -> None:
        """Opens the files; evaluation files are parsed and checked whole, training rows when they are read.

        Raises:
            DataError: naming the first file that is missing, or file, line and field of the first problem.
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
        """Batches per epoch of each of so many ranks; None: not known, as rows are streamed."""
        batches = (self._train or self._training_set()).batches(self.batch_size, 0, world_size)
        return batches.batches_per_epoch(*batches.size)

    def evaluation_subsets(self, split: Split) -> list[EvaluationSubset]:
        """The subsets of a split, in the order in which its loaders come (see `val_dataloader`)."""
        return self._evaluation[split]

    @property
    def validated_on(self) -> dict[str, Source]:
        """Where the validation queries of each subset come from, once they are set up."""
        return {subset.name: subset.source for subset in self._evaluation.get("val", ())}

    def validation_plan(self) -> ValidationPlan:
        """Where the validation queries come from, and what is held out for them; decided once, with a scan where needed.

        Raises:
            ConfigError: if `validation` is `holdout` and nothing can be held out.
            DataError: if a file is missing or cannot be read.
        """
        if self._plan is None:
            self._plan = plan_validation(
                self.layout, self._names(), self.subset_names or (), self.validation, self.holdout_limits
            )
            self._plan.log()
        return self._plan

    def train_dataloader(self) -> DataLoader:
        """Batches of training pairs, this rank's share."""
        rows = TrainingRows(
            self._train.rows, self._read_image(), self._train.names, self.augmentation, self.instructions, self.negatives,
            self.seed, self.on_bad_row, self.shared_passage_ids, self.extra_columns, self.layout.parser,
        )  # fmt: skip
        batches = self._train.batches(self.batch_size, *self._rank_and_world())
        # At the time of the first call Lightning has not restored its count of epochs.
        batches.set_epoch(max(self.position.epoch, self.trainer.current_epoch if self.trainer else 0))
        batches.resume(self.position)
        return make_row_loader(rows, batches, self.collate.training, persistent_workers=True, **self._loading())

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and what it served; see `Position`."""
        epochs, batches = self.trainer.fit_loop.epoch_progress.current, self.trainer.fit_loop.epoch_loop.batch_progress
        epoch, served = (epochs.ready, 0) if batches.is_last_batch else (epochs.ready - 1, batches.current.ready)
        return self.position.moved(epoch, served, self._rank_and_world()[1], self.batch_size).state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Sets the position at which training continues; Lightning calls it before the loaders are made."""
        self.position = Position.of_state(state_dict, self._rank_and_world()[1], self.batch_size)

    def val_dataloader(self) -> list[DataLoader]:
        """A loader for each side of each subset, see `evaluation_rows`; each row on one rank, but see `fill_idle_rank`."""
        return self.evaluation_loaders("val")

    def test_dataloader(self) -> list[DataLoader]:
        """A loader for each side of each subset of the test split, see `val_dataloader`."""
        return self.evaluation_loaders("test")

    def evaluation_loaders(self, split: Split) -> list[DataLoader]:
        """The loaders of a split that is set up, of the batches that `choose_batches` gives this rank."""
        files = self.evaluation_rows(split)
        batches = self.choose_batches(files)
        idle = not any(batches)
        return [
            make_evaluation_loader(rows, own, self.collate, is_repeated=idle, **self._loading())
            for rows, own in zip(files, fill_idle_rank(batches), strict=True)
        ]

    def choose_batches(self, files: Sequence[EvaluationRows]) -> list[list[list[int]]]:
        """The batches of this rank, of each file a list of lists of rows: its share of all rows.

        An evaluation that continues replaces this by `StoredVectors.begin`, which leaves out what is encoded already.
        """
        return distribute_batches([len(rows) for rows in files], self.eval_batch_size, *self._rank_and_world())

    def evaluation_rows(self, split: Split) -> list[EvaluationRows]:
        """What the loaders of a split read from: of each subset the pool, and then the queries."""
        read_image = self._read_image()
        return [
            EvaluationRows(subset.rows(side), read_image, subset.name, side, self.on_bad_row)
            for subset in self._evaluation[split]
            for side in SIDES
        ]

    def _read_image(self) -> ImageReader:
        return ImageReader(self.layout.image_source(), self.image_transform, self.max_image_pixels)

    def _loading(self) -> dict[str, Any]:
        """What all loaders have in common."""
        on_gpu = bool(self.trainer) and self.trainer.strategy.root_device.type == "cuda"
        return {"num_workers": self.num_workers, "pin_memory": on_gpu, "seed": self.seed}

    def training_names(self, evaluated: Sequence[str]) -> SubsetNames:
        """What tells the subset of a training row.

        Args:
            evaluated: the subsets that have evaluation files.

        Raises:
            ConfigError: if a setting names a subset that there is not.
            DataError: if the mixture leaves no row.
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
        note = {"val": "", "holdout": ", held-out training rows", "test": ", the test queries"}[source]
        if source == "holdout":
            subset = load_holdout_subset(plan.holdout, name, instruction, limit, self.choice.reading == "indexed")
        else:
            subset = load_subset(
                self.layout, name, split, source, instruction, limit, self.on_bad_row, self.max_bad_fraction
            )
            if split == "val" and self.validation_pool is not None and len(subset.pool) > self.validation_pool:
                note += f", sampled from {len(subset.pool)} (data.validation_pool)"
                subset = sample_pool(subset, self.validation_pool, self.seed)
        sizes, shown = (len(subset.queries), len(subset.pool)), note if split == "val" else ""
        log.info("%s/%s: %d queries, %d passages%s", split, name, *sizes, shown)
        warn_unreachable(subset)
        return subset

    def _names(self) -> list[str]:
        found = self.layout.subsets()
        if self.subset_names is None:
            if not found:
                first = self.layout.evaluated_subsets[:1] or self.layout.pools()[:1] or ["any"]
                self.layout.query_files(first[0], "test")  # reports which file is looked for
            return found
        if not self.subset_names:
            message = "data.subsets is empty; name at least one subset, or set null for all"
            raise ConfigError(message, code="no-subset-named")
        for name in self.subset_names:
            if found and name not in found:
                raise DataError(
                    f"data.subsets={name}: {self.layout.root} has no test queries of that subset; there are: "
                    f"{', '.join(found)}",
                    code="subset-without-test-file",
                    subset=name,
                    allowed=tuple(found),
                )
        return self.subset_names

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def _with_passed_on_options(cls: type[RetrievalDataModule]) -> inspect.Signature:
    """The signature of a subclass, with the arguments of `RetrievalDataModule` that it takes as `**options`."""
    own = inspect.signature(cls.__init__, eval_str=True)
    parameters = [p for name, p in own.parameters.items() if name != "self"]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        return own.replace(parameters=parameters)
    shown = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    names = {"self", "layout", *(p.name for p in shown)}
    base = inspect.signature(RetrievalDataModule.__init__, eval_str=True).parameters
    shown += [p.replace(kind=p.KEYWORD_ONLY) for name, p in base.items() if name not in names]
    return own.replace(parameters=shown)
