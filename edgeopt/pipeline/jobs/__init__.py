"""The work of each step, run in a worker: reads the folders of earlier steps, writes into its own.

Every job leaves ``result.json`` (its record) beside what it made, so that a finished step says what it said before.
"""

from edgeopt.pipeline.jobs.digests import DigestJob, digest_callable, digest_training_callable
from edgeopt.pipeline.jobs.folder import (
    ARTIFACT,
    GRAPH,
    MODULE,
    PREDICTIONS,
    PYTORCH,
    RESULT,
    TABLE,
    load_graph,
    read_result,
)
from edgeopt.pipeline.jobs.inputs import Inputs
from edgeopt.pipeline.jobs.latency import LatencyJob, measure_latency
from edgeopt.pipeline.jobs.passes import PARITY_SAMPLES, PassesJob, PassesResult, run_passes
from edgeopt.pipeline.jobs.source import (
    CONVERSION_SAMPLES,
    ImportJob,
    ImportResult,
    import_model,
    load_source,
    open_source,
)
from edgeopt.pipeline.jobs.target import (
    FAR_FROM_FLOAT_DB,
    CheckJob,
    TargetJob,
    TargetResult,
    build_target,
    check_targets,
)
from edgeopt.pipeline.jobs.training import TrainingJob, TrainingResult, graph_training_data, train_module

__all__ = [
    "ARTIFACT",
    "CONVERSION_SAMPLES",
    "FAR_FROM_FLOAT_DB",
    "GRAPH",
    "MODULE",
    "PARITY_SAMPLES",
    "PREDICTIONS",
    "PYTORCH",
    "RESULT",
    "TABLE",
    "CheckJob",
    "DigestJob",
    "ImportJob",
    "ImportResult",
    "Inputs",
    "LatencyJob",
    "PassesJob",
    "PassesResult",
    "TargetJob",
    "TargetResult",
    "TrainingJob",
    "TrainingResult",
    "build_target",
    "check_targets",
    "digest_callable",
    "digest_training_callable",
    "graph_training_data",
    "import_model",
    "load_graph",
    "load_source",
    "measure_latency",
    "open_source",
    "read_result",
    "run_passes",
    "train_module",
]
