"""The progress of a run and its results: dev metrics, weights, checkpoints; and how it is resumed."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loguru import logger
from typing_extensions import override

from bertorch import distributed
from bertorch.clock import Clock
from bertorch.config import TrainingConfig
from bertorch.data.dataset import Examples, Subset
from bertorch.data.model_digests import ModelDigests
from bertorch.data.schedule import ScheduledStep
from bertorch.errors import ConstantScoresError, InterruptedRunError, NotFiniteError, UserError
from bertorch.precision import Precision
from bertorch.tasks.base import Task
from bertorch.training.checkpoints import PROGRESS
from bertorch.training.cores import threads_in_use
from bertorch.training.drawn_examples import DrawnExamples
from bertorch.training.eval_loop import evaluate
from bertorch.training.hooks import Hook, diverged, require_finite_weights, using
from bertorch.training.memory import IN_TRAINING, explain_out_of_memory
from bertorch.training.metrics_file import TensorBoardFolder
from bertorch.training.model_card import ModelCard
from bertorch.training.run_folder import RECORD, RunFolder
from bertorch.training.run_options import data_files, describe_run, sources_inside
from bertorch.training.run_saver import RunSaver
from bertorch.training.state import ModuleState, State, Stateful, restore_parts
from bertorch.weights import SAFE_WEIGHTS, WEIGHTS, WEIGHTS_FILES, warm_start


@dataclass
class RunState(Stateful):
    """The progress of a run; the part `progress` of a checkpoint."""

    last_step: int  # of the run; `--patience` may end it earlier
    step: int = 0  # the last one that was saved
    processes: int = 1  # W of the process group that took it
    threads: int = 1  # of each of them on the CPU
    weights_step: int = 0  # of the weights for use
    best: dict[str, Any] | None = None  # name, value, step and summary of the best dev metric so far
    evaluations_since_best: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)  # step and numbers of each evaluation

    @override
    def state(self) -> State:
        return State({}, asdict(self))

    @override
    def restore(self, state: State) -> None:
        vars(self).update(state.values)


class RunKeeper:
    """Evaluates and saves; remembers the best dev metric and which step's weights are for use; ends a run early.

    Raises a UserError on every process where `--saved_dir` or `--tensorboard_dir` cannot be written to, or
    `--saved_dir` holds the results of another run.
    """

    def __init__(
        self, config: TrainingConfig, task: Task[Any], dev: Examples | None, precision: Precision, last_step: int
    ) -> None:
        self._config, self._task, self._dev, self._precision = config, task, dev, precision
        self.run = RunState(last_step, processes=distributed.world_size(), threads=threads_in_use())
        self._saved: Mapping[str, State] | None = None
        self._newest: ScheduledStep | None = None  # that was finished
        self.clock = Clock()
        self._folder: RunFolder | None = None  # of the first process
        self._is_resumed: bool = distributed.on_main(self._open_folder)
        self._saver = RunSaver(self._folder, config.save_interval)

    def load_weights(self) -> None:
        """Warm-start the model unless the run is resumed; move it to this process's device, the same on all."""
        model, source = self._task.model, self._config.init_from_ckpt
        if source is not None and not self._is_resumed:
            is_dropped = model.is_head if self._config.new_head else None
            convert = self._task.convert_legacy_weights
            warm_start(model.weights, source, model.encoder_prefix, convert=convert, is_dropped=is_dropped)
        model.to(distributed.device())
        distributed.broadcast_weights(model)

    def attach(self, parts: Mapping[str, Stateful], hooks: Sequence[Hook]) -> None:
        """Include these parts in checkpoints, beside model and progress; restore all of them if the run is resumed."""
        self._parts: dict[str, Stateful] = {PROGRESS: self.run, "model": ModuleState(self._task.model.weights), **parts}
        self._evaluation_hooks = using(hooks, "evaluation_weights")
        if self._is_resumed:
            try:
                restore_parts(self._parts, self._saved)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise UserError(
                    f"--saved_dir {self._config.saved_dir}: expected a newest checkpoint as a run leaves it, got "
                    f"{type(error).__name__}: {error}; remove it, or let --overwrite start anew"
                ) from error
            before, threads_before = self.run.processes, self.run.threads
            self.run.processes, self.run.threads = distributed.world_size(), threads_in_use()
            if before != self.run.processes:
                logger.info(
                    f"the checkpoint is of {before} process(es), this run has {self.run.processes}: the same but for "
                    "rounding and dropout"
                )
            elif threads_before != self.run.threads:
                logger.info(
                    f"the checkpoint is of {threads_before} thread(s), this run has {self.run.threads}: the same but "
                    "for rounding"
                )
        self._saved = None
        self._first = self.run.step
        distributed.on_main(self._open_tensorboard)

    def is_due(self, step: int) -> bool:
        """Whether to evaluate or save after a step."""
        return any(self._due(step))

    def finish_step(self, step: ScheduledStep, *, stop: bool) -> None:
        """Evaluate and save what is due, and end the run early if `--patience` says so, or after a signal (`stop`).

        Raises:
            UserError: memory runs out in the evaluation, or its numbers or the weights are not finite.
            InterruptedRunError: `stop`, on every process, after saving, unless the run is complete with this step.
        """
        evaluates, saves = self._due(step.number)
        self._newest = step
        with ExitStack() as stack:
            for hook in self._evaluation_hooks:
                stack.enter_context(hook.evaluation_weights())
            if evaluates:
                self._require_finite_weights(step)
            improved = evaluates and self._evaluate(step)
            if self.run.evaluations_since_best == self._config.patience and step.number < self.run.last_step:
                logger.info("ends early: evaluations without a better dev metric: {}", self._config.patience)
                self.run.last_step = step.number
            must = stop or step.number == self.run.last_step
            part = "last save" if must else "waiting for saves"
            with self.clock.measuring(part):
                saves = self._saver.begin(regular=saves, must=must)
                if saves and not evaluates:
                    self._require_finite_weights(step)
                if improved if self._config.save_best_model else saves:
                    self._save_weights(step.number)
        with self.clock.measuring(part):
            if saves:
                if self._evaluation_hooks:  # those in training are others, and in the checkpoint
                    self._require_finite_weights(step)
                self.run.step = step.number
                self._saver.save_checkpoint(step.number, self._parts, self._task.savables)
            self._saver.write(wait=must)
        if stop and step.number < self.run.last_step:
            goes_on = self._config.keep_checkpoints > 0
            where = f", with a checkpoint in {self._config.saved_dir}" if goes_on else ""
            raise InterruptedRunError(f"stopped after step {step.number}{where}", goes_on=goes_on)

    def record(self, step: ScheduledStep, numbers: Mapping[str, float | str]) -> None:
        """Write numbers of a step into `metrics.jsonl`, and for TensorBoard."""
        distributed.on_main(lambda: self._write_numbers({"step": step.number, "epoch": step.epoch, **numbers}))

    def log_summary(self) -> None:
        """Log where the time went, the best dev metric and its step, and where the weights are."""
        if self._newest is not None:
            self._log_time(self._newest)
        best = self.run.best
        if best is not None:
            for line in best["summary"]:
                logger.info("{}", line)
            logger.info(f"best dev {best['name']}: {best['value']:.5f} at step {best['step']}")
        wanted = WEIGHTS_FILES[self._config.save_format][-1]
        folder = Path(self._config.saved_dir)  # a run that goes on with another --save_format may have saved no more
        name = next((each for each in (wanted, WEIGHTS, SAFE_WEIGHTS) if (folder / each).exists()), wanted)
        logger.info(f"weights of step {self.run.weights_step}: {self._config.saved_dir}/{name}")

    def close(self) -> None:
        """Wait for what is being saved; for a run that ends, in whatever way."""
        self._saver.close()

    def _log_time(self, last: ScheduledStep) -> None:
        seconds = dict(self.clock.seconds())
        total = seconds.pop("total")
        speed = (last.number - self._first) / total
        parts = ", ".join(f"{name} {part:.0f} s" for name, part in seconds.items())
        logger.info(f"time: {total:.0f} s: {parts}; {speed:.3g} steps/s from start to end")
        names = {f"seconds_{name.replace(' ', '_')}": part for name, part in seconds.items()}
        self.record(last, {"seconds": total, **names, "steps_per_second": speed})

    def _open_folder(self) -> bool:
        """Open `--saved_dir`; returns whether the run is resumed."""
        config, processes, negatives = self._config, distributed.world_size(), self._task.negatives
        digests, precision = ModelDigests(Path(config.saved_dir) / RECORD), self._precision.name
        options = describe_run(config, digests, precision=precision, processes=processes, negatives=negatives)
        self._folder = RunFolder(
            config.saved_dir,
            options,
            keep=config.keep_checkpoints,
            digests=digests.weights,
            data_files=data_files(config),
            weights_files=WEIGHTS_FILES[config.save_format],
        )
        sources = sources_inside(config)
        self._saved = self._folder.open(resume=config.resume, overwrite=config.overwrite, sources_inside=sources)
        return self._saved is not None

    def _open_tensorboard(self) -> None:
        folder = self._config.tensorboard_dir
        self._tensorboard = None if folder is None else TensorBoardFolder(folder, after=self.run.step)

    def _due(self, step: int) -> tuple[bool, bool]:
        """Whether to evaluate and whether to save after a step."""
        is_last = step == self.run.last_step
        evaluates = self._dev is not None and (is_last or step % self._config.evaluation_steps == 0)
        return evaluates, is_last or step % self._config.save_steps == 0

    def _evaluate(self, step: ScheduledStep) -> bool:
        """Evaluate; returns whether the dev metric is the best so far, the same on every process."""
        assert self._dev is not None
        try:
            with (
                self.clock.measuring("evaluating"),
                explain_out_of_memory(f"evaluation after step {step.number}", IN_TRAINING),
            ):
                metric = evaluate(self._task, self._dev, self._config.batch_size, self._precision)
        except NotFiniteError as error:
            message = "expected finite dev metrics, got NaN or infinity"
            raise diverged(step, message, self._config.saved_dir) from error
        except ConstantScoresError as error:
            raise diverged(step, str(error), self._config.saved_dir) from error
        logger.info(metric.line())
        if not self.run.history:  # the first evaluation of the run
            for warning in metric.warnings():
                logger.warning("{}", warning)
        numbers = {f"dev_{name}": value for name, value in metric.numbers().items()}
        self.record(step, {"metric": next(iter(numbers)), **numbers})
        self.run.history.append({"step": step.number, **numbers})
        # The last bit of a metric may differ between machines, but all processes must end a run at the same step.
        improved: bool = distributed.broadcast_json(self.run.best is None or metric.value > self.run.best["value"])
        if improved:
            summary = list(metric.summary())
            self.run.best = {"name": metric.name, "value": metric.value, "step": step.number, "summary": summary}
        self.run.evaluations_since_best = 0 if improved else self.run.evaluations_since_best + 1
        return improved

    def _require_finite_weights(self, step: ScheduledStep) -> None:
        require_finite_weights(self._task.model.parameters(), step, self._config.saved_dir)

    def _write_numbers(self, line: Mapping[str, Any]) -> None:
        assert self._folder is not None
        self._folder.write_metrics(line)
        if self._tensorboard is not None:
            self._tensorboard.write(line)

    def _save_weights(self, step: int) -> None:
        self.run.weights_step = step
        history = list(self.run.history)
        card = ModelCard(self._config, self._task, step=step, history=history, precision=self._precision)
        drawn = [DrawnExamples(self._config, self._dev)] if isinstance(self._dev, Subset) else []
        weights, averaged = self._task.model.weights.state_dict(), bool(self._evaluation_hooks)
        self._saver.save_weights(weights, [*self._task.savables, card, *drawn], averaged=averaged)
