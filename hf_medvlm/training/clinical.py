"""The options of clinical metrics, for every recipe of a model that writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_medvlm.metrics.clinical import check_names
from hf_medvlm.training.arguments import option, split_names


@dataclass
class ClinicalArguments:
    """Which clinical metrics score the reports, and where their weights lie."""

    clinical_metrics: str | None = option(
        None, "clinical metrics of the reports, separated by commas: chexbert, bertscore, radgraph, radcliq, ..."
    )
    clinical_weights: str | None = option(
        None, "folder in which the clinical metrics' weights lie; what is missing there is named, nothing is fetched"
    )

    def clinical(self) -> dict[str, Any]:
        """The two options as an evaluation takes them.

        Raises:
            ValueError: an unknown metric; the message lists those there are.
        """
        names = split_names(self.clinical_metrics or "")
        check_names(names)
        return {"clinical_metrics": names, "clinical_weights": self.clinical_weights}
