"""What a run leaves behind: dev metrics, weights, checkpoints; and how an interrupted run takes them up again."""

from collections.abc import Mapping
from typing import Any

from loguru import logger

from bertorch import distributed
from bertorch.config import TrainingConfig
from bertorch.data.dataset import Examples
from bertorch.data.schedule import ScheduledStep
from bertorch.errors import InterruptedRunError
from bertorch.training import weights as checkpoint
from bertorch.training.eval_loop import evaluate
from bertorch.training.memory import out_of_memory_told
from bertorch.training.model_card import ModelCard
from bertorch.training.run_folder import RunFolder, SavedState, describe_run
from bertorch.training.step import OptimizationStep, Precision
from bertorch.training.tasks import Task
from bertorch.training.tensorboard import TensorBoardFolder


class Results:
    """Evaluates and saves; remembers the best dev metric and which step's weights are for use; ends a run early.

    Args:
        config: the run's options.
        task: model, metric, companions.
        dev: dev examples; None does not evaluate.
        precision: of the evaluation.
        total_steps: of the run, unless `--patience` ends it before.

    Attributes:
        steps_done: by the run that this one goes on with, else 0.
        last_step: of the run, as far as is known.

    Raises:
        UserError: `--saved_dir` cannot be written to or is another run's, or `--tensorboard_dir` cannot be had.
    """

    def __init__(
        self, config: TrainingConfig, task: Task[Any], dev: Examples | None, precision: Precision, total_steps: int
    ) -> None:
        self._config = config
        self._task = task
        self._dev = dev
        self._precision = precision
        self._state: SavedState | None = None
        saved: Mapping[str, Any] | None = distributed.on_main(self._open_folder)
        if saved and saved["processes"] != distributed.world_size():
            logger.info(
                "the checkpoint is of {} process(es), this run has {}: the same but for rounding and dropout",
                saved["processes"],
                distributed.world_size(),
            )
        self._resumed = None if saved is None else saved["optimization"]
        self.steps_done: int = saved["step"] if saved else 0
        self.last_step: int = saved["steps"] if saved else total_steps
        self._saved_step = self.steps_done
        self._best: dict[str, Any] | None = saved["best"] if saved else None
        self._unimproved: int = saved["unimproved"] if saved else 0  # evaluations since the best one
        self._weights_step: int = saved["weights_step"] if saved else 0
        self._history: list[dict[str, Any]] = saved["history"] if saved else []  # the numbers of each evaluation
        distributed.on_main(self._open_tensorboard)

    def place_weights(self) -> None:
        """Take the weights of the checkpoint, or those to warm-start from, on all processes and their devices."""
        weights = self._task.model.weights
        if self._state is not None:
            weights.load_state_dict(self._state.weights)
        elif self._resumed is None and self._config.init_from_ckpt is not None:
            prefix = self._task.model.encoder_prefix
            checkpoint.warm_start(weights, self._config.init_from_ckpt, prefix, adapted=self._task.adapted)
        self._task.model.to(distributed.device())
        distributed.broadcast_weights(self._task.model)

    def follow(self, step: OptimizationStep) -> None:
        """Save this step's state from now on; first bring it to that of the checkpoint, if there is one."""
        self._step = step
        if self._resumed is not None:
            step.restore(self._resumed, self._state.optimizer if self._state is not None else None)
        self._state = None

    def due(self, step: int) -> tuple[bool, bool]:
        """Whether to evaluate and whether to save after a step."""
        is_last = step == self.last_step
        evaluates = self._dev is not None and (is_last or step % self._config.evaluation_steps == 0)
        return evaluates, is_last or step % self._config.save_steps == 0

    def take(self, step: ScheduledStep, *, evaluates: bool, saves: bool) -> None:
        """Evaluate, end the run here if that is what `--patience` asks for, and save what is to be saved.

        Args:
            step: the last one taken.
            evaluates: whether to evaluate; with `--save_best_model`, weights that are better are then saved.
            saves: whether to save a checkpoint, and the weights unless only the best are wanted. The last step of a run
                is always saved.

        Raises:
            UserError: the folder cannot be written to, on every process; or the memory is not enough to evaluate.
        """
        improved = evaluates and self._evaluate(step)
        if self._unimproved == self._config.patience and step.number < self.last_step:
            logger.info("ends early: evaluations without a better dev metric: {}", self._unimproved)
            self.last_step = step.number
        saves = saves or step.number == self.last_step
        publishes = improved if self._config.save_best_model else saves
        if publishes:
            self._weights_step = step.number
        if saves:
            self._saved_step = step.number
        if publishes or saves:
            distributed.on_main(lambda: self._write(publishes=publishes, saves=saves))

    def record(self, step: ScheduledStep, numbers: Mapping[str, float | str]) -> None:
        """Write numbers of a step into `metrics.jsonl`, and for TensorBoard.

        Raises:
            UserError: the folder cannot be written to, on every process.
        """
        distributed.on_main(lambda: self._write_numbers({"step": step.number, "epoch": step.epoch, **numbers}))

    def stop(self) -> None:
        """End the run after its last save.

        Raises:
            InterruptedRunError: always.
        """
        raise InterruptedRunError(self._saved_step, self._config.saved_dir if self._config.keep_checkpoints else None)

    def tell(self) -> None:
        """Say what the best dev metric was, at which step, and where the weights are."""
        if self._best is not None:
            for line in self._best["report"]:
                logger.info("{}", line)
            logger.info(f"best dev {self._best['name']}: {self._best['value']:.5f} at step {self._best['step']}")
        logger.info(f"weights of step {self._weights_step}: {self._config.saved_dir}/{checkpoint.WEIGHTS}")

    def _open_folder(self) -> dict[str, Any] | None:
        options = describe_run(
            self._config,
            precision=self._precision.name,
            processes=distributed.world_size(),
            own_negatives=self._task.depends_on_processes,
        )
        self._folder = RunFolder(self._config.saved_dir, options, keep=self._config.keep_checkpoints)
        self._state = self._folder.open(resume=self._config.resume, overwrite=self._config.overwrite)
        return None if self._state is None else dict(self._state.values)

    def _open_tensorboard(self) -> None:
        folder = self._config.tensorboard_dir
        self._tensorboard = None if folder is None else TensorBoardFolder(folder, after=self.steps_done)

    def _evaluate(self, step: ScheduledStep) -> bool:
        """Evaluate; returns whether the dev metric is better than ever, the same on every process."""
        assert self._dev is not None
        with out_of_memory_told(f"evaluation after step {step.number}", self._config, self._task, self._precision):
            metric = evaluate(self._task, self._dev, self._config.batch_size, self._precision)
        logger.info(metric.line())
        numbers = {f"dev_{name}": value for name, value in metric.numbers().items()}
        self.record(step, {"metric": next(iter(numbers)), **numbers})
        self._history.append({"step": step.number, **numbers})
        # On unlike machines the last bit of a metric may differ; all must end a run at the same step.
        improved: bool = distributed.broadcast_json(self._best is None or metric.value > self._best["value"])
        if improved:
            report = list(metric.report())
            self._best = {"name": metric.name, "value": metric.value, "step": step.number, "report": report}
        self._unimproved = 0 if improved else self._unimproved + 1
        return improved

    def _write_numbers(self, line: Mapping[str, Any]) -> None:
        self._folder.write_metrics(line)
        if self._tensorboard is not None:
            self._tensorboard.write(line)

    def _write(self, *, publishes: bool, saves: bool) -> None:
        weights = self._task.model.weights.state_dict()
        if publishes:
            self._folder.save_weights(weights, [*self._task.companions, self._card()])
        if not saves:
            return
        values = {
            "step": self._saved_step,
            "steps": self.last_step,
            "processes": distributed.world_size(),
            "best": self._best,
            "unimproved": self._unimproved,
            "weights_step": self._weights_step,
            "history": self._history,
            "optimization": self._step.values(),
        }
        state = SavedState(weights, self._step.tensors(), values)
        self._folder.save_state(self._saved_step, state, self._task.companions)

    def _card(self) -> ModelCard:
        return ModelCard(
            self._config,
            pipeline_tag=self._task.model.pipeline_tag,
            step=self._weights_step,
            history=self._history,
            precision=self._precision.name,
        )
