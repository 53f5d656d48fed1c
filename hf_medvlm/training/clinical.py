"""The options of clinical metrics, for every recipe of a model that writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_medvlm.metrics.clinical import check_names
from hf_medvlm.metrics.clinical.judge import Judge
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

    judge_url: str | None = option(
        None,
        "endpoint of a language model that judges reports (judge_green, judge_radfact), such as http://localhost:8000/v1",
    )
    judge_model: str = option("", "name of the judge behind --judge_url")
    judge_hosted_acknowledged: bool = option(
        False, "yes, the reports may go to a --judge_url outside this machine and its private network"
    )

    def clinical(self) -> dict[str, Any]:
        """The options as an evaluation takes them.

        Raises:
            ValueError: an unknown metric; the message lists those there are. A judge outside the private network.
        """
        names = tuple(dict.fromkeys(split_names(self.clinical_metrics or "")))
        check_names(names)
        judge = Judge(self.judge_url, self.judge_model, self.judge_hosted_acknowledged) if self.judge_url else None
        return {"clinical_metrics": names, "clinical_weights": self.clinical_weights, "judge": judge}
