"""What every metric of this folder shares: report text and scores stay in memory, and no folder is made for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import datasets

if TYPE_CHECKING:
    from evaluate import Metric as _Metric  # what the mix-in stands in front of
else:
    _Metric = object


class InMemory(_Metric):
    """Mixed into an `evaluate.Metric`: one that never spools its inputs to disk, however it is loaded.

    evaluate's default writes predictions and references to `$HF_HOME/metrics`, where they stay if a run dies
    (reference text of credentialed corpora must not). A mix-in and no `evaluate.Metric` itself: `evaluate.load` takes
    the first subclass of it that it meets in a module, and must not meet this one.
    """

    def __init__(self, config_name: str | None = None, keep_in_memory: bool = True, **options: Any) -> None:
        del keep_in_memory  # `evaluate.load` passes False by default
        super().__init__(config_name=config_name, keep_in_memory=True, **options)
        if config_name:
            self._module_info.module_name = config_name  # `evaluate.combine` tells its metrics apart by it

    def _build_data_dir(self) -> str:
        return self._data_dir_root  # evaluate makes a folder here; nothing would ever stand in it

    def _infer_feature_from_batch(self, batch: dict[str, Any]) -> datasets.Features:
        if len(batch["predictions"]):
            return super()._infer_feature_from_batch(batch)
        return self.features[0] if isinstance(self.features, list) else self.features  # evaluate asks the first row
